"""`parcontrol leaderboard submit` and leaderboard/cli/submit-cli.py: put a model into the queue."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error
from parcontrol.leaderboard.records import ModelType, Precision, WeightType

FAILED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Submits one model.

    Returns:
        0 when it is in the queue, 2 when it is refused, 1 when the store or the Hub cannot be reached. A refusal is one
        line on stderr.
    """
    args = _parser().parse_args(argv)
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError, open_stores
    from parcontrol.leaderboard.submission import Submission, submit

    try:
        settings = Settings.from_environment()
        entry = submit(Submission(**vars(args)), open_stores(settings).requests, settings)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except StoreError as error:
        print_error(error)
        return FAILED
    request = entry.request
    print(f"{request.model} at {request.sha} in {request.precision} is {request.status}: {entry.path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    types = ", ".join(f"{kind.symbol} {kind.words}" for kind in ModelType if kind is not ModelType.UNKNOWN)
    parser = OneLineParser(
        prog="parcontrol leaderboard submit",
        description="Put a model into the queue of the leaderboard. It needs weights in safetensors, a configuration "
        "that loads without code of its own, and a model card that states a licence. Five submissions a week.",
        epilog="The store is a local directory, PARCONTROL_LEADERBOARD or outputs/leaderboard, unless REPO_ID, "
        "QUEUE_REPO and RESULTS_REPO name repositories on the Hub; H4_TOKEN is then needed.",
    )
    _add(parser, "--model_name", required=True, help="name on the Hub; for a local store also a directory")
    _add(parser, "--model_type", required=True, help=f"how the model was made, by symbol or words: {types}")
    _add(parser, "--revision", default="main", help="branch, tag or commit (default: %(default)s)")
    precisions = ", ".join(Precision)
    _add(parser, "--precision", help=f"{precisions} (default: what the weights are saved in)")
    weight_types = ", ".join(WeightType)
    _add(parser, "--weight_type", default=WeightType.ORIGINAL.value, help=f"{weight_types} (default: %(default)s)")
    _add(parser, "--base_model", default="", help="the model that an adapter or delta changes")
    _add(
        parser,
        "--use-chat-template",
        dest="chat_template",
        action="store_true",
        help="give prompts to the model through its chat template",
    )
    return parser


def _add(parser: argparse.ArgumentParser, flag: str, **settings: object) -> None:
    """Adds a flag in both spellings, with - and with _."""
    name = flag.removeprefix("--")
    other = name.replace("_", "-") if "_" in name else name.replace("-", "_")
    parser.add_argument(*dict.fromkeys((flag, f"--{other}")), **settings)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
