"""The configuration of a run: strict, typed, every field with its unit.

One file, one precedence: command-line flag over YAML file over the file it inherits over the
defaults below. Unknown keys are errors, because a value that is silently ignored is a wrong run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

INHERITS = "inherits"


def _refuse_bool(value: object) -> object:
    # bool is a subclass of int: without this, `P: true` would be read as P = 1.
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    return value


Integer = Annotated[int, BeforeValidator(_refuse_bool)]
Real = Annotated[float, BeforeValidator(_refuse_bool), Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelConfig(_Section):
    """The pretrained backbone."""

    name: Name = Field("Qwen/Qwen2.5-0.5B", description="Hub id or local directory of the pretrained backbone.")
    revision: Name | None = Field(
        None, description="Commit, tag or branch of the backbone on the Hub; null means its head."
    )


class ParScaleConfig(_Section):
    """Streams, prefixes and aggregator (arXiv 2505.10475)."""

    P: Integer = Field(1, ge=1, description="Number of parallel streams.")
    prefix_length: Integer = Field(48, ge=0, description="Learnable prefix tokens per stream and layer (K), in tokens.")
    attn_smooth: Real = Field(0.1, ge=0, lt=1, description="Label smoothing of the aggregation weights (epsilon).")
    prefix_init: Literal["context", "normal"] = Field(
        "context",
        description="How prefixes start: keys and values of training text at positions -K to -1, "
        "or normal noise with standard deviation 0.02.",
    )


class TrainingConfig(_Section):
    """Budget, optimiser, precision and checkpoints."""

    mode: Literal["peft", "full"] = Field(
        "peft", description="peft trains prefixes and aggregator only; full trains every parameter."
    )
    tokens_per_run: Integer = Field(16_000_000, ge=1, description="Token budget of the run, in real tokens.")
    microbatch_size: Integer = Field(1, ge=1, description="Sequences per forward and backward pass.")
    gradient_accumulation_steps: Integer = Field(16, ge=1, description="Microbatches per optimiser step.")
    mixed_precision: Literal["auto", "bf16", "fp32"] = Field(
        "bf16",
        description="Precision of the backbone; auto is bf16 where the device computes it "
        "natively, else fp32. What trains in peft mode is always fp32.",
    )
    learning_rate: Real = Field(3e-3, gt=0, description="Peak learning rate, after warmup.")
    warmup_tokens: Integer | None = Field(
        None, ge=0, description="Length of the linear warmup, in tokens; null means 2 % of tokens_per_run."
    )
    min_learning_rate_ratio: Real = Field(
        0.1, ge=0, le=1, description="Learning rate at the end of the cosine, as a share of peak."
    )
    weight_decay: Real = Field(0.0, ge=0, description="Decoupled weight decay of AdamW.")
    adam_beta1: Real = Field(0.9, ge=0, lt=1, description="AdamW: decay of the first moment.")
    adam_beta2: Real = Field(0.95, ge=0, lt=1, description="AdamW: decay of the second moment.")
    adam_eps: Real = Field(1e-8, gt=0, description="AdamW: term added to the denominator.")
    max_grad_norm: Real = Field(1.0, gt=0, description="Gradients are clipped to this global L2 norm.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    compile: bool = Field(
        False,
        description="Compile the decoder layers with torch.compile: a minute at the start, faster steps; "
        "on a CPU it needs a C++ compiler.",
    )
    streams_per_pass: Integer | None = Field(
        None,
        ge=1,
        description="Streams whose activations are kept at a time; P or more is the ordinary step. "
        "null takes as many as fit into the free memory at the start of the run.",
    )
    seed: Integer = Field(42, ge=0, lt=2**32, description="Seed of the initialisation (prefix texts, aggregator).")
    device: Name | None = Field(
        None, description="Device, such as cuda, mps or cpu; null takes the first there is of them."
    )
    init_from: Name | None = Field(
        None, description="Checkpoint directory whose weights the run starts from (second stage)."
    )
    eval_interval_tokens: Integer = Field(1_000_000, ge=1, description="Tokens between two validations.")
    log_interval_steps: Integer = Field(10, ge=1, description="Optimiser steps between two log points.")
    checkpoint_interval_steps: Integer = Field(50, ge=1, description="Optimiser steps between two checkpoints.")
    keep_checkpoints: Integer = Field(2, ge=1, description="Number of newest periodic checkpoints that are kept.")


class DataConfig(_Section):
    """Training and validation text."""

    repo: Name = Field(
        "monology/pile-uncopyrighted",
        description="Hub dataset id, or a local directory in the same layout.",
    )
    revision: Name | None = Field(
        None,
        description="Commit, tag or branch of the dataset; null means its head, resolved once.",
    )
    mirror: Name | None = Field(
        None, description="Directory with datasets/REPO and models/REPO, read instead of the Hub."
    )
    num_shards: Integer = Field(8, ge=1, description="Number of train shards, chosen by the seed.")
    seed: Integer = Field(42, ge=0, lt=2**32, description="Seed of the choice of shards and the dealing of documents.")
    sequence_length: Integer = Field(1024, ge=2, description="Length of a packed block, in tokens.")
    validation_tokens: Integer = Field(1_000_000, ge=2, description="Size of the fixed validation set, in tokens.")
    num_workers: Integer = Field(
        1,
        ge=0,
        description="Threads that tokenise ahead of the step, beside one that reads and tokenises; 0: when needed.",
    )


class LoggingConfig(_Section):
    """Console, log files and Weights & Biases."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level that is logged.")
    directory: Name = Field("outputs/logs", description="Directory of the JSON-lines log files.")
    wandb: Literal["disabled", "online", "offline"] = Field(
        "disabled", description="Weights & Biases logging; offline needs no account."
    )
    wandb_project: Name = Field("parcontrol", description="Weights & Biases project.")


