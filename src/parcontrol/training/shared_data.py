"""The data of several processes: rank 0 reads, and all get the same blocks.

So each token is read, tokenised and counted once, position, provenance and hash are those of one
process, and whatever machine another rank is on, it cannot see other data.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parcontrol.data import TrainStream, ValidationSet
from parcontrol.training.processes import Processes


class SharedStream:
    """A `TrainStream` of rank 0, handed out to all.

    Attributes:
        wait_seconds: Time that `next_blocks` has waited: for tokens, or for rank 0.
    """

    def __init__(self, stream: TrainStream | None, processes: Processes, sequence_length: int) -> None:
        """Shares a stream; only rank 0 gives one."""
        assert (stream is not None) == processes.main
        self.wait_seconds = 0.0
        self._stream, self._processes, self._sequence_length = stream, processes, sequence_length
        self._tokens = 0

    def next_blocks(self, n: int) -> NDArray[np.int64]:
        """Returns the next n blocks [n, T] in every process.

        Raises:
            ValueError: As the stream does, in rank 0.
        """
        started = time.perf_counter()
        blocks = None if self._stream is None else {"blocks": torch.from_numpy(self._stream.next_blocks(n))}
        shared: NDArray[np.int64] = self._processes.tensors_of_main(blocks)["blocks"].numpy()
        self.wait_seconds += time.perf_counter() - started
        self._tokens += shared.size
        return shared

    def state_dict(self) -> dict[str, Any]:
        """The stream's position; rank 0 alone knows and keeps it."""
        return {} if self._stream is None else self._stream.state_dict()

    def provenance(self) -> dict[str, Any]:
        """What was handed out; rank 0 alone knows from where."""
        return {"shards": [], "tokens": self._tokens} if self._stream is None else self._stream.provenance()

    def __enter__(self) -> SharedStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()


def shared_validation(own: ValidationSet | None, processes: Processes) -> ValidationSet:
    """Returns rank 0's validation set in every process; the others give None."""
    assert (own is not None) == processes.main
    arrays = {} if own is None else {"blocks": own.blocks, "document_ids": own.document_ids}
    tensors = processes.tensors_of_main({name: torch.from_numpy(array) for name, array in arrays.items()})
    sha256, documents = processes.of_main(lambda: own and (own.sha256, own.documents))
    return ValidationSet(tensors["blocks"].numpy(), tensors["document_ids"].numpy(), sha256, documents)
