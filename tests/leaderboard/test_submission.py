"""Submitting: what is taken, what is refused and with which words, and how submissions are counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from parcontrol.cli.leaderboard.main import main
from parcontrol.leaderboard.model_source import content_hash
from parcontrol.leaderboard.queue import Entry, Queue
from parcontrol.leaderboard.records import (
    FieldError,
    ModelType,
    Precision,
    Request,
    Status,
    WeightType,
    request_path,
)
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import LocalStore, Store, StoreError
from parcontrol.leaderboard.submission import DO_NOT_SUBMIT, Submission, submit
from tests.leaderboard.hub_server import WritableHub
from tests.leaderboard.models import CARD, write_adapter, write_model
from tests.leaderboard.stores import TOKEN, hub_store, online_hub

START = datetime(2026, 1, 1, tzinfo=UTC)
Submit = Callable[..., Entry]


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """An offline mirror with ten models, all different."""
    for index in range(10):
        write_model(tmp_path / f"mirror/models/org/m{index}", seed=index)
    return tmp_path / "mirror"


@pytest.fixture
def settings(tmp_path: Path, mirror: Path) -> Settings:
    return Settings(root=tmp_path / "board", mirror=mirror)


@pytest.fixture
def store(settings: Settings) -> LocalStore:
    return LocalStore(settings.root / "requests")


@pytest.fixture
def enter(store: Store, settings: Settings) -> Submit:
    """Submits a model of the mirror."""

    def enter(model: str = "org/m0", now: datetime = START, user: str = "me", **fields: Any) -> Entry:
        fields = {"model_type": "pretrained", **fields}
        return submit(Submission(model, **fields), store, settings, user, clock=lambda: now)

    return enter


def refusal(enter: Submit, *args: Any, **fields: Any) -> str:
    """The message of a submission that is refused and leaves nothing."""
    with pytest.raises(ValueError, match=r"\S") as error:
        enter(*args, **fields)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


def test_a_request_has_everything(enter: Submit, store: Store, mirror: Path) -> None:
    entry = enter("org/m3", model_type="🤖 Instruction-tuned", chat_template=True)
    assert entry.path == "org/m3_eval_request_False_bfloat16_Original.json"
    written = json.loads(store.read(entry.path))
    assert written | {"history": [], "submission_id": ""} == {
        "model": "org/m3",
        "base_model": "",
        "revision": "main",
        "sha": content_hash(mirror / "models/org/m3"),
        "private": False,
        "precision": "bfloat16",
        "weight_type": "Original",
        "status": "PENDING",
        "submitted_time": "2026-01-01T00:00:00Z",
        "model_type": "⭕ : instruction-tuned",
        "likes": 0,
        "params": 0.001,
        "license": "apache-2.0",
        "chat_template": True,
        "tasks": None,
        "submitted_by": "me",
        "submission_id": "",
        "attempts": 0,
        "reason": "",
        "claimed_by": None,
        "claim_id": None,
        "lease_expires": None,
        "P": None,
        "model_path": None,
        "history": [],
    }
    claim = Queue(store).claim("w")
    assert claim is not None
    assert claim.path == entry.path


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        ({"dtype": "float16"}, Precision.FLOAT16),
        ({"dtype": None, "torch_dtype": "float32"}, Precision.FLOAT32),
        ({"dtype": None}, Precision.FLOAT32),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, Precision.GPTQ),
    ],
)
def test_the_precision_is_that_of_the_weights(
    enter: Submit, mirror: Path, config: dict[str, Any], precision: Precision
) -> None:
    write_model(mirror / "models/org/x", **config)
    assert enter("org/x").request.precision is precision


def test_a_parscale_model_is_taken_with_its_streams(enter: Submit, mirror: Path) -> None:
    auto_map = {"AutoConfig": "configuration_qwen2_parscale.Qwen2ParScaleConfig"}
    write_model(mirror / "models/org/p", model_type="qwen2_parscale", parscale_n=4, auto_map=auto_map)
    assert enter("org/p").request.P == 4


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "org/x has no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json is no valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "config.json is no JSON object"),
        (lambda d: (d / "config.json").write_text('{"model_type": "nothing-known"}'), "cannot be loaded"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}'),
            "needs code of its own (model type 'x'), which is never run here",
        ),
        (lambda d: (d / "config.json").write_bytes(b" " * (17 << 20)), "that is no config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "no weights in safetensors"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "other formats can run code"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 100), "its weights are damaged"),
        (lambda d: (d / "README.md").unlink(), "org/x has no model card"),
        (lambda d: (d / "README.md").write_text(" \n"), "org/x has no model card"),
        (lambda d: (d / "README.md").write_text("# No licence"), "its model card states no licence"),
        (lambda d: (d / "README.md").write_text("---\nlicense: [\n---\n"), "the top of its README.md cannot be read"),
        (lambda d: (d / "README.md").write_text("---\nlicense: <b>x</b>\n---\n"), "license: Value error"),
    ],
    ids=range(14),
)
def test_a_model_that_lacks_something_is_refused(
    enter: Submit, store: Store, mirror: Path, spoil: Callable[[Path], Any], words: str
) -> None:
    spoil(write_model(mirror / "models/org/x"))
    (mirror / "models/org/x/evil.py").write_text("raise SystemExit('ran')")
    assert words in refusal(enter, "org/x")
    assert store.snapshot().files == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "../../etc/passwd"}, "'../../etc/passwd': there is no such directory"),
        ({"model": "org/../m0"}, "'org/../m0' is no model name"),
        ({"model": "<img src=x onerror=alert(1)>"}, "'<img src=x onerror=alert(1)>' is no model name"),
        ({"model": "org/" + "m" * 10_000}, "(10006 characters) is no model name"),
        ({"model": ""}, "'' is no model name"),
        ({"model_type": "🟢 chat"}, "model type 🟢 chat is not known: it is one of"),
        ({"precision": "int4"}, "precision 'int4' is not known: it is one of float32, float16, bfloat16, 8bit, 4bit"),
        ({"precision": "GPTQ"}, "cannot be evaluated in GPTQ: its weights are saved in bfloat16"),
        ({"weight_type": "LoRA"}, "weight type 'LoRA' is not known: it is one of Original, Delta, Adapter"),
        ({"weight_type": "Adapter"}, "weight type Adapter needs the base model"),
        ({"base_model": "../x"}, "'../x' is no model name"),
        ({"revision": "../../x"}, "is no revision"),
        ({"revision": "v2"}, "has no revision 'v2'"),
    ],
)
def test_what_is_filled_in_wrongly_is_refused(enter: Submit, store: Store, fields: dict[str, Any], words: str) -> None:
    assert words in refusal(enter, fields.pop("model", "org/m0"), **fields)
    assert store.snapshot().files == {}


def test_an_adapter_counts_with_its_base(enter: Submit, mirror: Path) -> None:
    write_adapter(mirror / "models/org/lora", "org/m0")
    request = enter("org/lora", weight_type="adapter", base_model="org/m0").request
    assert (request.weight_type, request.base_model) == (WeightType.ADAPTER, "org/m0")
    assert request.params == pytest.approx(0.001002)
    assert request.precision is Precision.BFLOAT16
    assert "org/m1 has no weights in safetensors (adapter_model.safetensors)" in refusal(
        enter, "org/m1", weight_type="Adapter", base_model="org/m0"
    )


def test_a_delta_needs_its_base(enter: Submit) -> None:
    request = enter("org/m1", weight_type="Delta", base_model="org/m0").request
    assert (request.weight_type, request.params) == (WeightType.DELTA, 0.001)
    assert "weight type Delta needs the base model" in refusal(enter, "org/m2", weight_type="Delta")


def test_a_directory_is_taken_by_a_local_store(enter: Submit, tmp_path: Path) -> None:
    directory = write_model(tmp_path / "my-model", card="# Trained here")
    entry = enter(str(directory))
    assert entry.path == "local/my-model_eval_request_False_bfloat16_Original.json"
    assert entry.request.model_path == str(directory)
    assert entry.request.sha == content_hash(directory)
    assert entry.request.license == "not stated"
    (directory / "README.md").unlink()
    assert "has no model card" in refusal(enter, str(directory))
    odd = write_model(tmp_path / "my model", card=CARD)
    assert "rename the directory" in refusal(enter, str(odd))
    assert enter(str(odd), local_name="named").request.model == "local/named"


def test_the_hash_of_a_directory_is_of_names_and_contents(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m")
    before = content_hash(directory)
    (directory / ".cache").mkdir()
    (directory / ".cache/file").write_text("hidden")
    assert content_hash(directory) == before
    (directory / "README.md").write_text(CARD + "more")
    changed = content_hash(directory)
    assert changed != before
    (directory / "README.md").rename(directory / "READYOU.md")
    assert content_hash(directory) not in (before, changed)


# --- what is there already ---


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "FINISHED", "RERUN", "PENDING_NEW_EVAL"])
def test_a_duplicate_is_refused(enter: Submit, store: Store, status: str) -> None:
    entry = enter("org/m0")
    _set(store, entry, status=Status(status))
    assert refusal(enter, "org/m0").endswith(f"in bfloat16, Original, is already {status}")
    assert enter("org/m0", precision="float32").request.precision is Precision.FLOAT32
    assert len(Queue(store).requests()) == 2


def test_another_revision_is_no_duplicate_and_overwrites_nothing(enter: Submit, store: Store, mirror: Path) -> None:
    first = enter("org/m0")
    (mirror / "models/org/m0/README.md").write_text(CARD + "changed")
    second = enter("org/m0")
    assert second.path == first.path.replace(".json", f"_{second.request.sha[6:18]}.json")  # type: ignore[index]
    assert {entry.request.sha for entry in Queue(store).requests()} == {first.request.sha, second.request.sha}
    assert "is already PENDING" in refusal(enter, "org/m0")


@pytest.mark.parametrize("status", ["FAILED", "CANCELLED"])
def test_what_failed_can_be_submitted_again_and_counts_again(enter: Submit, store: Store, status: str) -> None:
    for count in range(5):
        entry = enter("org/m0", now=START + timedelta(hours=count))
        assert len(Queue(store).requests()) == 1
        _set(store, entry, status=Status(status))
    assert [event.event for event in entry.request.history] == ["submitted"] * 5
    assert "has submitted 5 models" in refusal(enter, "org/m0", now=START + timedelta(hours=6))


def test_an_old_request_without_a_commit_is_compared_by_revision(enter: Submit, store: Store) -> None:
    old = Request(model="org/m0", precision="bfloat16", status="FINISHED")  # type: ignore[arg-type]
    path = request_path(old.model, old.precision, old.weight_type)
    store.commit({path: old.to_json()}, "old", parent=store.snapshot().revision)
    assert "org/m0 at local-" in refusal(enter, "org/m0")


def test_a_broken_file_in_its_place_is_left_alone(enter: Submit, store: Store) -> None:
    path = "org/m0_eval_request_False_bfloat16_Original.json"
    store.commit({path: b"broken"}, "break", parent=store.snapshot().revision)
    assert enter("org/m0").path != path
    assert store.read(path) == b"broken"


def test_the_list_of_unwanted_models(enter: Submit, store: Store) -> None:
    listed = "# asked not to be here\n\nOrg/M0 asked by its authors\norg/m1   # a comment\n"
    store.commit({DO_NOT_SUBMIT: listed.encode()}, "list", parent=store.snapshot().revision)
    assert refusal(enter, "org/m0") == (
        "org/m0 is on the list of models that are not to be submitted: asked by its authors"
    )
    assert refusal(enter, "org/m1").endswith("not to be submitted")
    assert enter("org/m2").request.status is Status.PENDING


# --- five in seven days ---


def test_exactly_five_in_any_seven_days(enter: Submit) -> None:
    for index in range(5):
        enter(f"org/m{index}", now=START + timedelta(hours=index))
    week = timedelta(days=7)
    for now in (START + timedelta(hours=5), START + week - timedelta(microseconds=1)):
        assert refusal(enter, "org/m5", now=now) == (
            "me has submitted 5 models in the last 7 days, and 5 are allowed: the next one can be submitted from "
            "2026-01-08 00:00:00 UTC"
        )
    assert refusal(enter, "org/m5", user="ME", now=START + timedelta(days=6)).startswith("ME has submitted 5 models")
    enter("org/m6", user="somebody else", now=START + timedelta(hours=5))
    enter("org/m5", now=START + week)
    assert "from 2026-01-08 01:00:00 UTC" in refusal(enter, "org/m7", now=START + week)


def test_cancelling_gives_nothing_back(enter: Submit, store: Store) -> None:
    for index in range(5):
        entry = enter(f"org/m{index}")
        Queue(store).cancel(entry.path, "me")
    assert "has submitted 5 models" in refusal(enter, "org/m5")


def test_being_evaluated_gives_nothing_back(enter: Submit, store: Store) -> None:
    queue = Queue(store)
    for index in range(5):
        enter(f"org/m{index}")
        claim = queue.claim("w")
        assert claim is not None
        queue.finish(claim)
    assert "has submitted 5 models" in refusal(enter, "org/m5")


def test_requests_that_others_have_written_count(enter: Submit, store: Store) -> None:
    for index in range(5):
        values = {"precision": "float16", "status": "FINISHED", "submitted_by": "me", "submitted_time": START}
        request = Request(model=f"org/old{index}", **values)  # type: ignore[arg-type]
        path = request_path(request.model, request.precision, request.weight_type)
        store.commit({path: request.to_json()}, "old", parent=store.snapshot().revision)
    assert "has submitted 5 models" in refusal(enter, "org/m5", now=START + timedelta(days=1))
    assert "has submitted 5 models" in refusal(enter, "org/m5", now=START - timedelta(days=1)), "a clock that is behind"


def test_the_user_of_a_local_store_is_the_account(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    entry = submit(Submission("org/m0", "chat"), store, settings)
    assert entry.request.submitted_by == store.user() != "somebody-else"


def _set(store: Store, entry: Entry, **fields: Any) -> None:
    changed = Queue(store).get(entry.path) or entry.request.changed(**fields)
    store.commit({entry.path: changed.changed(**fields).to_json()}, "set", parent=store.snapshot().revision)


# --- on the Hub ---


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Path) -> Iterator[WritableHub]:
    with online_hub(tmp_path / "cache", monkeypatch) as hub:
        for index in range(2):
            hub.create_from("models", f"org/m{index}", mirror / f"models/org/m{index}")
        yield hub


@pytest.fixture
def hub_settings(hub: WritableHub, tmp_path: Path) -> Settings:
    return Settings(
        root=tmp_path / "unused",
        token=SecretStr(TOKEN),
        repo_id="alice/board",
        queue_repo="alice/requests",
        results_repo="alice/results",
        endpoint=hub.endpoint,
    )


def test_a_revision_is_resolved_to_its_commit(hub: WritableHub, hub_settings: Settings) -> None:
    store = hub_store(hub)
    repository = hub.repositories["models", "org/m0"]
    old = repository.head.sha
    new = hub.push("org/m0", {"README.md": (CARD + "new").encode()}, kind="models")
    first = submit(Submission("org/m0", "pretrained"), store, hub_settings)
    second = submit(Submission("org/m0", "pretrained", revision=old), store, hub_settings)
    assert (first.request.revision, first.request.sha) == ("main", new)
    assert (second.request.revision, second.request.sha) == (old, old)
    assert first.request.submitted_by == "alice"
    assert (first.request.likes, first.request.params, first.request.license) == (3, 0.001, "apache-2.0")
    assert first.request.model_path is None
    assert set(hub.files("alice/requests")) == {".gitattributes", first.path, second.path}


def test_models_are_looked_at_without_the_token(hub: WritableHub, hub_settings: Settings) -> None:
    hub.create("models", "org/private", dict(hub.files("org/m0", "models")), private=True)
    store = hub_store(hub)
    with pytest.raises(ValueError, match=r"^org/private is not on the Hub, or private$"):
        submit(Submission("org/private", "pretrained"), store, hub_settings)
    submit(Submission("org/m0", "pretrained"), store, hub_settings)
    of_models = {token for request, token in hub.requests if "/org/" in request}
    assert of_models == {None}


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("org/absent", "main", "org/absent is not on the Hub, or private"),
        ("org/m0", "v9", "org/m0 has no revision 'v9'"),
        ("/etc", "main", "a store on the Hub takes models that are on the Hub"),
        ("./m", "main", "a store on the Hub takes models that are on the Hub"),
    ],
)
def test_what_is_not_on_the_hub_is_refused(
    hub: WritableHub, hub_settings: Settings, name: str, revision: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        submit(Submission(name, "pretrained", revision=revision), hub_store(hub), hub_settings)
    assert set(hub.files("alice/requests")) == {".gitattributes"}


def test_an_answer_that_is_lost_is_one_submission(hub: WritableHub, hub_settings: Settings) -> None:
    store = hub_store(hub)
    hub.fail(r"POST .*requests/commit/", "lost")
    real, done = hub.next_fault, []

    def then_a_worker_claims(request: str) -> Any:
        commits = hub.repositories["datasets", "alice/requests"].commits if "requests/preupload/" in request else []
        if len(commits) == 2 and not done:
            done.append(True)
            Queue(hub_store(hub)).claim("quick-worker")
        return real(request)

    hub.next_fault = then_a_worker_claims  # type: ignore[method-assign]
    entry = submit(Submission("org/m0", "pretrained"), store, hub_settings)
    assert entry.request.status is Status.RUNNING
    assert entry.request.claimed_by == "quick-worker"
    assert len(Queue(hub_store(hub)).requests()) == 1


def test_a_hub_that_is_down_is_no_refusal(hub: WritableHub, hub_settings: Settings) -> None:
    hub.fail(r".*", 500, times=10_000)
    with pytest.raises(StoreError, match="gave up after"):
        submit(Submission("org/m0", "pretrained"), hub_store(hub), hub_settings)


# --- the command ---


def run_script(repository: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the promised script from its folder, for a model of the mirror."""
    command = ["cli/submit-cli.py", "--model_name", "org/m0", "--model_type", "🤖 Instruction-tuned"]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        command,
        cwd=repository / "leaderboard",
        env={"PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_promised_script(repository: Path, mirror: Path, tmp_path: Path) -> None:
    board = tmp_path / "board"
    done = run_script(
        repository, tmp_path, PARCONTROL_MIRROR=str(mirror), PARCONTROL_LEADERBOARD=str(board), HF_HUB_OFFLINE="1"
    )
    assert (done.returncode, done.stderr) == (0, "")
    (entry,) = Queue(LocalStore(board / "requests")).requests()
    assert entry.request.model_type is ModelType.INSTRUCTION_TUNED
    assert done.stdout == f"org/m0 at {entry.request.sha} in bfloat16 is PENDING: {entry.path}\n"


def test_the_promised_script_on_a_hub(hub: WritableHub, repository: Path, tmp_path: Path) -> None:
    hub.fail(r"POST .*/commit/", 500)
    done = run_script(
        repository,
        tmp_path,
        HF_ENDPOINT=hub.endpoint,
        H4_TOKEN=TOKEN,
        REPO_ID="alice/board",
        QUEUE_REPO="alice/requests",
        RESULTS_REPO="alice/results",
    )
    assert (done.returncode, done.stderr) == (0, "")
    (entry,) = Queue(hub_store(hub)).requests()
    assert entry.request.sha == hub.repositories["models", "org/m0"].head.sha
    assert entry.request.submitted_by == "alice"
    assert done.stdout == f"org/m0 at {entry.request.sha} in bfloat16 is PENDING: {entry.path}\n"
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in [*written, *hub.files("alice/requests").values()])