class RunConfig(_Section):
    """Everything that decides a run, and where it goes."""

    model: ModelConfig = ModelConfig()
    parscale: ParScaleConfig = ParScaleConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()
    logging: LoggingConfig = LoggingConfig()
    output_dir: Name | None = Field(None, description="Run directory; null means outputs/P{P}_experiment.")

    @property
    def run_directory(self) -> Path:
        """The directory that the run writes to."""
        return Path(self.output_dir or f"outputs/P{self.parscale.P}_experiment")

    @property
    def tokens_per_step(self) -> int:
        """Real tokens per optimiser step."""
        return self.data.sequence_length * self.training.microbatch_size * self.training.gradient_accumulation_steps

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run: the whole steps that the token budget pays for."""
        return self.training.tokens_per_run // self.tokens_per_step

    @property
    def warmup_tokens(self) -> int:
        """Length of the linear warmup, in tokens."""
        given = self.training.warmup_tokens
        return self.training.tokens_per_run * 2 // 100 if given is None else given

    @model_validator(mode="after")
    def _budget_pays_for_a_step(self) -> RunConfig:
        if self.total_steps < 1:
            raise ValueError(
                f"training.tokens_per_run {self.training.tokens_per_run} is less than one "
                f"optimiser step of {self.tokens_per_step} tokens (data.sequence_length "
                f"{self.data.sequence_length} x training.microbatch_size "
                f"{self.training.microbatch_size} x training.gradient_accumulation_steps "
                f"{self.training.gradient_accumulation_steps})"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends_within_the_run(self) -> RunConfig:
        tokens = self.total_steps * self.tokens_per_step
        if self.warmup_tokens >= tokens:
            raise ValueError(
                f"training.warmup_tokens {self.warmup_tokens} is not shorter than the run, which has "
                f"{tokens} tokens ({self.total_steps} whole steps of {self.tokens_per_step}): set both"
            )
        return self

    @model_validator(mode="after")
    def _prefix_where_streams_need_one(self) -> RunConfig:
        # Without prefixes all streams compute the same; with one stream there is no aggregator
        # either, so that nothing is left to train unless the backbone itself trains.
        plain = self.parscale.P == 1 and self.training.mode == "full"
        if self.parscale.prefix_length == 0 and not plain:
            raise ValueError(
                "parscale.prefix_length 0 is allowed only with parscale.P 1 and training.mode full "
                f"(the plain backbone), not with P {self.parscale.P} and mode {self.training.mode}"
            )
        return self


class ConfigField(NamedTuple):
    """One key of the configuration."""

    name: str
    type: Any
    default: Any
    description: str


def iter_fields() -> Iterator[ConfigField]:
    """Yields every key with its dotted name, type, default and description, in file order."""
    return _fields_of(RunConfig, "")


def _fields_of(model: type[BaseModel], prefix: str) -> Iterator[ConfigField]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _fields_of(info.annotation, f"{prefix}{name}.")
        else:
            assert info.description is not None, name
            yield ConfigField(f"{prefix}{name}", info.annotation, info.default, info.description)


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Reads a configuration.

    Args:
        path: YAML file, which may name another one to build on with `inherits` (relative to
            itself). None starts from the built-in defaults.
        overrides: Values by dotted name, such as `{"parscale.P": 4}`; they win over the file.

    Raises:
        ValueError: A file is missing or no YAML mapping, a key is unknown (the nearest valid one
            is named), or a value is not allowed. One line.
    """
    values = {} if path is None else _read_file(Path(path), ())
    for key, value in (overrides or {}).items():
        _check_key(key, source="override")
        section, _, name = key.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        message = validation_message(error)
        from_file = path is not None and not any(key in message for key in overrides or {})
        raise ValueError(f"{path}: {message}" if from_file else message) from error


