"""Standard output whose reader may leave early, as `head` does."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def let_readers_leave() -> None:
    """Makes standard output go on into nothing once its reader has left, which is no error.

    This is done below `print`, so that it holds for everything that prints, and for no other pipe or connection. What
    is no file of this process's own, such as a test's capture, stays as it is.
    """
    output = sys.stdout
    buffer = getattr(output, "buffer", None)
    if not isinstance(output, io.TextIOWrapper) or type(getattr(buffer, "raw", buffer)) is not io.FileIO:
        return
    output.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(output.fileno(), "wb", closefd=False)),
        encoding=output.encoding,
        errors=output.errors,
        line_buffering=output.line_buffering,
        write_through=output.write_through,
    )


class _Output(io.FileIO):
    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), self.fileno())
            return super().write(data)
