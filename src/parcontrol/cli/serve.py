"""`parcontrol serve DIR`: a model behind an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error, run_command

HOST, PORT = "127.0.0.1", 8000


def main(argv: Sequence[str] | None = None) -> int:
    """Serves a model until it is told to end.

    Returns:
        2 when it cannot be started with what the user gave, with one line on stderr. SIGTERM ends the process with
        exit code 0, Ctrl-C with 130.
    """
    parser = OneLineParser(
        prog="parcontrol serve",
        description="Serve the ParScale checkpoint or plain model in a directory with transformers' own "
        "OpenAI-compatible server: /v1/chat/completions, /v1/completions, /v1/responses, /v1/models. There is no "
        "access control: who reaches the address can use the model.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="what save_pretrained wrote, or checkpoints/final")
    parser.add_argument("--host", default=HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=PORT, help="port; 0 takes a free one (default: %(default)s)")
    args = parser.parse_args(argv)
    # Who stops a service sends SIGTERM: an end as good as any.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from parcontrol.serving.server import serve

    try:
        serve(args.directory, args.host, args.port)
    except (ValueError, OSError) as error:
        print_error(error)
        return USAGE_ERROR
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number from 0 to 65535 is needed")
    return int(text)


if __name__ == "__main__":
    sys.exit(run_command(main))