def dump_yaml(config: RunConfig) -> str:
    """Returns the whole configuration as YAML that `load_config` reads back to an equal one."""
    # Unicode is escaped: PyYAML writes some of it, such as U+0085, as it is and reads it back as a line break.
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def config_differences(a: RunConfig, b: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the keys whose values differ, by dotted name, with both values."""
    flat_a, flat_b = _flatten(a), _flatten(b)
    return {key: (flat_a[key], flat_b[key]) for key in flat_a if flat_a[key] != flat_b[key]}


def nearest_key(key: str, candidates: Iterable[str] | None = None) -> str:
    """Returns the valid key that is most like an unknown one.

    Both the whole dotted names and their last parts are compared, so that `P` finds `parscale.P`.
    """

    def likeness(candidate: str) -> tuple[float, float]:
        whole = _ratio(key, candidate)
        last = _ratio(key.rpartition(".")[2], candidate.rpartition(".")[2])
        return max(whole, last), whole

    names = [field.name for field in iter_fields()] if candidates is None else list(candidates)
    return max(names, key=likeness)


def validation_message(error: ValidationError) -> str:
    """Returns one line that names each offending key, quotes its value, says what is allowed."""
    return "; ".join(_error_line(details) for details in error.errors())


def type_name(field_type: Any) -> str:
    """Returns how a field's type is written for a reader, such as `int` or `bf16 | fp32`."""
    if get_origin(field_type) is Literal:
        return " | ".join(map(str, get_args(field_type)))
    if get_origin(field_type) is Annotated:
        return type_name(get_args(field_type)[0])
    if isinstance(field_type, type):
        return "null" if field_type is type(None) else field_type.__name__
    return " | ".join(type_name(part) for part in get_args(field_type))


def _error_line(details: ErrorDetails) -> str:
    key = ".".join(str(part) for part in details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if details["type"] == "literal_error":
        message = f"allowed are {details['ctx']['expected']}"
    elif details["type"] == "model_type":
        message = "a mapping of keys to values is needed"
    else:
        message = message[0].lower() + message[1:]
    return f"{key}: {details['input']!r} is not allowed: {message}"


def _read_file(path: Path, heirs: tuple[Path, ...]) -> dict[str, Any]:
    """Returns the checked content of a file merged over what it inherits."""
    if path.resolve() in heirs:
        raise ValueError(f"{path}: {INHERITS} leads back to the file itself")
    content = _parse_file(path)
    base = content.pop(INHERITS, None)
    _check_content(content, path)
    if base is None:
        return content
    if not isinstance(base, str):
        raise ValueError(f"{path}: {INHERITS}: {base!r} is not allowed: one file name is needed")
    return _merge(_read_file(path.parent / base, (*heirs, path.resolve())), content)


def _parse_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a mapping of sections is needed, not {content!r}")
    return content


class _UniqueKeyLoader(yaml.SafeLoader):
    """A loader that refuses a key given twice, where YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _check_content(content: Mapping[Any, Any], path: Path) -> None:
    sections = _sections()
    for key, value in content.items():
        if key in sections:
            if not isinstance(value, dict):
                raise ValueError(f"{path}: {key}: {value!r} is not allowed: a mapping of keys to values is needed")
            for name in value:
                _check_key(f"{key}.{name}", source=str(path))
        elif isinstance(value, dict):
            near = nearest_key(str(key), sections)
            raise ValueError(f"{path}: unknown section {str(key)!r}; the nearest is {near!r}")
        else:
            _check_key(str(key), source=str(path))


def _check_key(key: str, source: str) -> None:
    if key not in {field.name for field in iter_fields()}:
        raise ValueError(f"{source}: unknown key {key!r}; the nearest is {nearest_key(key)!r}")


def _sections() -> list[str]:
    return list(dict.fromkeys(f.name.split(".")[0] for f in iter_fields() if "." in f.name))


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_sections = isinstance(value, dict) and key in merged
        merged[key] = merged[key] | value if both_sections else value
    return merged


def _flatten(config: RunConfig) -> dict[str, Any]:
    dumped = config.model_dump()
    flat = {}
    for field in iter_fields():
        section, _, name = field.name.rpartition(".")
        flat[field.name] = (dumped[section] if section else dumped)[name]
    return flat


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a.lower(), b.lower()).ratio()
