"""The leaderboard's page with 5,000 models x 30 columns, in a real browser and over HTTP.

Claims:
  first_table  from opening the page to the first row in the browser: at most 2 x a bare `gr.Dataframe` of 100 rows x 30
               columns on a page of its own
  search, filter   answered over HTTP in under 1.2 x the pandas operation plus one round trip: an event of the same page
               that takes the same controls, does nothing, and returns as many bytes
  memory       grows linearly with results: the second half of the models adds at most 1.2 x what the first added

The board is written as a worker writes it, one result file a model, into a temporary directory. Both pages are served
by processes of their own. Needs Chromium (Debian's `chromium`), or CHROMIUM=PATH.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import orjson
import pandas as pd
import psutil
from harness import parser, ratio, report, side_by_side
from playwright.sync_api import sync_playwright

from parcontrol.leaderboard.app.board import read_board
from parcontrol.leaderboard.app.table.part import shown_columns, table_html
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.registry import registry
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import open_stores

CLAIMS = {"first_table": 2.0, "answer": 1.2, "memory": 1.2}
COLUMNS, TIMES = 30, 20
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")


def tasks():
    """The first tasks of the registry that have `COLUMNS` columns together."""
    chosen, columns = [], 0
    for spec in registry():
        if columns + len(spec.columns) <= COLUMNS:
            chosen.append(spec)
            columns += len(spec.columns)
    assert columns == COLUMNS
    return chosen


def write_results(directory, first, last):
    """Writes one result file for each of the models `first` to `last`."""
    for number in range(first, last):
        chance = random.Random(number)
        results = {}
        for spec in tasks():
            results[spec.name] = {"alias": spec.name, "sample_len": 1000}
            for column in spec.columns:
                value = chance.uniform(0, 100 / column.scale)
                results[spec.name] |= {f"{column.metric},none": value, f"{column.metric}_stderr,none": value / 50}
        model = f"org{number // 50}/model-{number}"
        document = {
            "results": results,
            "versions": {spec.name: spec.version for spec in tasks()},
            "n-samples": {spec.name: {"original": 1000, "effective": 1000} for spec in tasks()},
            "date": 1.7e9 + number,
            "lm_eval_version": "0.4.13",
            "parcontrol": {
                "schema": 1, "model": model, "revision": "main", "sha": f"{number:040x}", "precision": "bfloat16",
                "weight_type": "Original", "base_model": "", "chat_template": number % 2 == 0, "P": None,
                "model_type": "🟢 : pretrained", "params": chance.uniform(0.1, 70), "license": "mit", "limit": None,
                "sample_set": False, "absent": {}, "failed": {},
            },
        }  # fmt: skip
        path = directory / "results" / model / "results_1.json"
        path.parent.mkdir(parents=True)
        path.write_bytes(orjson.dumps(document))


@contextmanager
def serving(command):
    """Runs a page in a process of its own; yields its address and the process."""
    port = free_port()
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, f"{command} has ended"
            try:
                httpx.get(address, timeout=5).raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address, process
    finally:
        process.terminate()
        process.wait()


def free_port():
    """A port that nobody has at the moment."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def our_page(port, root):
    """The leaderboard, without its limit of requests, and with an event beside that of the controls: a round trip."""
    import gradio as gr
    import uvicorn

    from parcontrol.leaderboard.app import limits, serve
    from parcontrol.leaderboard.app.board import LiveBoard
    from parcontrol.leaderboard.app.page import Page
    from parcontrol.leaderboard.app.part import QUIET

    class MeasuredPage(Page):
        def __init__(self, live, settings):
            super().__init__(live, settings)
            answer = table_html(live.board, QUESTIONS["search"][0])
            change = next(found for found in self.blocks.fns.values() if found.name == "change")
            with self.blocks:
                button = gr.Button(visible=False)
                button.click(lambda *values: [values[0], answer], change.inputs, change.outputs, **QUIET)

    limits.REQUESTS = 10**9
    serve.Page = MeasuredPage
    settings = Settings(root=Path(root))
    uvicorn.run(serve.application(LiveBoard(open_stores(settings)), settings), port=port, log_level="error")


def bare_page(port):
    """What the first table is compared with: a data frame of 100 rows."""
    import gradio as gr
    import numpy as np

    frame = pd.DataFrame(np.random.default_rng(0).random((100, COLUMNS)), columns=[f"c{i}" for i in range(COLUMNS)])
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Dataframe(frame, elem_id="bare")
    page.launch(server_name="127.0.0.1", server_port=port, quiet=True, ssr_mode=False)


