"""The page in a real browser: Debian's `chromium`, or the one that CHROMIUM names."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from parcontrol.leaderboard.app.board import read_board
from parcontrol.leaderboard.app.page import PARTS
from parcontrol.leaderboard.app.view import View
from parcontrol.leaderboard.settings import Settings
from parcontrol.leaderboard.store import Stores, open_stores, update
from tests.leaderboard.app import boards

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install Debian's chromium, or name one in CHROMIUM"),
    pytest.mark.xdist_group("browser"),
]
SECONDS = 30_000  # milliseconds that the slowest machine may take


@dataclass
class Site:
    """A page that is served, and its store."""

    address: str
    stores: Stores
    root: Path


@contextmanager
def served(root: Path, models: int) -> Iterator[Site]:
    stores = open_stores(Settings(root=root))
    if models:
        boards.fill(stores, models)
    command = [sys.executable, "-m", "tests.leaderboard.app.server", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        address = f"http://127.0.0.1:{int(server.stdout.readline())}/"
        try:
            wait_until_it_answers(address)
            yield Site(address, stores, root)
        finally:
            server.terminate()


def wait_until_it_answers(address: str) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            httpx2.get(address, timeout=30).raise_for_status()
            return
        except httpx2.TransportError:
            assert time.monotonic() < end
            time.sleep(0.2)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with served(tmp_path_factory.mktemp("site"), 40) as site:
        yield site


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, **context: object) -> Iterator[Page]:
    """A page that asks nobody but its server, and has no error and no dialog until it is closed."""
    faults: list[str] = []
    origin = urlparse(address).netloc
    with browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context}) as window:  # type: ignore[arg-type]
        page = window.new_page()
        page.set_default_timeout(SECONDS)
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda asked: None if urlparse(asked.url).netloc in (origin, "") else faults.append(asked.url)
        )
        page.goto(address)
        yield page
        assert not faults


def rows(page: Page) -> list[str]:
    return page.locator(".board tbody tr .model a").all_inner_texts()


def wait_for_table(page: Page) -> None:
    page.locator(".board tbody tr").first.wait_for()


def test_search_sort_and_filter_are_in_the_address_and_come_back_from_it(site: Site, browser: Browser) -> None:
    with opened(browser, site.address) as page:
        wait_for_table(page)
        page.locator("#search input, #search textarea").fill("MODEL-1;model-2")
        expect(page.locator(".count")).to_contain_text("of 65 models", timeout=SECONDS)
        page.get_by_role("link", name=re.compile("^XSum")).first.click()
        expect(page.locator("th[aria-sort=descending]")).to_contain_text("XSum", timeout=SECONDS)
        page.get_by_role("button", name="Filters").click()
        page.get_by_label("bfloat16").check()
        expect(page).to_have_url(re.compile("precisions=bfloat16"), timeout=SECONDS)
        shown, address = rows(page), page.url
        assert parse_qs(urlparse(address).query) == {
            "query": ["MODEL-1;model-2"],
            "precisions": ["bfloat16"],
            "sort": ["XSum/ROUGE-L"],
        }
    with opened(browser, address) as page:
        wait_for_table(page)
        assert rows(page) == shown
        assert page.locator("#search input, #search textarea").input_value() == "MODEL-1;model-2"
        page.get_by_role("button", name="Filters").click()
        expect(page.get_by_label("bfloat16")).to_be_checked()


def test_every_parameter_can_be_loaded(site: Site, browser: Browser) -> None:
    """Gradio has parameters of its own, which ours must not meet."""
    values = {"sheet": "2", "coverage": "50", "ascending": "true", "tab": "plots"}
    for field in fields(View):
        httpx2.get(f"{site.address}?{field.name}={values.get(field.name, 'x')}", timeout=60).raise_for_status()
    with opened(browser, f"{site.address}?sheet=2&sort=FEVER/Acc") as page:
        expect(page.locator(".pages [aria-current]")).to_have_text("2", timeout=SECONDS)


def test_a_filter_that_the_board_does_not_have_can_be_undone(site: Site, browser: Browser) -> None:
    with opened(browser, f"{site.address}?precisions=bogus") as page:
        expect(page.locator(".count")).to_contain_text("No model fits", timeout=SECONDS)
        page.get_by_label("bogus").uncheck()  # the filters are unfolded
        expect(page.locator(".count")).to_contain_text("65 models", timeout=SECONDS)


def test_what_is_done_last_wins_however_slow_the_answers_are(site: Site, browser: Browser) -> None:
    with opened(browser, site.address) as page:
        wait_for_table(page)
        page.route("**/gradio_api/run/**", lambda route: (time.sleep(0.4), route.continue_()))
        page.locator("#bar").get_by_role("link", name="Plots").click()
        page.locator("#bar").get_by_role("link", name="About").click()
        expect(page.locator("#part-about")).to_be_visible(timeout=SECONDS)
        assert parse_qs(urlparse(page.url).query) == {"tab": ["about"]}
        page.locator("#bar").get_by_role("link", name="Leaderboard", exact=True).click()
        expect(page.locator("#part-leaderboard")).to_be_visible(timeout=SECONDS)
        wait_for_table(page)
        page.get_by_role("link", name=re.compile("^XSum")).first.click()
        page.locator("#search input, #search textarea").press_sequentially("org3")
        expect(page.locator(".count")).to_contain_text("of 65 models", timeout=SECONDS)
        expect(page).to_have_url(re.compile("query=org3&sort=XSum"), timeout=SECONDS)
        assert page.locator("#search input, #search textarea").input_value() == "org3"


def test_a_late_answer_of_a_part_that_was_left_does_not_open_it_again(site: Site, browser: Browser) -> None:
    with opened(browser, site.address) as page:
        page.add_init_script(_LATE_MODELS)
        page.reload()
        wait_for_table(page)
        page.locator(".board tbody tr .model a").first.click()
        page.locator("#bar").get_by_role("link", name="About").click()
        page.wait_for_function("window.late === 1")
        page.wait_for_timeout(1500)
        assert parse_qs(urlparse(page.url).query) == {"tab": ["about"]}
        expect(page.locator("#part-about")).to_be_visible(timeout=SECONDS)
        expect(page.locator("#bar [aria-current]")).to_have_text("About", timeout=SECONDS)
        expect(page.locator("#part-model")).to_be_hidden()


_LATE_MODELS = """
window.late = 0;
const fetchNow = window.fetch;
window.fetch = async (...asked) => {
  const answer = await fetchNow(...asked);
  if (String(asked[1] && asked[1].body).includes('"address":"?tab=model')) {
    await new Promise((done) => setTimeout(done, 3000));
    window.late += 1;
  }
  return answer;
};
"""


def test_an_address_may_name_the_first_part(site: Site, browser: Browser) -> None:
    with opened(browser, f"{site.address}?tab=leaderboard") as page:
        wait_for_table(page)
        page.locator("#search input, #search textarea").fill("org3")
        expect(page.locator(".count")).to_contain_text("of 65 models", timeout=SECONDS)
        expect(page).to_have_url(re.compile(r"\?query=org3$"), timeout=SECONDS)


def test_a_number_of_the_slider_may_be_empty_or_too_large(site: Site, browser: Browser) -> None:
    with opened(browser, f"{site.address}?coverage=40") as page:
        wait_for_table(page)
        number = page.locator("#part-leaderboard input[type=number]")
        number.fill("")
        expect(page).to_have_url(site.address, timeout=SECONDS)
        number.fill("1000")
        number.press("Tab")
        expect(page).to_have_url(re.compile("coverage=100$"), timeout=SECONDS)
        expect(number).to_have_value("100")


def test_a_search_is_no_longer_than_an_address_can_hold(site: Site, browser: Browser) -> None:
    with opened(browser, site.address) as page:
        wait_for_table(page)
        search = page.locator("#search input, #search textarea")
        search.press_sequentially("x")
        page.keyboard.insert_text("org1;" * 100)
        expect(page.locator(".count")).to_contain_text("of 65 models", timeout=SECONDS)
        expect(page).to_have_url(re.compile("query="), timeout=SECONDS)
        typed, address = search.input_value(), page.url
    with opened(browser, address) as page:
        expect(page.locator("#search input, #search textarea")).to_have_value(typed, timeout=SECONDS)


def test_the_bar_shows_on_a_phone_where_one_is(site: Site, browser: Browser) -> None:
    with opened(browser, f"{site.address}?tab=plots", viewport={"width": 360, "height": 800}) as page:
        for name in ("About", "Leaderboard"):
            page.locator("#bar").get_by_role("link", name=name, exact=True).dispatch_event("click")  # without scrolling
            expect(page.locator("#bar [aria-current]")).to_have_text(name, timeout=SECONDS)
            expect(page.locator("#bar [aria-current]")).to_be_in_viewport(ratio=0.99, timeout=SECONDS)


def test_a_link_keeps_the_focus_and_the_back_button_goes_back(site: Site, browser: Browser) -> None:
    with opened(browser, site.address) as page:
        wait_for_table(page)
        page.get_by_role("link", name=re.compile("^XSum")).first.focus()
        page.keyboard.press("Enter")
        expect(page.locator("th[aria-sort=descending]")).to_contain_text("XSum", timeout=SECONDS)
        expect(page.locator("th[aria-sort=descending] a")).to_be_focused(timeout=SECONDS)
        page.keyboard.press("Enter")
        expect(page.locator("th[aria-sort=ascending]")).to_contain_text("XSum", timeout=SECONDS)
        page.go_back()
        expect(page.locator("th[aria-sort=descending]")).to_contain_text("XSum", timeout=SECONDS)
        page.locator(".board tbody tr .model a").nth(1).click()
        expect(page.locator("#part-model")).to_be_visible(timeout=SECONDS)
        expect(page.locator("#part-leaderboard")).to_be_hidden()
        page.go_back()
        expect(page.locator("#part-leaderboard")).to_be_visible(timeout=SECONDS)


def test_models_are_chosen_in_the_table_and_compared(site: Site, browser: Browser) -> None:
    with opened(browser, site.address) as page:
        wait_for_table(page)
        names = rows(page)[:2]
        for number in (1, 2):
            page.locator(f".board tbody tr:nth-child({number}) .toggle a").click()
            expect(page.locator(".compared .chip")).to_have_count(number, timeout=SECONDS)
        page.get_by_role("link", name="Compare these 2").click()
        part = page.locator("#part-compare")
        for name in names:
            expect(part).to_contain_text(name, timeout=SECONDS)


def test_a_new_result_appears_on_an_open_page(tmp_path: Path, browser: Browser) -> None:
    with served(tmp_path, 0) as site, opened(browser, site.address) as page:
        expect(page.locator(".count")).to_contain_text("No model has been evaluated yet", timeout=SECONDS)
        metrics = {"nq_open": {"exact_match,none": 0.25, "exact_match_stderr,none": 0.01}}
        files = boards.result_files({"model": "new/model"}, metrics, random.Random(0))
        update(site.stores.results, lambda snapshot: files, "result")
        expect(page.locator(".board tbody")).to_contain_text("new/model", timeout=60_000)


def test_an_old_table_is_marked_while_the_store_is_down(tmp_path: Path, browser: Browser) -> None:
    with served(tmp_path / "board", 3) as site, opened(browser, site.address) as page:
        wait_for_table(page)
        site.root.rename(tmp_path / "elsewhere")
        expect(page.locator(".trouble")).to_contain_text("Not the newest", timeout=60_000)
        assert rows(page)
        assert not site.root.exists()
        (tmp_path / "elsewhere").rename(site.root)
        expect(page.locator(".trouble")).to_be_hidden(timeout=60_000)


VIEWS = [f"?tab={tab}" for tab in PARTS if tab not in ("model", "compare")]


def all_views(site: Site) -> list[str]:
    table = read_board(site.stores).table
    sampled = table[table["name"].str.startswith("local/base-135M_P1_seed0")].iloc[0]["key"]
    other = table[table["name"].str.startswith("local/base-135M_P8_seed0")].iloc[0]["key"]
    return [
        *VIEWS,
        "?errors=true&query=org1",
        f"?tab=model&rows={sampled}&task=truefalse",
        "?tab=model",
        f"?tab=compare&rows={sampled}&rows={other}",
        "?tab=model&rows=nobody@1",
    ]


@pytest.mark.parametrize("theme", ["light", pytest.param("dark", marks=pytest.mark.full)])
def test_axe_finds_no_serious_issue(site: Site, browser: Browser, theme: str) -> None:
    for view in all_views(site):
        with opened(browser, f"{site.address}{view}&__theme={theme}", color_scheme=theme) as page:
            settle(page)
            found = Axe().run(page).response["violations"]
            serious = [
                (fault["id"], fault["nodes"][0]["html"][:200], fault["nodes"][0]["failureSummary"][:300])
                for fault in found
                if fault["impact"] in ("serious", "critical")
            ]
            assert not serious, view


@pytest.mark.parametrize("width", [360, pytest.param(1920, marks=pytest.mark.full)])
def test_nothing_is_wider_than_the_screen_and_nothing_moves(site: Site, browser: Browser, width: int) -> None:
    for view in all_views(site):
        with opened(browser, f"{site.address}{view}", viewport={"width": width, "height": 800}) as page:
            page.add_init_script(_COUNT_SHIFTS)
            page.reload()
            settle(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
            # What Google calls a good cumulative layout shift.
            assert page.evaluate("window.moved") < 0.1, view


_COUNT_SHIFTS = """
window.moved = 0;
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.moved += entry.value;
}).observe({ type: "layout-shift", buffered: true });
"""


def settle(page: Page) -> None:
    """Waits until the part that the address names has been filled."""
    page.locator(".part:visible").first.wait_for()
    page.wait_for_function("document.querySelector('#bar nav a[aria-current]')")
    page.wait_for_timeout(1500)  # for what comes in late, and may move


def test_names_reasons_and_outputs_are_only_text(site: Site, browser: Browser) -> None:
    for view in all_views(site):
        with opened(browser, f"{site.address}{view}") as page:
            settle(page)
            assert page.locator("img[src=x]").count() == 0
            assert page.locator("a[href^='javascript:']").count() == 0
    with opened(browser, f"{site.address}?tab=submit") as page:
        expect(page.locator("#part-submit")).to_contain_text(boards.HOSTILE, timeout=SECONDS)
