"""The page in a process of its own, quicker to look at its store: `python -m tests.leaderboard.app.server ROOT`.

Prints the port that it was given.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn

from parcontrol.leaderboard.app import page
from parcontrol.leaderboard.app.board import LiveBoard
from parcontrol.leaderboard.app.serve import application
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import open_stores

if __name__ == "__main__":
    page.SECONDS_BETWEEN_LOOKS = 1.0
    settings = Settings(root=Path(sys.argv[1]))
    live = LiveBoard(open_stores(settings), seconds=0.5)
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(application(live, settings), log_level="error")).run([listening])
