"""Request files: old, new, broken and hostile ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parcontrol.leaderboard.records import (
    MAX_HISTORY,
    MAX_REQUEST_BYTES,
    Event,
    ModelType,
    Precision,
    Request,
    Status,
    WeightType,
    check_model_name,
    check_revision,
    parse_model_type,
    parse_request,
    request_path,
)

# As the public leaderboard stores it.
PUBLIC = {
    "model": "org/m",
    "base_model": "",
    "revision": "main",
    "private": False,
    "precision": "float16",
    "weight_type": "Original",
    "status": "PENDING",
    "submitted_time": "2024-01-01T00:00:00Z",
    "model_type": "🟢 : pretrained",
    "likes": 3,
    "params": 7.24,
    "license": "apache-2.0",
}
PATH = "org/m_eval_request_False_float16_Original.json"


def parse(path: str = PATH, local: bool = False, **fields: Any) -> Request:
    return parse_request(json.dumps({**PUBLIC, **fields}).encode(), path, local)


def test_a_public_request_is_read() -> None:
    request = parse()
    assert (request.model, request.revision, request.sha) == ("org/m", "main", None)
    assert request.precision is Precision.FLOAT16
    assert request.weight_type is WeightType.ORIGINAL
    assert request.status is Status.PENDING
    assert request.model_type is ModelType.PRETRAINED
    assert request.submitted_time == datetime(2024, 1, 1, tzinfo=UTC)
    assert (request.likes, request.params, request.license) == (3, 7.24, "apache-2.0")
    assert not request.chat_template
    assert request.history == ()


def test_public_fields_are_written_as_the_public_leaderboard_writes_them() -> None:
    written = json.loads(parse().to_json())
    assert {name: written[name] for name in PUBLIC} == PUBLIC
    assert request_path("org/m", Precision.FLOAT16, WeightType.ORIGINAL) == PATH
    assert request_path("gpt2", Precision.INT8, WeightType.DELTA) == "gpt2_eval_request_False_8bit_Delta.json"
    sha = "0123456789abcdef0123456789abcdef01234567"
    assert request_path("gpt2", Precision.INT8, WeightType.DELTA, sha).endswith("_8bit_Delta_0123456789ab.json")


def test_a_reason_gives_no_orders_to_a_terminal() -> None:
    request = parse(
        status="FAILED",
        reason="\x1b[31mRED\x1b]0;title\x07",
        history=[{"time": "2026-01-01T00:00:00Z", "event": "failed", "reason": "two\nlines\x9b1m"}],
    )
    assert request.reason == " [31mRED ]0;title "
    assert request.history[0].reason == "two lines 1m"


def test_unknown_fields_are_kept() -> None:
    request = parse(job_id=7, nested={"a": [1, None, "é"]}, model_dump="a name of ours")
    written = json.loads(request.changed(status=Status.RUNNING).to_json())
    assert written["job_id"] == 7
    assert written["nested"] == {"a": [1, None, "é"]}
    assert written["model_dump"] == "a name of ours"
    assert written["status"] == "RUNNING"


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("status", "RERUN", Status.RERUN),
        ("status", "pending_new_eval", Status.PENDING_NEW_EVAL),
        ("precision", "torch.bfloat16", Precision.BFLOAT16),
        ("precision", "gptq", Precision.GPTQ),
        ("weight_type", "adapter", WeightType.ADAPTER),
        ("model_type", "🟩 : continuously pretrained", ModelType.PRETRAINED),
        ("model_type", "⭕ : instruction-tuned", ModelType.INSTRUCTION_TUNED),
        ("model_type", "something new", ModelType.UNKNOWN),
        ("model_type", "", ModelType.UNKNOWN),
        ("license", ["mit", "apache-2.0"], "mit, apache-2.0"),
        ("license", None, ""),
        ("params", None, 0),
        ("likes", None, 0),
        ("base_model", None, ""),
        ("submitted_time", "2023-11-21T18:10:08", datetime(2023, 11, 21, 18, 10, 8, tzinfo=UTC)),
        ("submitted_time", "2023-11-21T18:10:08+02:00", datetime(2023, 11, 21, 16, 10, 8, tzinfo=UTC)),
        ("submitted_time", None, None),
    ],
)
def test_spellings_of_old_files(field: str, value: Any, read: Any) -> None:
    assert getattr(parse(**{field: value}), field) == read


def test_missing_fields_have_defaults() -> None:
    least = {"model": "org/m", "precision": "float16", "status": "FINISHED"}
    request = parse_request(json.dumps(least).encode(), PATH)
    assert (request.weight_type, request.revision, request.attempts) == (WeightType.ORIGINAL, "main", 0)
    assert request.submitted_time is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "../../etc/passwd"}, "model: Value error, '../../etc/passwd' is no model name"),
        ({"model": "/etc/passwd"}, "is no model name"),
        ({"model": "org/../m"}, "is no model name"),
        ({"model": "org/<img src=x onerror=alert(1)>"}, "is no model name"),
        ({"model": "org/m\u202e"}, r"'org/m\u202e' is no model name"),
        ({"model": "a/b/c"}, "is no model name"),
        ({"model": "org/" + "m" * 97}, "is no model name"),
        ({"model": "m" * 10**5}, "(100002 characters)"),
        ({"model": 7}, "model: Input should be a valid string"),
        ({"model": None}, "model: "),
        ({"model": "org/other"}, "the file is not named after its model 'org/other'"),
        ({"base_model": "../x"}, "base_model: "),
        ({"revision": "main; rm -rf /"}, "is no revision"),
        ({"revision": "../main"}, "is no revision"),
        ({"revision": "-rf"}, "is no revision"),
        ({"sha": "main"}, "is no commit"),
        ({"precision": "float12"}, "precision: "),
        ({"weight_type": ["Original"]}, "weight_type: "),
        ({"status": "DONE"}, "status: "),
        ({"license": "<script>alert(1)</script>"}, "is not a plain text"),
        ({"license": "mit\x1b[2J"}, "is not a plain text"),
        ({"license": "m" * 201}, "license: "),
        ({"likes": "many"}, "likes: "),
        ({"likes": -1}, "likes: "),
        ({"params": "7B"}, "params: "),
        ({"params": -1}, "params: "),
        ({"attempts": -1}, "attempts: "),
        ({"private": "perhaps"}, "private: "),
        ({"submitted_time": "yesterday"}, "submitted_time: "),
        ({"submitted_time": 5}, "submitted_time: "),
        ({"submitted_time": "9999-12-31T23:59:59-23:59"}, "out of range"),
        ({"submitted_by": "<b>me</b>"}, "submitted_by: "),
        ({"claimed_by": "a\nb"}, "claimed_by: "),
        ({"tasks": ["../../x"]}, "tasks.0: "),
        ({"tasks": "nq_open"}, "tasks: "),
        ({"history": "none"}, "history: "),
        ({"history": [{"event": "submitted"}]}, "history.0.time: "),
        ({"P": 0}, "P: "),
        ({"model_path": "/home/me/model"}, "a directory is named local/<name>"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_reason(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as refusal:
        parse(**fields)
    assert reason in str(refusal.value)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 700


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"<html></html>",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"model": "org/m", "params": NaN}',
        b'{"model": "org/m", "params": Infinity}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b"{" * 100_000,
        b"0" * (MAX_REQUEST_BYTES + 1),
    ],
    ids=range(13),
)
def test_what_is_no_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S") as refusal:
        parse_request(content, PATH)
    assert str(refusal.value).isprintable()
    assert len(str(refusal.value)) < 300


def test_what_cannot_be_written_again_is_refused() -> None:
    nested: Any = 0
    for _ in range(500):
        nested = [nested]
    with pytest.raises(ValueError, match="cannot be written again"):
        parse(extra=nested)


def test_directories_are_for_local_stores() -> None:
    path = "local/m_eval_request_False_float16_Original.json"
    fields = {"model": "local/m", "model_path": "/home/me/model"}
    assert parse(path, local=True, **fields).model_path == "/home/me/model"
    with pytest.raises(ValueError, match="only a request in a local store"):
        parse(path, local=False, **fields)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted(Request.model_fields)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(content: bytes) -> None:
    _is_request_or_refused(content)


@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=6))
def test_any_fields_are_a_request_or_refused(fields: dict[str, Any]) -> None:
    _is_request_or_refused(json.dumps({**PUBLIC, **fields}).encode())


@given(st.sampled_from(FIELDS), st.text() | st.integers() | st.floats() | st.lists(st.text()))
def test_any_value_of_a_field_is_a_request_or_refused(field: str, value: Any) -> None:
    _is_request_or_refused(json.dumps({**PUBLIC, field: value}).encode())


def _is_request_or_refused(content: bytes) -> None:
    try:
        request = parse_request(content, PATH)
    except ValueError as error:
        reason = str(error)
    else:
        assert parse_request(request.to_json(), PATH) == request
        assert request.model == "org/m"
        return
    assert reason.isprintable()
    assert len(reason) < 1000


@given(st.text(max_size=40) | st.text("./-_a<", max_size=10))
def test_no_model_name_leads_out_of_the_repository(name: str) -> None:
    try:
        check_model_name(name)
    except ValueError as error:
        refusal: str | None = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert refusal.isprintable()
        return
    parts = name.split("/")
    assert 1 <= len(parts) <= 2
    assert all(part and not part.startswith((".", "-")) and ".." not in part for part in parts)
    assert request_path(name, Precision.FLOAT16, WeightType.ORIGINAL).startswith(name)


@pytest.mark.parametrize("name", ["gpt2", "org/m", "HuggingFaceTB/SmolLM2-135M", "a/b.c_d-1", "_x/y_"])
def test_names_of_the_hub_are_taken(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize("revision", ["main", "refs/pr/1", "v1.0", "0123456789abcdef0123456789abcdef01234567"])
def test_revisions_of_the_hub_are_taken(revision: str) -> None:
    assert check_revision(revision) == revision


@pytest.mark.parametrize(
    ("text", "model_type"),
    [
        ("🤖 Instruction-tuned", ModelType.INSTRUCTION_TUNED),
        ("⭕ : instruction-tuned", ModelType.INSTRUCTION_TUNED),
        ("⭕", ModelType.INSTRUCTION_TUNED),
        ("instruction tuned", ModelType.INSTRUCTION_TUNED),
        ("INSTRUCT", ModelType.INSTRUCTION_TUNED),
        ("pretrained", ModelType.PRETRAINED),
        ("Pre-trained", ModelType.PRETRAINED),
        ("🟢 : pretrained", ModelType.PRETRAINED),
        ("fine_tuned", ModelType.FINE_TUNED),
        ("🔶 : fine-tuned on domain-specific datasets", ModelType.FINE_TUNED),
        ("RL-tuned", ModelType.RL_TUNED),
        ("💬 : chat models (RLHF, DPO, IFT, ...)", ModelType.CHAT),
        ("🤝 : base merges and moerges", ModelType.MERGE),
        *((kind.value, kind) for kind in ModelType if kind is not ModelType.UNKNOWN),
    ],
)
def test_model_types_in_many_spellings(text: str, model_type: ModelType) -> None:
    assert parse_model_type(text) is model_type


@pytest.mark.parametrize(
    "text",
    ["", "?", "🤖", "tuned", "🟢 instruction-tuned", "🟢 🔶", "pretrained or chat", "<b>chat</b>", "🟢 x", "chatt"],
)
def test_a_model_type_is_never_guessed(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not known: it is one of 🟢 pretrained, 🔶 fine-tuned, ⭕ instr"):
        parse_model_type(text)


def test_a_long_history_keeps_its_submissions() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    request = parse().after(Event(time=start, event="submitted", by="me"))
    for minute in range(3 * MAX_HISTORY):
        request = request.after(Event(time=start + timedelta(minutes=minute), event="claimed", by="w"))
    assert len(request.history) == MAX_HISTORY
    assert request.history[0].event == "submitted"
    assert request.history[-1].time == start + timedelta(minutes=3 * MAX_HISTORY - 1)
    assert len(request.to_json()) < MAX_REQUEST_BYTES
