"""How a run's steps fit into memory: streams per pass, and what would fit where they do not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from parcontrol.config import RunConfig, TrainingConfig
from parcontrol.diagnostics.footprint import (
    ModelSize,
    Setting,
    fitting_settings,
    fitting_streams_per_pass,
    size_of,
    step_bytes,
)
from parcontrol.diagnostics.memory import MemoryMonitor
from parcontrol.formats import format_bytes
from parcontrol.parscale.modeling_parscale import DUMMY_QUERIES_FROM
from parcontrol.training.compiling import has_attention_kernel
from parcontrol.training.device import Precision
from parcontrol.training.loss import CHUNK_TOKENS_ACCELERATOR, CHUNK_TOKENS_CPU
from parcontrol.training.processes import ALONE, Processes
from parcontrol.training.stream_passes import AGGREGATED_TOKENS

logger = logging.getLogger(__name__)


def memory_setting(training: TrainingConfig, precision: Precision, size: ModelSize, plan_only: bool = False) -> Setting:
    """Returns what decides, beside the configuration, how much memory a step takes.

    Args:
        training: Its configuration.
        precision: Device and types.
        size: The model.
        plan_only: Build no attention kernel to know whether there is one.
    """
    on_cpu = precision.device.type == "cpu"
    # In our kernel, and in torch's where dummy queries stand in for a mask, heads share keys and values.
    kernel = training.compile and has_attention_kernel(
        precision.device, precision.compute, size.head_size, build=not plan_only
    )
    flash = precision.device.type == "cuda" and precision.compute == torch.bfloat16
    return Setting(
        precision.device,
        precision.backbone,
        precision.compute,
        loss_positions=CHUNK_TOKENS_CPU if on_cpu else CHUNK_TOKENS_ACCELERATOR,
        aggregated_tokens=AGGREGATED_TOKENS,
        shared_heads_from=1 if kernel or flash else DUMMY_QUERIES_FROM if on_cpu else None,
    )


@dataclass(frozen=True)
class MemoryPlan:
    """What a run planned with before its first step.

    Attributes:
        streams_per_pass: Streams whose activations are kept at a time.
        size: Sizes of the model.
        setting: Device and types.
        room: Bytes that were free beside the loaded model, in the process that has least.
    """

    streams_per_pass: int
    size: ModelSize
    setting: Setting
    room: int

    @classmethod
    def make(
        cls,
        config: RunConfig,
        model: PreTrainedModel,
        precision: Precision,
        before: Mapping[str, Any],
        processes: Processes = ALONE,
    ) -> MemoryPlan:
        """Plans the steps of a run whose model is loaded, and logs the choice where there is one.

        A resumed run keeps what it began with, unless the configuration says otherwise: another
        number of streams per pass would round differently. Several processes plan with the memory
        of the one that has least; those of one machine share its main memory.

        Args:
            config: The run.
            model: Its model.
            precision: Device and types.
            before: meta.json of a resumed run; empty for a new one.
            processes: Those that train this run.
        """
        size = size_of(model)
        setting = memory_setting(config.training, precision, size)
        room = MemoryMonitor(precision.device).free_bytes()
        if precision.device.type == "cpu":
            room //= processes.local_size
        room = processes.least(room)
        P = config.parscale.P
        chosen, why = config.training.streams_per_pass, "set in the configuration"
        if chosen is None and before:
            chosen, why = before.get("streams_per_pass", P), "as the run began"
        if chosen is None:
            chosen, why = fitting_streams_per_pass(config, size, setting, room), "chosen by the free memory"
        chosen = processes.least(min(chosen, P))
        if P > 1:
            needed = step_bytes(config, size, setting, chosen)
            logger.info(
                "streams per pass: %d of %d, %s; steps take about %s of %s that are free",
                chosen,
                P,
                why,
                format_bytes(round(needed)),
                format_bytes(room),
            )
        return cls(chosen, size, setting, room)

    def what_would_fit(self, config: RunConfig) -> str:
        """Returns a sentence on the mildest settings that would fit, where the run did not."""
        found = fitting_settings(config, self.size, self.setting, self.streams_per_pass, self.room)
        if found is None:
            return ""
        words, needed = found
        return (
            f"By estimate {words} would fit: steps then take {format_bytes(round(needed))} of the "
            f"{format_bytes(self.room)} that were free beside the model."
        )
