"""How many rows fit into memory at once."""

from __future__ import annotations

from typing import Any

import psutil
import torch

MOST_ROWS = 64  # more make no processor busier
# A row as long as prompts with shots and documents are; longer ones are rare, and meet the halving below.
_TOKENS = 2048
# The harness holds logits, their float32 copy, and its log-softmax.
_BYTES_PER_LOGIT = 12
# Beyond this share of free memory the system would have to swap. On CUDA an overrun is an error that we can answer.
_SHARE = {"cuda": 0.8}
_SHARE_ELSEWHERE = 0.4


def automatic_batch_size(lm: Any) -> int:
    """Returns a batch size at which rows of 2,048 tokens fit into the memory that is free now.

    The harness's own search runs anew for every call, on rows as long as the model's context, and on a CPU an overrun
    kills the process instead of raising.
    """
    config = lm.model.config.get_text_config()
    streams = getattr(config, "parscale_n", 1)
    per_token = config.vocab_size * _BYTES_PER_LOGIT
    # keys and values of all layers, at most as wide as the hidden state, and what one layer needs beside
    per_token += streams * config.hidden_size * 4 * (2 * config.num_hidden_layers + 16)
    free = _SHARE.get(lm.device.type, _SHARE_ELSEWHERE) * _free_bytes(lm.device)
    return max(1, min(MOST_ROWS, int(free / (min(_TOKENS, lm.max_length) * per_token))))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
