"""The configuration: shipped files, precedence, refusals, and that nothing is lost on the way."""

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from parcontrol.cli.config import reference
from parcontrol.cli.train import command_parser
from parcontrol.config import (
    RunConfig,
    config_differences,
    dump_yaml,
    iter_fields,
    load_config,
    nearest_key,
    type_name,
    validation_message,
)

FIELDS = {field.name: field for field in iter_fields()}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def message_of(path: Path | None = None, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the shipped files ---


def shipped(repository: Path) -> dict[str, Path]:
    return {path.stem: path for path in (repository / "configs").glob("*.yaml")}


def test_all_shipped_configs_load(repository: Path) -> None:
    files = shipped(repository)
    names = {"base_config", "test_config", "demo_config", "paper_config", "results_config", "results_gpu_config"}
    assert set(files) == names | {f"p{P}_config" for P in (1, 2, 4, 8)}
    for P in (1, 2, 4, 8):
        assert load_config(files[f"p{P}_config"]).parscale.P == P
    assert load_config(files["paper_config"]).parscale.prefix_init == "normal"
    assert load_config(files["test_config"]).total_steps == 16
    assert load_config(files["demo_config"]).tokens_per_step == 1024


def test_base_config_equals_the_built_in_defaults_and_names_every_key(repository: Path) -> None:
    path = shipped(repository)["base_config"]
    assert load_config(path) == load_config() == RunConfig()
    assert yaml.safe_load(path.read_text()).keys() == RunConfig.model_fields.keys()
    assert keys_in(path) == set(FIELDS)


def test_inheriting_configs_hold_only_what_differs(repository: Path) -> None:
    files = shipped(repository)
    base = load_config(files.pop("base_config"))
    for path in files.values():
        assert yaml.safe_load(path.read_text())["inherits"] == "base_config.yaml"
        assert keys_in(path) == set(config_differences(base, load_config(path))), path.name


def keys_in(path: Path) -> set[str]:
    content = yaml.safe_load(path.read_text())
    content.pop("inherits", None)
    flat = set()
    for key, value in content.items():
        flat |= {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
    return flat


def test_reference_is_current(repository: Path) -> None:
    """After a change of the fields: `parcontrol config reference > docs/configuration.md`."""
    assert (repository / "docs" / "configuration.md").read_text() == reference()


def test_reference_holds_every_key_with_its_default() -> None:
    text = reference()
    for field in FIELDS.values():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{field.name}` |"))
        assert field.description in row
        default = row.replace(r"\|", "/").split("|")[3].strip(" `")
        assert yaml.safe_load(default) == field.default or default == str(field.default)


def test_no_key_is_dead(repository: Path) -> None:
    """Every key is read somewhere outside the configuration itself."""
    attributes: set[str] = set()
    for path in (repository / "src" / "parcontrol").rglob("*.py"):
        if path.name != "config.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            attributes |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    # Read through properties of the configuration, which are what the code uses.
    through = {
        "tokens_per_run": "total_steps",
        "microbatch_size": "tokens_per_step",
        "gradient_accumulation_steps": "tokens_per_step",
        "output_dir": "run_directory",
    }
    names = {name.rpartition(".")[2] for name in FIELDS}
    dead = {n for n in names if n not in attributes and through.get(n) not in attributes}
    assert not dead


# --- files, inheritance, precedence ---


def test_precedence_is_override_over_file_over_base_over_default(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "parscale: {P: 2, prefix_length: 8}\ndata: {seed: 1}\n")
    write(tmp_path / "mid.yaml", "inherits: base.yaml\nparscale: {P: 4}\n")
    (tmp_path / "sub").mkdir()
    path = write(tmp_path / "sub" / "top.yaml", "inherits: ../mid.yaml\ntraining: {seed: 3}\n")
    config = load_config(path, {"training.seed": 5})
    assert (config.parscale.P, config.parscale.prefix_length) == (4, 8)
    assert (config.data.seed, config.training.seed) == (1, 5)
    assert config.parscale.attn_smooth == RunConfig().parscale.attn_smooth


def test_numbers_are_read_as_yaml_and_shells_write_them(tmp_path: Path) -> None:
    text = "training: {tokens_per_run: 16_000_000, learning_rate: 3e-3, adam_eps: 1.0e-8}\n"
    config = load_config(write(tmp_path / "c.yaml", text))
    assert config == load_config()
    flags = {"training.tokens_per_run": "16_000_000", "training.learning_rate": "3e-3"}
    assert load_config(None, flags) == load_config()
    assert load_config(None, {"training.gradient_checkpointing": "true"}).training == (
        load_config(None, {"training.gradient_checkpointing": True}).training
    )


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path / "c.yaml", "# nothing\n")) == RunConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parscale: {P: 2", ["no valid YAML"]),
        ("- 1\n", ["mapping", "[1]"]),
        ("parscale: 2\n", ["parscale: 2", "mapping"]),
        ("parscale:\n", ["parscale: None", "mapping"]),
        ("parscale: {P: 2}\nparscale: {P: 4}\n", ["'parscale'", "twice"]),
        ("parscale: {P: 2, P: 4}\n", ["'P'", "twice"]),
        ("inherits: [a, b]\n", ["inherits", "['a', 'b']"]),
        ("inherits: c.yaml\n", ["inherits", "back to the file itself"]),
        ("inherits: none.yaml\n", ["none.yaml", "No such file"]),
        ("training: {tokens_per_rum: 5}\n", ["tokens_per_rum", "'training.tokens_per_run'"]),
        ("trainning: {seed: 5}\n", ["unknown section 'trainning'", "'training'"]),
        ("P: 2\n", ["unknown key 'P'", "'parscale.P'"]),
        ("parscale: {1: 2}\n", ["unknown key 'parscale.1'"]),
        ("learning_rate: 2\n", ["unknown key", "'training.learning_rate'"]),
        ("parscale: {p: 2}\n", ["unknown key 'parscale.p'", "'parscale.P'"]),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path / "c.yaml", text)
    message = message_of(path)
    assert str(tmp_path) in message
    for word in words:
        assert word in message


