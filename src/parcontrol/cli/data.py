"""`parcontrol data verify RUN`: was the run trained on the data that it says?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.runs import RunDirectory

NOT_CONFIRMED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Replays a run's provenance.

    Returns:
        0 when the replay gives the recorded tokens, 1 when it does not or cannot be made, 2 when
        there is no run.
    """
    parser = OneLineParser(prog="parcontrol data", description="Check a run's training data.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    verify = commands.add_parser(
        "verify", help="deal, tokenise and pack the data again; compare with what was recorded"
    )
    verify.add_argument("run", type=Path, metavar="RUN", help="run directory")
    return _verify(RunDirectory(parser.parse_args(argv).run))


def _verify(run: RunDirectory) -> int:
    try:
        run.read_config()
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR

    from parcontrol.data import verify_run

    try:
        verified = verify_run(run)
    except ValueError as error:
        print_error(error)
        return NOT_CONFIRMED
    provenance = verified.provenance
    print(
        f"confirmed: {provenance['tokens']:,} tokens of {len(provenance['shards'])} shards up to "
        f"step {verified.step}, {verified.records} records, sha256 {provenance['sha256']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