def test_the_command(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PARCONTROL_LEADERBOARD", str(tmp_path / "board"))
    monkeypatch.setenv("PARCONTROL_MIRROR", str(mirror))
    for name in ("REPO_ID", "QUEUE_REPO", "RESULTS_REPO", "H4_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    submitting = ["submit", "--model-name", "org/m0", "--model-type", "chat", "--weight-type", "original"]
    assert main([*submitting, "--use_chat_template", "--precision", "float32"]) == 0
    (entry,) = Queue(LocalStore(tmp_path / "board/requests")).requests()
    assert entry.request.chat_template
    assert not entry.request.private
    capsys.readouterr()
    assert main(submitting[:-2]) == 0
    assert main(submitting[:-2]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        main([*submitting, "--private"])
    assert stopped.value.code == 2
    assert "unrecognized arguments: --private" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model_type": "unheard of"}, "model_type"),
        ({"weight_type": "Sparse"}, "weight_type"),
        ({"precision": "3bit"}, "precision"),
        ({"precision": "GPTQ"}, "precision"),
        ({"base_model": "a b"}, "base_model"),
        ({"weight_type": "Adapter"}, "base_model"),
        ({"weight_type": "Delta", "base_model": "org/empty"}, "base_model"),
        ({"weight_type": "Adapter", "base_model": "org/m1"}, "model_name"),
        ({"revision": "../x"}, "revision"),
        ({"revision": "v2"}, "revision"),
        ({"model": "org/empty"}, "model_name"),
        ({"model": "<b>"}, "model_name"),
        ({"model": "org/no-card"}, "model_name"),
        ({"model": "org/unwanted"}, "model_name"),
    ],
)
def test_a_refusal_names_the_field(
    enter: Submit, store: Store, mirror: Path, fields: dict[str, Any], field: str
) -> None:
    write_model(mirror / "models/org/no-card", card=None)
    (mirror / "models/org/empty").mkdir()
    store.commit({DO_NOT_SUBMIT: b"org/unwanted why not"}, "list", parent=store.snapshot().revision)
    with pytest.raises(FieldError) as error:
        enter(**fields)
    assert error.value.field == field


def test_a_second_submission_is_about_the_model_and_the_limit_about_no_field(enter: Submit) -> None:
    enter("org/m0")
    with pytest.raises(FieldError) as error:
        enter("org/m0")
    assert error.value.field == "model_name"
    for number in range(1, 5):
        enter(f"org/m{number}")
    with pytest.raises(ValueError, match="are allowed") as limit:
        enter("org/m5")
    assert not isinstance(limit.value, FieldError)