def test_a_missing_file_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "No such file" in message_of(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert "no valid YAML" in message_of(tmp_path / "c.yaml")


def test_an_error_names_the_file_only_where_the_value_comes_from_it(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "parscale: {P: 0}\n")
    assert message_of(path).startswith(f"{path}: parscale.P: 0 ")
    assert message_of(path, {"parscale.P": "-1"}).startswith("parscale.P: '-1' ")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("parscale.P", 0, ["0", "greater than or equal to 1"]),
        ("parscale.P", True, ["True", "not true or false"]),
        ("parscale.P", 1.5, ["1.5", "integer"]),
        ("parscale.P", None, ["None", "integer"]),
        ("parscale.attn_smooth", 1, ["1", "less than 1"]),
        ("parscale.attn_smooth", -0.1, ["-0.1", "greater than or equal to 0"]),
        ("parscale.prefix_init", "zeros", ["'zeros'", "'context' or 'normal'"]),
        ("training.mode", "lora", ["'lora'", "'peft' or 'full'"]),
        ("training.mixed_precision", "fp16", ["'fp16'", "'auto', 'bf16' or 'fp32'"]),
        ("training.learning_rate", float("nan"), ["nan", "greater than 0"]),
        ("training.max_grad_norm", float("inf"), ["inf", "finite"]),
        ("training.gradient_checkpointing", "maybe", ["'maybe'", "boolean"]),
        ("training.seed", -1, ["-1", "greater than or equal to 0"]),
        ("model.name", "", ["''", "at least 1 character"]),
        ("model.revision", 5, ["5", "string"]),
        ("data.sequence_length", 1, ["1", "greater than or equal to 2"]),
        ("logging.level", "VERBOSE", ["'VERBOSE'", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"]),
    ],
)
def test_a_bad_value_is_quoted_with_what_is_allowed(key: str, value: Any, words: list[str]) -> None:
    message = message_of(None, {key: value})
    assert message.startswith(f"{key}: ")
    for word in words:
        assert word in message


def test_every_bad_value_is_named_at_once() -> None:
    message = message_of(None, {"parscale.P": 0, "data.num_shards": 0})
    assert "parscale.P: 0" in message
    assert "data.num_shards: 0" in message


def test_an_unknown_override_names_the_nearest_key() -> None:
    assert "'training.warmup_tokens'" in message_of(None, {"training.warmup_token": 5})
    assert nearest_key("seq_length") == "data.sequence_length"


def test_a_budget_below_one_step_is_refused_with_the_sum() -> None:
    message = message_of(None, {"training.tokens_per_run": 16_383})
    assert "16383" in message
    assert "16384" in message
    smallest = {"training.tokens_per_run": 16_384, "training.warmup_tokens": 0}
    assert load_config(None, smallest).total_steps == 1


def test_the_warmup_is_a_fiftieth_of_the_run_unless_given() -> None:
    assert load_config(None).warmup_tokens == 320_000
    assert load_config(None, {"training.tokens_per_run": 100_000}).warmup_tokens == 2_000
    assert load_config(None, {"training.warmup_tokens": 0}).warmup_tokens == 0


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    sizes = {"training.tokens_per_run": 5 * 16_384 + 1, "training.warmup_tokens": 5 * 16_384}
    message = message_of(None, sizes)
    assert "training.warmup_tokens 81920" in message
    assert "81920 tokens (5 whole steps of 16384)" in message
    assert load_config(None, sizes | {"training.warmup_tokens": 5 * 16_384 - 1}).total_steps == 5


def test_a_run_takes_the_whole_steps_that_the_budget_pays_for() -> None:
    config = load_config(
        None,
        {
            "data.sequence_length": 10,
            "training.microbatch_size": 3,
            "training.gradient_accumulation_steps": 2,
            "training.tokens_per_run": 199,
            "training.warmup_tokens": 0,
        },
    )
    assert (config.tokens_per_step, config.total_steps) == (60, 3)


@pytest.mark.parametrize(("P", "mode", "allowed"), [(1, "full", True), (1, "peft", False), (2, "full", False)])
def test_no_prefix_only_where_something_is_left_to_train(P: int, mode: str, allowed: bool) -> None:
    overrides = {"parscale.P": P, "parscale.prefix_length": 0, "training.mode": mode}
    if allowed:
        assert load_config(None, overrides).parscale.prefix_length == 0
    else:
        assert "parscale.prefix_length 0" in message_of(None, overrides)


def test_the_run_directory_follows_P_unless_given() -> None:
    assert load_config(None, {"parscale.P": 4}).run_directory == Path("outputs/P4_experiment")
    assert load_config(None, {"output_dir": "elsewhere"}).run_directory == Path("elsewhere")


def test_a_config_cannot_change() -> None:
    with pytest.raises(ValidationError):
        RunConfig().parscale.P = 2  # type: ignore[misc]


def test_validation_message_is_one_line_for_any_model_error() -> None:
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate({"parscale": {"P": "x", "extra": 1}, "training": 5})
    assert validation_message(caught.value).count("\n") == 0
    assert "training: 5 is not allowed: a mapping" in validation_message(caught.value)


# --- nothing is lost on the way through YAML ---


def values_of(field_type: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, before its limits."""
    if type(None) in get_args(field_type):
        return st.none() | values_of(get_args(field_type)[0])
    if "|" in type_name(field_type):
        return st.sampled_from(type_name(field_type).split(" | "))
    if type_name(field_type) == "str":
        return st.text(st.characters(codec="utf-8"), min_size=1)
    return {
        "int": st.integers(2, 10**12),
        "float": st.floats(0, 0.999, exclude_min=True),
        "bool": st.booleans(),
    }[type_name(field_type)]


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    chosen = draw(st.lists(st.sampled_from(sorted(FIELDS)), unique=True))
    overrides = {name: draw(values_of(FIELDS[name].type)) for name in chosen}
    for name in set(chosen) & {"data.seed", "training.seed"}:
        overrides[name] %= 2**32
    overrides["training.tokens_per_run"] = 10**48  # pays for a step of any size, and any warmup
    return load_config(None, overrides)


@given(configs())
@example(load_config(None, {"data.repo": "a\x85b\u2028c"}))
def test_dump_and_load_give_the_same_config(tmp_path_factory: Any, config: RunConfig) -> None:
    path = write(tmp_path_factory.getbasetemp() / "round_trip.yaml", dump_yaml(config))
    assert load_config(path) == config


@given(configs(), configs())
def test_differences_lead_from_one_config_to_the_other(a: RunConfig, b: RunConfig) -> None:
    differences = config_differences(a, b)
    assert (not differences) == (a == b)
    everything = {name: value_of(a, name) for name in FIELDS}
    changed = everything | {name: new for name, (_, new) in differences.items()}
    assert load_config(None, changed) == b
    assert all(old == everything[name] != new for name, (old, new) in differences.items())


def value_of(config: RunConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


# --- whatever is given ---

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=4,
)


def allowed_type(field_type: Any, value: Any) -> bool:
    """Whether a value in YAML may be one of a field's: numbers may be written as text, and nothing else may."""
    names = type_name(field_type).split(" | ")
    if value is None:
        return "null" in names
    if isinstance(value, bool):
        return "bool" in names
    if isinstance(value, int | float):
        return bool({"int", "float", "bool"} & set(names))
    return isinstance(value, str)


@given(name=st.sampled_from(sorted(FIELDS)), value=ANYTHING)
def test_a_value_is_taken_as_it_is_or_refused_by_name(name: str, value: Any) -> None:
    """Never changed into another one without a word, never an error of another kind."""
    budget = {} if name == "training.tokens_per_run" else {"training.tokens_per_run": 10**48}
    try:
        taken = value_of(load_config(None, {name: value} | budget), name)
    except ValueError:
        assert name in message_of(None, {name: value} | budget)
        return
    assert allowed_type(FIELDS[name].type, value)
    assert taken == value or (isinstance(value, str) and not isinstance(taken, str))


@given(key=st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=30))
def test_any_unknown_key_is_refused_with_a_key_that_exists(tmp_path_factory: Any, key: str) -> None:
    assume(key not in FIELDS)
    message = message_of(None, {key: 1})
    assert any(repr(name) in message for name in FIELDS)
    file = write(tmp_path_factory.getbasetemp() / "unknown.yaml", yaml.safe_dump({"parscale": {f"{key}_": 1}}))
    assert any(repr(name) in message_of(file) for name in FIELDS)


@given(configs())
def test_the_command_line_and_a_file_give_the_same_config(config: RunConfig) -> None:
    """Each key as a flag, as a shell hands it over."""
    values = {name: value_of(config, name) for name in FIELDS}
    assume("null" not in values.values())  # which a flag means as none
    args = command_parser().parse_all([f"--{name}={as_flag(value)}" for name, value in values.items()])
    given_values = {name: vars(args)[name] for name in FIELDS}
    assert load_config(None, given_values) == config


def as_flag(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
