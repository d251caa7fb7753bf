"""Submitting on the page: what the form says, who may submit, and that the endpoint is no way around either."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import gradio as gr
import gradio_client
import httpx2
import lxml.html
import pytest
from fastapi import FastAPI
from gradio_client.exceptions import AppError
from starlette.types import ASGIApp, Receive, Scope, Send

from parcontrol.leaderboard.app.board import LiveBoard, read_board
from parcontrol.leaderboard.app.limits import TokenBuckets
from parcontrol.leaderboard.app.part import Context
from parcontrol.leaderboard.app.submit import part as submit_part
from parcontrol.leaderboard.app.submit.form import AT_ONCE, LONGEST, Desk, form_html, form_values, place
from parcontrol.leaderboard.app.submit.queue import age_text, in_line, queue_html, summarise
from parcontrol.leaderboard.app.submit.visitors import (
    NO_SIGN_IN,
    NOT_SIGNED_IN,
    OTHER_MACHINE,
    OTHER_SITE,
    OWN_TOKEN,
    Hosting,
    Visitor,
    visitor,
)
from parcontrol.leaderboard.queue import Entry, Queue
from parcontrol.leaderboard.records import ModelType, Precision, Request, Status, request_path
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import LocalStore, StoreError, Stores, open_stores, update
from tests.leaderboard.app.boards import HOSTILE, NOW, fill
from tests.leaderboard.app.test_limits import Clock, served
from tests.leaderboard.models import write_adapter, write_model

START = datetime(2026, 1, 1, tzinfo=UTC)
HERE = Visitor("address 127.0.0.1", "ada", local=True)
FORM = {"model_name": "org/m0", "model_type": "pretrained"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for number in range(7):
        write_model(tmp_path / f"mirror/models/org/m{number}", seed=number)
    write_adapter(tmp_path / "mirror/models/org/lora", "org/m0")
    return Settings(root=tmp_path / "board", mirror=tmp_path / "mirror")


@pytest.fixture
def stores(settings: Settings) -> Stores:
    return open_stores(settings)


@pytest.fixture
def desk(stores: Stores, settings: Settings) -> Desk:
    return Desk(stores.requests, settings, clock=lambda: START)


def parsed(html: str) -> lxml.html.HtmlElement:
    return lxml.html.fromstring(html)


def text_of(element: lxml.html.HtmlElement) -> str:
    return " ".join(element.text_content().split())


# --- the desk ---


def test_what_is_filled_in_becomes_a_request(desk: Desk, stores: Stores) -> None:
    answer = desk.submit({**FORM, "chat_template": True, "precision": "float16"}, HERE, [])
    assert answer.entry is not None
    written = json.loads(stores.requests.read(answer.entry.path))
    assert (written["model"], written["submitted_by"], written["precision"]) == ("org/m0", "ada", "float16")
    assert written["chat_template"] is True
    assert written["private"] is False
    assert answer.place == 1
    assert desk.submit({**FORM, "model_name": "org/m1"}, HERE, []).place == 2
    assert desk.left("ADA", Queue(stores.requests).requests()) == 3


def test_nothing_that_is_sent_says_who_submits_or_what_is_private(desk: Desk) -> None:
    given = {
        **FORM,
        **dict.fromkeys(["user", "submitted_by", "username", "key"], "mallory"),
        "private": True,
        "status": "FINISHED",
        "local_name": "other",
    }
    answer = desk.submit(given, HERE, [])
    assert answer.entry is not None
    request = answer.entry.request
    assert (request.submitted_by, request.private, request.status) == ("ada", False, Status.PENDING)
    assert request.model == "org/m0"


@pytest.mark.parametrize(
    ("given", "field", "message"),
    [
        ({}, "model_name", "name a model"),
        (None, "model_name", "name a model"),
        (["org/m0"], "model_name", "name a model"),
        ({"model_name": {"path": "/etc"}, "model_type": 5}, "model_name", "name a model"),
        ({"model_name": "org/m0"}, "model_type", "choose"),
        ({**FORM, "model_type": "x" * 10_000}, "model_type", "characters"),
        ({**FORM, "model_name": "x" * 10_000}, "model_name", "characters"),
        ({**FORM, "model_name": HOSTILE}, "model_name", "is no model name"),
        ({**FORM, "revision": "a..b"}, "revision", "is no revision"),
        ({**FORM, "revision": "v9"}, "revision", "no revision"),
        ({**FORM, "precision": "GPTQ"}, "precision", "cannot be evaluated"),
        ({**FORM, "weight_type": "Adapter"}, "base_model", "needs the base model"),
        ({**FORM, "model_name": "/no/such"}, "model_name", "no such directory"),
    ],
)
def test_a_refusal_is_said_at_its_field(desk: Desk, stores: Stores, given: Any, field: str, message: str) -> None:
    answer = desk.submit(given, HERE, [])
    assert (answer.entry, answer.field) == (None, field)
    assert message in answer.message
    assert not Queue(stores.requests).requests()

    page = parsed(form_html(answer, HERE, 5))
    wrong = page.xpath("//*[@role='alert']")
    assert [text_of(element) for element in wrong] == [" ".join(answer.message.split())]
    described = page.xpath(f"//*[@name='{field}']")
    assert described
    for control in described:
        assert control.get("aria-invalid") == "true"
        assert wrong[0].get("id") in control.get("aria-describedby").split()
    assert all(element.get("name") == field for element in page.xpath("//*[@aria-invalid]"))


def test_what_was_typed_stays_after_a_refusal_and_goes_after_a_success(desk: Desk) -> None:
    given = {**FORM, "model_type": ModelType.CHAT.value, "revision": "v9", "precision": "8bit", "chat_template": True}
    page = parsed(form_html(desk.submit(given, HERE, []), HERE, 5))
    assert page.xpath("//input[@name='model_name']/@value") == ["org/m0"]
    assert page.xpath("//input[@name='revision']/@value") == ["v9"]
    assert page.xpath("//input[@name='model_type'][@checked]/@value") == [ModelType.CHAT.value]
    assert page.xpath("//select[@name='precision']/option[@selected]/@value") == ["8bit"]
    assert page.xpath("//input[@name='chat_template'][@checked]")

    answer = desk.submit(FORM, HERE, [])
    page = parsed(form_html(answer, HERE, 4))
    assert page.xpath("//input[@name='model_name']/@value") == [""]
    (accepted,) = page.find_class("accepted")
    assert answer.entry
    assert answer.entry.request.sha
    for shown in ("org/m0 is in the queue", answer.entry.request.sha, "Place in the queue1", "bfloat16", "apache-2.0"):
        assert shown in text_of(accepted)
    assert "4 of 5 submissions in 7 days are left" in text_of(page)


def test_every_control_has_a_label_and_a_limit(desk: Desk) -> None:
    page = parsed(form_html(None, HERE, 5))
    controls = page.xpath("//input | //select")
    assert {control.get("name") for control in controls} == set(form_values({}))
    for control in controls:
        labels = page.xpath(f"//label[@for='{control.get('id')}']") if control.get("id") else []
        assert labels or control.getparent().tag == "label"
    assert {box.get("maxlength") for box in page.xpath("//input[@type='text']")} == {str(LONGEST)}


def test_the_limit_of_a_week_and_the_limit_of_attempts(stores: Stores, settings: Settings) -> None:
    clock = Clock()
    desk = Desk(stores.requests, settings, lambda: START, TokenBuckets(8, 80, clock=clock))
    for number in range(5):
        assert desk.submit({**FORM, "model_name": f"org/m{number}"}, HERE, []).entry
    refused = desk.submit({**FORM, "model_name": "org/m5"}, HERE, [])
    assert (refused.entry, refused.field) == (None, "")
    assert "5 are allowed" in refused.message
    assert "5 are allowed" in text_of(parsed(form_html(refused, HERE, 0)))
    for _ in range(2):
        desk.submit({}, HERE, [])
    assert "too many attempts" in desk.submit({}, HERE, []).message
    other = replace(HERE, key="user bob", user="bob")
    assert desk.submit({**FORM, "model_name": "org/m5"}, other, []).entry
    clock.now += 10
    assert "too many attempts" not in desk.submit({}, HERE, []).message


def test_only_some_submissions_are_looked_at_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow(*arguments: object) -> Entry:
        begun.release()
        assert go_on.wait(30)
        raise ValueError("looked at")

    monkeypatch.setattr("parcontrol.leaderboard.app.submit.form.submit", slow)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(desk.submit, FORM, HERE, []) for _ in range(AT_ONCE)]
        for _ in range(AT_ONCE):
            assert begun.acquire(timeout=30)
        assert "try again in a moment" in desk.submit(FORM, HERE, []).message
        go_on.set()
    assert {answer.result().message for answer in answers} == {"looked at"}
    assert desk.submit(FORM, HERE, []).message == "looked at"


def test_somebody_from_elsewhere_names_no_directory(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "here/inside/model")
    monkeypatch.chdir(tmp_path / "here")
    guest = Visitor("user bob", "bob")
    there = str(tmp_path / "here/inside/model")
    for name in (there, "inside/model", "./inside/model", "~", "/etc"):
        answer = desk.submit({**FORM, "model_name": name}, guest, [])
        assert (answer.entry, answer.field) == (None, "model_name")
        assert "no model on the Hub" in answer.message
    based = desk.submit({**FORM, "weight_type": "Delta", "base_model": "inside/model"}, guest, [])
    assert (based.entry, based.field) == (None, "base_model")
    taken = desk.submit({**FORM, "model_name": there}, HERE, [])
    assert taken.entry
    assert taken.entry.request.model == "local/model"


def test_a_store_that_is_down_is_said_and_nothing_is_lost(
    desk: Desk, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise StoreError(f"disk on fire {HOSTILE}")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "commit", broken)
        answer = desk.submit(FORM, HERE, [])
    assert answer.entry is None
    assert "nothing was submitted" in answer.message
    assert answer.values["model_name"] == "org/m0"
    assert "<img" not in form_html(answer, HERE, 5)

    # Once it is submitted, a store that goes down changes nothing about that.
    before = Entry("a/waiting", request("a/waiting", START - timedelta(days=1)))
    with monkeypatch.context() as patch:
        patch.setattr("parcontrol.leaderboard.app.submit.form.Queue", broken)
        answer = desk.submit(FORM, HERE, [before])
    assert answer.entry
    assert answer.place == 2


def request(model: str, submitted: datetime | None, status: Status = Status.PENDING, **fields: Any) -> Request:
    fields = {"precision": Precision.FLOAT16, "submitted_time": submitted, **fields}
    return Request(model=model, status=status, **fields)


# --- who may ---

LOCAL = Settings(root=Path("/nowhere"))
HUB = Settings(root=Path("/nowhere"), repo_id="a/l", queue_repo="a/q", results_repo="a/r")
LOOPBACK, REMOTE = ("127.0.0.1", 5), ("10.1.2.3", 5)
AT_HOME = {"host": "localhost:7860"}
SPACE = Hosting(space=True, sign_in=True, hosts=frozenset({"a-b.hf.space"}))


@pytest.mark.parametrize(
    ("peer", "headers", "username", "settings", "hosting", "user", "refusal"),
    [
        (LOOPBACK, AT_HOME, None, LOCAL, Hosting(), "ada", ""),
        (("::1", 5), {"host": "[::1]:7860"}, None, LOCAL, Hosting(), "ada", ""),
        (LOOPBACK, {**AT_HOME, "origin": "http://localhost:7860"}, None, LOCAL, Hosting(), "ada", ""),
        (REMOTE, {"host": "10.0.0.2:7860"}, None, LOCAL, Hosting(), None, OTHER_MACHINE),
        (REMOTE, {**AT_HOME, "x-forwarded-for": "127.0.0.1"}, None, LOCAL, Hosting(), None, OTHER_MACHINE),
        (LOOPBACK, {**AT_HOME, "x-forwarded-for": "8.8.8.8"}, None, LOCAL, Hosting(), None, OTHER_MACHINE),
        (LOOPBACK, {"host": "evil.example"}, None, LOCAL, Hosting(), None, OTHER_MACHINE),
        (LOOPBACK, {"host": "[::1"}, None, LOCAL, Hosting(), None, OTHER_MACHINE),
        (LOOPBACK, {**AT_HOME, "origin": "https://evil.example"}, None, LOCAL, Hosting(), None, OTHER_SITE),
        (LOOPBACK, {**AT_HOME, "origin": "null"}, None, LOCAL, Hosting(), None, OTHER_SITE),
        (None, {}, None, LOCAL, Hosting(), None, OTHER_MACHINE),
        # Whoever runs the page on a Hub store has a token there: nobody uses it.
        (LOOPBACK, AT_HOME, None, HUB, Hosting(), None, OWN_TOKEN),
        (REMOTE, AT_HOME, "bob", HUB, Hosting(), None, OWN_TOKEN),
        (REMOTE, {"host": "a-b.hf.space"}, "Bob", HUB, SPACE, "Bob", ""),
        (REMOTE, {"host": "a-b.hf.space"}, "Bob", LOCAL, SPACE, "Bob", ""),
        (REMOTE, {"host": "x", "origin": "https://a-b.hf.space"}, "Bob", HUB, SPACE, "Bob", ""),
        (REMOTE, {"host": "a-b.hf.space", "origin": "https://evil.hf.space"}, "Bob", HUB, SPACE, None, OTHER_SITE),
        (REMOTE, {"host": "a-b.hf.space"}, None, HUB, SPACE, None, NOT_SIGNED_IN),
        (LOOPBACK, AT_HOME, None, LOCAL, SPACE, None, NOT_SIGNED_IN),
        (REMOTE, {"host": "x"}, "Bob", HUB, replace(SPACE, sign_in=False), None, NO_SIGN_IN),
    ],
)
def test_who_submits(
    peer: Any,
    headers: dict[str, str],
    username: str | None,
    settings: Settings,
    hosting: Hosting,
    user: str | None,
    refusal: str,
) -> None:
    class Store:
        def user(self) -> str:
            assert not settings.on_hub, "the owner of the token is asked for"
            return "ada"

    found = visitor(peer, headers, username, settings, Store(), hosting)  # type: ignore[arg-type]
    assert (found.user, found.refusal) == (user, refusal)
    assert found.local == (user == "ada")
    assert found.key == ("user bob" if user == "Bob" else found.key)


def test_without_a_user_the_form_says_so_and_refuses(desk: Desk) -> None:
    nobody = Visitor("address 1.2.3.4", refusal=NOT_SIGNED_IN)
    assert NOT_SIGNED_IN in text_of(parsed(form_html(None, nobody, None)))
    answer = desk.submit(FORM, nobody, [])
    assert (answer.entry, answer.message) == (None, NOT_SIGNED_IN)


# --- the queue ---


def test_places_in_line_are_the_order_in_which_workers_claim(stores: Stores) -> None:
    times = [START + timedelta(hours=hours) for hours in (5, 1, 3)]
    models = {f"org/m{number}": time for number, time in enumerate(times)} | {"org/old": None}
    files = {
        request_path(model, Precision.FLOAT16, "Original"): request(model, time).to_json()
        for model, time in models.items()
    }
    update(stores.requests, lambda snapshot: files, "requests")
    queue = Queue(stores.requests)
    entries = queue.requests()
    shown = [entry.request.model for entry in in_line(entries)]
    places = {entry.request.model: place(entry, entries) for entry in entries}
    claimed = []
    while claim := queue.claim("w"):
        claimed.append(claim.request.model)
        queue.finish(claim)
    assert shown == claimed == ["org/old", "org/m1", "org/m2", "org/m0"]
    assert [places[model] for model in claimed] == [1, 2, 3, 4]
    assert place(queue.requests()[0], queue.requests()) is None


def test_the_queue_shows_every_state(stores: Stores) -> None:
    fill(stores, models=6)
    board = read_board(stores)
    summary = summarise(board)
    states = [entry.request.status for entry in board.entries]
    assert summary.counts == {
        "waiting": states.count(Status.PENDING) + states.count(Status.RERUN),
        "running": 1,
        "finished": states.count(Status.FINISHED),
        "failed": 1,
        "cancelled": 1,
    }
    (running,) = summary.running
    assert (running.done, running.tasks) == (0, 27)
    html = queue_html(summary, NOW, is_old=False)
    page = parsed(html)
    tables = {text_of(table.find("caption")).split()[0].strip(":,"): table for table in page.xpath("//table")}
    assert set(tables) == {"Running", "Waiting", "Failed", "Finished", "Cancelled"}
    assert "host-1-aa" in text_of(tables["Running"])
    assert "0 of 27" in text_of(tables["Running"])
    assert "5 h 00 min ago" in text_of(tables["Running"])
    assert "until 12:40 UTC" in text_of(tables["Running"])
    assert "over" not in text_of(tables["Running"])
    assert [text_of(row)[0] for row in tables["Waiting"].xpath("./tbody/tr")] == ["1", "2"]
    assert "not wanted any more" in text_of(tables["Cancelled"])
    assert len(tables["Finished"].xpath("./tbody/tr")) == 20
    # What a stranger has written is text, and nothing else.
    assert HOSTILE in text_of(tables["Failed"])
    assert "<img" not in html
    assert "{{" not in html
    assert "${" not in html
    # Finished models lead to their own view, others to the Hub.
    assert all(link.startswith("?tab=model") for link in tables["Finished"].xpath(".//th/a/@href"))
    assert tables["Waiting"].xpath(".//th/a/@href")[0].startswith("https://huggingface.co/queue/")


def test_a_lease_that_is_over_is_said_unless_nobody_can_know(stores: Stores) -> None:
    fill(stores, models=1)
    summary = summarise(read_board(stores))
    later = NOW + timedelta(hours=2)
    assert "(over: the next worker takes it on)" in queue_html(summary, later, is_old=False)
    html = queue_html(summary, later, is_old=True)
    assert "over:" not in html
    assert "data-until" not in html
    assert "7 h 00 min" in html  # ages go on


def test_an_empty_queue_and_broken_files(stores: Stores) -> None:
    assert "Nothing has been submitted yet" in queue_html(summarise(read_board(stores)), NOW, is_old=False)
    update(stores.requests, lambda snapshot: {"a/b_eval_request_False_float16_Original.json": b"<b>"}, "broken")
    assert "1 file in the requests repository is no request" in queue_html(
        summarise(read_board(stores)), NOW, is_old=False
    )


def test_many_requests_are_cut_short(stores: Stores) -> None:
    files: dict[str, bytes | None] = {}
    for number in range(300):
        status = [Status.PENDING, Status.FAILED, Status.CANCELLED][number % 3]
        one = request(f"org/m{number:03}", START + timedelta(minutes=number), status, reason="x" * 5000)
        files[request_path(one.model, one.precision, "Original")] = one.to_json()
    update(stores.requests, lambda snapshot: files, "many")
    summary = summarise(read_board(stores))
    assert summary.counts == {"waiting": 100, "running": 0, "finished": 0, "failed": 100, "cancelled": 100}
    page = parsed(queue_html(summary, NOW, is_old=False))
    assert len(page.xpath("//tbody/tr")) == 50 + 20 + 20
    assert "and 50 more" in text_of(page)
    assert summary.failed[0].request.model == "org/m298"


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (-5, "under a minute"),
        (0.9, "under a minute"),
        (1, "1 min"),
        (59.9, "59 min"),
        (60, "1 h 00 min"),
        (47 * 60 + 59, "47 h 59 min"),
        (48 * 60, "2 days"),
        (1e6, "694 days"),
    ],
)
def test_ages_in_words(minutes: float, words: str) -> None:
    assert age_text(timedelta(minutes=minutes)) == words


# --- the page and its endpoint, on a real server ---


class SignedIn:
    """What Gradio's sign-in leaves in the session of somebody whom the Hub has named; here a cookie says whom."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            cookies = dict(scope["headers"]).get(b"cookie", b"").decode()
            scope["session"] = {}
            if cookies.startswith("who="):
                name = cookies.removeprefix("who=")
                info = {"preferred_username": name, "name": name, "profile": "", "picture": ""}
                scope["session"] = {"oauth_info": {"userinfo": info}}
        await self.app(scope, receive, send)


