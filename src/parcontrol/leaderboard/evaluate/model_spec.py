"""What is evaluated: a model at one commit, in one precision, with the tasks and conditions of a job."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Backend = Literal["hf", "openai", "dummy"]
BACKENDS: tuple[Backend, ...] = ("hf", "openai", "dummy")
DEFAULT_SEED = 1234  # the harness's own default for drawing shots
DEFAULT_TASK_SECONDS = 86400.0  # the longest task of a large model takes hours; what takes a day hangs

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True)
class ModelSpec:
    """A model as it is loaded.

    Attributes:
        model: Its name on the board: `org/name` or `name`.
        sha: The commit that is evaluated, or the hash of a directory's files (`local-…`).
        path: Directory that holds the files; None for the offline mirror, or else the Hub.
        revision: What the submitter asked for, such as `main`; recorded, never loaded.
        precision: float32, float16, bfloat16, 8bit, 4bit or GPTQ.
        weight_type: Original; Delta (weights to be added to those of `base_model`) or Adapter (peft).
        base_model: For Delta and Adapter: the model that they belong to.
        base_path: Directory that holds the files of the base model.
        chat_template: Whether prompts go through the tokenizer's chat template.
        remote_code: Whether code of the repository may run; see `remote_code.py`.
        backend: What runs the model: transformers (`hf`), an endpoint (`openai`), or the harness's `dummy`.
        base_url: The endpoint's full address, ending in `/completions` or `/chat/completions`.
        model_type: How it was made, and
        license: its licence, as the request has them; recorded.
        tokenizer: For an endpoint: the tokenizer's name or directory; log-likelihoods need one.
    """

    model: str
    sha: str
    path: str | None = None
    revision: str = "main"
    precision: str = "float16"
    weight_type: str = "Original"
    base_model: str = ""
    base_path: str | None = None
    chat_template: bool = False
    remote_code: bool = False
    backend: Backend = "hf"
    base_url: str | None = None
    tokenizer: str | None = None
    model_type: str = "?"
    license: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.model) or ".." in self.model:
            raise ValueError(f"model name {self.model!r}: letters, digits, `-`, `_` and `.` are allowed, and one `/`")

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two results results of the same thing."""
        names = ("model", "sha", "precision", "weight_type", "chat_template")
        return {name: getattr(self, name) for name in names}

    @property
    def commit(self) -> str:
        """The sha as people read it: 12 digits."""
        return re.sub(r"[^\w-]", "_", self.sha.removeprefix("local-"))[:12]

    @property
    def directory_name(self) -> str:
        """The name of its directory in the spool."""
        organisation, _, name = self.model.rpartition("/")
        parts = [organisation, name, self.commit or "unknown", self.precision, self.weight_type]
        return "__".join(filter(None, parts)) + ("__chat" if self.chat_template else "")


@dataclass(frozen=True)
class Conditions:
    """What a result depends on beside model and task.

    Attributes:
        limit: Rows of each task; None for all.
        sample_set: Whether tasks run on the small sample set instead of their datasets.
        instruction_sha256: Hash of the text that replaces our judge instruction, None without.
        seed: Of shots, sampling, and Python's, NumPy's and torch's generators; set anew for every task.
        backend: What ran the model.
    """

    limit: int | None = None
    sample_set: bool = False
    instruction_sha256: str | None = None
    seed: int = DEFAULT_SEED
    backend: Backend = "hf"

    def met_by(self, block: dict[str, Any]) -> bool:
        """Whether a result with this `parcontrol` block will do: from the same data, and from no fewer rows.

        Another seed will do, because one published result is enough; a dummy's numbers never stand for a model's.
        """
        same = all(
            block.get(name, default) == getattr(self, name)
            for name, default in (("sample_set", False), ("instruction_sha256", None))
        )
        rows = block.get("limit")
        enough = rows is None or (self.limit is not None and rows >= self.limit)
        return same and enough and (block.get("backend") == "dummy") == (self.backend == "dummy")


@dataclass(frozen=True)
class Job:
    """One order to the evaluating process.

    Attributes:
        spec: The model.
        conditions: What results depend on.
        tasks: Names from the registry, in the order in which they run.
        out: Directory that gets one directory for each finished task.
        batch_size: Rows at a time (for an endpoint: requests at a time), or `auto`.
        device: Such as `cuda:0`; None takes the best there is.
        mirror: Offline mirror of the Hub.
        instruction_file: Text that replaces the judge instruction.
        request: Path of the request, None without.
        worker: Who evaluates.
        forced: Whether a result that is there already is no reason not to publish this one.
        endpoint_key: The endpoint's API key. It travels in the job, never in the environment, and is never written.
    """

    spec: ModelSpec
    conditions: Conditions
    tasks: tuple[str, ...]
    out: str
    batch_size: int | Literal["auto"] = "auto"
    device: str | None = None
    mirror: str | None = None
    instruction_file: str | None = None
    request: str | None = None
    worker: str = ""
    forced: bool = False
    endpoint_key: str | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        """Returns the job that `to_dict` described."""
        nested = {"spec": ModelSpec(**values["spec"]), "conditions": Conditions(**values["conditions"])}
        return cls(**values | nested | {"tasks": tuple(values["tasks"])})