def first_row(browser, address, selector):
    """Opens a page with nothing in the browser's cache and waits for the first row."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.locator(f"{selector}:visible").first.wait_for()
    context.close()


def events(client):
    """Functions that send the event of the page's controls, and the one that does nothing; and what both take."""
    config = client.get("/config").json()
    names = {component["id"]: component["props"].get("elem_id") for component in config["components"]}
    change, nothing = [
        found for found in config["dependencies"] if "search" in [names[number] for number in found["inputs"]]
    ]

    def sender(number):
        def send(data):
            body = {"data": data, "fn_index": number, "session_hash": "benchmark"}
            return len(client.post("/gradio_api/run/predict", json=body).raise_for_status().content)

        return send

    return sender(change["id"]), sender(nothing["id"]), len(change["inputs"])


def measure_answers(ours, root, rounds):
    """Search, filter and sort: ours against the pandas operation and a round trip of as many bytes."""
    board = read_board(open_stores(Settings(root=root)))
    with httpx.Client(base_url=ours, timeout=60) as client:
        return [measure_answer(client, board, name, *both, rounds) for name, both in QUESTIONS.items()]


def search(table):
    """A search as one writes it in pandas."""
    found = table["name"].str.contains("model-4", case=False, regex=False)
    found |= table["name"].str.contains("org77", case=False, regex=False)
    return table[found].sort_values("Factuality", ascending=False)


def filter_rows(table):
    """A filter as one writes it in pandas."""
    fitting = table["chat_template"] & (table["params"] >= 2) & (table["params"] < 8)
    return table[fitting].sort_values("Factuality", ascending=False)


QUESTIONS = {
    "search": (View(query="model-4;org77"), search),
    "filter": (View(chat_template="yes", sizes=("2–8 B",)), filter_rows),
}


def measure_answer(client, board, name, view, operation, rounds):
    """One view: the page's answer against the pandas operation and a round trip of the same controls."""
    change, nothing, count = events(client)
    data = controls(view, count)
    candidates = {
        "answer": repeat(lambda: change(data)),
        "round_trip": repeat(lambda: nothing(data)),
        "pandas": repeat(lambda: operation(board.table)),
    }
    seconds = side_by_side(candidates, rounds)
    both = [a + b for a, b in zip(seconds["round_trip"], seconds["pandas"], strict=True)]
    said = {"bytes": change(data), "bytes_round_trip": nothing(data), "claim": CLAIMS["answer"]}
    said["ms"] = {key: round(1e3 * min(values) / TIMES, 2) for key, values in seconds.items()}
    return {"what": name, **said, **ratio(seconds["answer"], both)}


def measure_first_table(address, rounds):
    """Ours against a bare data frame, both opened by a browser that has nothing in its cache."""
    with serving([sys.executable, __file__, "--bare"]) as (bare, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        candidates = {
            "ours": lambda: first_row(browser, address, ".board tbody td"),
            "bare": lambda: first_row(browser, bare, "#bare .body-cell"),
        }
        seconds = side_by_side(candidates, rounds)
        browser.close()
    claim = {"claim": CLAIMS["first_table"], "seconds_bare": min(seconds["bare"])}
    return {"what": "first_table", **claim, **ratio(seconds["ours"], seconds["bare"])}


def controls(view, count):
    """What the page sends for a view: the address before, and the values of the controls, in the order of the part."""
    before = view.changed(query="", chat_template="any", sizes=(), sheet=2).address
    filters = [list(getattr(view, name)) for name in ("types", "precisions", "sizes", "streams", "licenses")]
    shown = list(shown_columns(view).values())
    data = [before, view.query, view.errors, *filters, view.coverage, view.chat_template, *shown]
    assert len(data) == count
    return data


def repeat(call, times=TIMES):
    """A function that calls another several times."""
    return lambda: [call() for _ in range(times)]


def main():
    """Measures everything."""
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("--models", type=int, default=5000, help="how many (default %(default)s)")
    args = arguments.parse_args()
    rows, resident = [], []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        command = [sys.executable, __file__, "--ours", str(root)]
        done = 0
        for models in (0, args.models // 2, args.models):
            write_results(root, done, models)
            done = models
            with serving(command) as (address, process):
                httpx.post(f"{address}/gradio_api/run/predict", json={}, timeout=60)
                resident.append(psutil.Process(process.pid).memory_info().rss)
                if models == args.models:
                    rows = [measure_first_table(address, args.rounds), *measure_answers(address, root, args.rounds)]
        first, second = resident[1] - resident[0], resident[2] - resident[1]
        mib = [round(count / 2**20) for count in resident]
        rows.append({"what": "memory", "claim": CLAIMS["memory"], "median": second / first, "MiB": mib})
    report(rows, args.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare_page(int(sys.argv[2]))
    elif sys.argv[1:2] == ["--ours"]:
        our_page(int(sys.argv[3]), sys.argv[2])
    else:
        main()