@pytest.fixture
def live(stores: Stores) -> Iterator[LiveBoard]:
    board = LiveBoard(stores, 3600)
    yield board
    board.close()


async def page_of(live: LiveBoard, settings: Settings) -> FastAPI:
    """A page of this part alone; made inside a loop, because Gradio leaves one open otherwise."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        submit_part.build(Context(live, settings, gr.Textbox()))
    app = FastAPI()
    app.add_middleware(SignedIn)
    return gr.mount_gradio_app(app, blocks, path="/", ssr_mode=False)


def call(client: gradio_client.Client, **fields: Any) -> dict[str, Any]:
    return client.predict(**{"model_name": "org/m0", "model_type": "pretrained", **fields}, api_name="/submit")


def client_of(address: str, **more: Any) -> gradio_client.Client:
    return gradio_client.Client(address, verbose=False, analytics_enabled=False, **more)


def test_the_endpoint_has_the_checks_of_the_form(live: LiveBoard, settings: Settings, stores: Stores) -> None:
    with served(asyncio.run(page_of(live, settings))) as address:
        client = client_of(address)
        (name,) = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
        assert name == "/submit"
        answer = call(client, chat_template=True)
        assert (answer["model"], answer["place"]) == ("org/m0", 1)
        assert answer["submitted_by"] == stores.requests.user()
        assert stores.requests.read(answer["request"])
        for fields, message in [
            ({}, "model_name: org/m0 .* is already PENDING"),
            ({"model_type": "?"}, "model_type: .* is not known"),
            ({"revision": "a b"}, "revision: "),
            ({"model_name": "x" * 5000}, "model_name: at most"),
        ]:
            with pytest.raises(AppError, match=message):
                call(client, **fields)
        with pytest.raises(TypeError):
            call(client, user="mallory")
        client.close()
    assert len(Queue(stores.requests).requests()) == 1


def test_another_site_and_another_name_of_this_machine_are_refused(
    live: LiveBoard, settings: Settings, stores: Stores
) -> None:
    with served(asyncio.run(page_of(live, settings))) as address:
        for headers, message in [
            ({"Origin": "https://evil.example"}, OTHER_SITE),
            ({"Host": "evil.example"}, OTHER_MACHINE),
        ]:
            assert message in posted(address, headers)
    assert not Queue(stores.requests).requests()


def posted(address: str, headers: dict[str, str]) -> str:
    """What the endpoint streams as its answer to a plain request."""
    data = ["org/m0", "pretrained", "main", "", "Original", "", False]
    started = httpx2.post(f"{address}/gradio_api/call/submit", json={"data": data}, headers=headers)
    return httpx2.get(f"{address}/gradio_api/call/submit/{started.json()['event_id']}", timeout=30).text


def test_on_a_space_only_the_signed_in_submit_and_as_themselves(
    live: LiveBoard, settings: Settings, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPACE_ID", "a/b")
    for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
        monkeypatch.setenv(name, "x")
    # The real routes would ask the Hub; `SignedIn` stands for the session that they leave.
    monkeypatch.setattr("gradio.routes.attach_oauth", lambda app: None)
    with served(asyncio.run(page_of(live, settings))) as address:
        nobody = client_of(address)
        with pytest.raises(AppError, match="sign in with Hugging Face"):
            call(nobody)
        nobody.close()
        bob = client_of(address, headers={"Cookie": "who=bob"})
        assert call(bob)["submitted_by"] == "bob"
        with pytest.raises(AppError, match=r"model_name: .* is no model on the Hub"):
            call(bob, model_name="/etc")
        for number in range(1, 5):
            call(bob, model_name=f"org/m{number}")
        with pytest.raises(AppError, match="5 are allowed"):
            call(bob, model_name="org/m5")
        bob.close()
        eve = client_of(address, headers={"Cookie": "who=eve"})
        assert call(eve, model_name="org/m5")["submitted_by"] == "eve"
        eve.close()
    who = {entry.request.model: entry.request.submitted_by for entry in Queue(stores.requests).requests()}
    assert who == {**dict.fromkeys([f"org/m{number}" for number in range(5)], "bob"), "org/m5": "eve"}
