"""The process of a run: a module run as a script, which ends when its parent is gone.

    python -m parcontrol.experiment.child MODULE ARGUMENTS...

Standard input is a pipe that nobody writes to, and whose other end only the parent holds. However
the parent ends, even killed, the pipe closes. This needs nothing of the operating system's own,
unlike Linux's death signal.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

# A run that SIGTERM has not ended by then hangs outside of training, in a download perhaps. The
# second one ends it where it is, which is safe: files appear whole or not at all.
_SECONDS_TO_STOP = 600.0
_STDIN = 0


def main() -> None:
    """Runs the module named by the first argument."""
    # Ray's workers start with SIGINT blocked, and children inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    # Until training listens there is nothing to keep: a signal ends the process at once and by its name,
    # where Python would print a traceback and exit with 1, as a failure does.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, name="parcontrol-parent", daemon=True).start()
    module = sys.argv.pop(1)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    # Else the system may hand a signal to this thread, and the main one would not wake up for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    while os.read(_STDIN, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS_TO_STOP)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
