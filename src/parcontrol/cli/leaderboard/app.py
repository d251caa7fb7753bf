"""`parcontrol leaderboard app` and leaderboard/app.py: the leaderboard's web page."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from parcontrol.cli.parser import USAGE_ERROR, OneLineParser, print_error

FAILED = 1
# Where a Space wants its application to be.
HOST, PORT = "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT"
# Taken out of the environment once the settings are read.
TOKENS = ("H4_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def main(argv: Sequence[str] | None = None) -> int:
    """Serves the page until Ctrl-C or SIGTERM; see `serve`."""
    args = make_parser("parcontrol leaderboard app", "Serve the leaderboard's web page.").parse_args(argv)
    return serve(args.host, args.port)


def serve(host: str, port: int) -> int:
    """Serves the page until Ctrl-C or SIGTERM.

    Args:
        host: Address of this machine to listen on.
        port: Port to listen on.

    Returns:
        0 at the end, 2 for bad settings, 1 when the store cannot be read or the port is taken.
    """
    # The one token that the page may need is given to the store by name.
    os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    import socket

    import uvicorn

    from parcontrol.leaderboard.app.board import LiveBoard
    from parcontrol.leaderboard.app.serve import application
    from parcontrol.leaderboard.settings import Settings
    from parcontrol.leaderboard.store import StoreError, open_stores

    try:
        settings = Settings.from_environment()
        for variable in TOKENS:
            os.environ.pop(variable, None)
        live = LiveBoard(open_stores(settings))
        listening = socket.create_server((host, port), backlog=100)
    except ValueError as error:
        print_error(error)
        return USAGE_ERROR
    except (StoreError, OSError) as error:
        print_error(error)
        return FAILED
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0") else host
    place = f"{settings.results_repo} on the Hub" if settings.on_hub else str(settings.root)
    count = len(live.board.table)
    print(f"Leaderboard with {count:,} model{'s' if count != 1 else ''} from {place}")
    print(f"http://{shown}:{port}  (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(application(live, settings), log_level="warning", proxy_headers=False)
    uvicorn.Server(config).run([listening])
    return 0


def make_parser(prog: str, description: str) -> OneLineParser:
    """Returns the parser of a command that serves the page."""
    parser = OneLineParser(
        prog=prog,
        description=description,
        epilog="The store is a local directory, PARCONTROL_LEADERBOARD or outputs/leaderboard, unless REPO_ID, "
        "QUEUE_REPO and RESULTS_REPO name repositories on the Hub.",
    )
    parser.add_argument("--host", default=os.environ.get(HOST) or "127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--port", type=_port, default=os.environ.get(PORT) or "7860", help="port of this machine; default: %(default)s"
    )
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a number from 1 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
