"""The cache directory, and building a directory in it exactly once."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from parcontrol.runs import atomic_directory


def cache_directory(cache_dir: str | Path | None = None) -> Path:
    """Returns `cache_dir`, else ``$PARCONTROL_CACHE``, else ``~/.cache/parcontrol``."""
    chosen = cache_dir or os.environ.get("PARCONTROL_CACHE") or "~/.cache/parcontrol"
    return Path(chosen).expanduser().absolute()


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Returns the directory `target`, made by ``build(directory)`` if it does not exist yet.

    `target` appears complete or not at all. Of several processes one builds and the others wait
    for it. What a killed process left behind is removed by the next one.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it even if we are killed
        if not target.is_dir():
            for leftover in target.parent.glob(f".{target.name}.*"):
                shutil.rmtree(leftover)
            with atomic_directory(target) as directory:
                build(directory)
    return target
