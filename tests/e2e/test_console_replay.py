"""The console's page of one replay, at an address of its own, in a real browser."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from console import SLOW_MS, opened, wait_until_live
from playwright.sync_api import Browser, Locator, Page, expect
from support import unique_name
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker, events_of

NAME = """O'Hara's "$HOME" <b>view</b>"""
"""A name that needs quoting in every language."""
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def completed(shop: Cluster) -> str:
    """The id of a replay that has completed."""
    replay_id = unique_name("done")
    shop.run(
        replay_id,
        name=NAME,
        reason="orders view lost",
        requested_by="ana",
        filter=SHOP_HISTORY,
        consumers=[unique_name("orders view")],
    )
    return replay_id


@pytest.fixture
def replay(page: Page, completed: str) -> Page:
    page.goto(f"{page.url}replays/{completed}")
    expect(page.get_by_role("region", name="Course")).to_be_visible()
    return page


def part(page: Page, name: str) -> Locator:
    return page.get_by_role("region", name=name, exact=True)


def test_the_address_answers_browsers_with_a_page_and_programs_with_json(
    worker: Worker, completed: str
) -> None:
    path = f"/replays/{completed}"
    status, session = worker.request("GET", path)
    assert (status, session["replay_id"]) == (200, completed)
    status, text = worker.request("GET", path, headers=HTML)
    assert (status, text[:15]) == (200, b"<!doctype html>")
    assert completed.encode() not in text


def test_everything_that_is_known_is_shown(shop: Cluster, replay: Page, completed: str) -> None:
    session = shop.wait_for(completed, "completed")
    course = part(replay, "Course")
    expect(course).to_contain_text(f"{SHOP_EVENTS:,} of {SHOP_EVENTS:,} · 100.0 %")
    expect(course).to_contain_text("orders view lost")
    receipt = part(replay, "Receipt")
    expect(receipt).to_contain_text(f"{session['receipt']['bytes']:,}")
    types = part(replay, "Events by type").get_by_role("row")
    expect(types).to_have_count(len(session["receipt"]["by_type"]) + 1)
    topics = part(replay, "Topics")
    for topic, number in session["receipt"]["by_topic"].items():
        line = topics.get_by_role("row").filter(has_text=topic).first
        expect(line.get_by_role("cell")).to_have_text(
            [topic, f"{number:,}", f"{number:,}", re.compile("3|—")]
        )
    topics.get_by_text("Partitions and offsets").click()
    offsets = topics.get_by_role("group", name="Offsets written")
    ranges = [len(numbers) for numbers in session["offsets"].values()]
    expect(offsets.get_by_role("row")).to_have_count(sum(ranges) + 1)
    (group,) = session["start"]["consumers"]
    lag = part(replay, "Consumer lag").get_by_role("row").filter(has_text=group)
    expect(lag).to_contain_text("not seen yet", timeout=SLOW_MS)
    shards = part(replay, "Shards").get_by_role("row")
    expect(shards).to_have_count(len(session["shards"]) + 1)
    expect(shards.nth(1)).to_contain_text(session["shards"][0]["worker"])
    timeline = part(replay, "Timeline").get_by_role("listitem")
    expect(timeline.first).to_contain_text("start pending by ana")
    expect(timeline.last).to_contain_text("completed")


def test_charts_have_a_sentence_and_a_table(replay: Page) -> None:
    for name, heads in (
        ("Speed", ["Until", "read"]),
        ("Waiting on", ["Until", "store", "encoder", "broker"]),
    ):
        chart = part(replay, name)
        chart.get_by_text("as a table").click()
        expect(chart.get_by_role("columnheader")).to_have_text(heads)


def test_the_rate_is_changed_and_the_timeline_says_who_did_what(shop: Cluster, page: Page) -> None:
    replay_id = unique_name("r")
    shop.command(replay_id, rate=SHOP_EVENTS / 60, filter=SHOP_HISTORY, requested_by="ana")
    shop.wait_for(replay_id, "running")
    page.goto(f"{page.url}replays/{replay_id}")
    rate = page.get_by_label("Rate, events/s")
    expect(rate).to_have_value("20")
    rate.fill("30")
    rate.press("Enter")
    expect(part(page, "Course")).to_contain_text("of at most 30", timeout=SLOW_MS)
    shop.wait_for(replay_id, "running", rate=30)
    line = part(page, "Timeline").get_by_role("listitem").filter(has_text="set-rate")
    expect(line).to_contain_text("rate 30", timeout=SLOW_MS)
    expect(part(page, "Speed").get_by_role("img")).to_be_visible(timeout=SLOW_MS)
    cap = part(page, "Speed").locator("svg > .cap")
    expect(cap).not_to_have_attribute("visibility", "hidden")
    rate.fill("")
    page.get_by_role("button", name="Set", exact=True).click()
    shop.wait_for(replay_id, "completed", rate=None)
    expect(page.locator(".replay-head .state")).to_have_text("completed", timeout=SLOW_MS)
    expect(rate).to_be_hidden()
    assert page.evaluate("document.activeElement !== document.body")


def test_failures_are_looked_at_and_exported(shop: Cluster, page: Page) -> None:
    kind, replay_id = unique_name("odd"), unique_name("r")
    events = events_of(kind, 6)
    for number in (1, 4):
        events[number] |= {"aggregate_id": [number]}
    shop.insert(events)
    target = {"topic": shop.topics()[0]}
    shop.run(replay_id, filter={"event_types": [kind]}, target=target, on_error="skip")
    page.goto(f"{page.url}replays/{replay_id}")
    failures = part(page, "Failures")
    expect(failures.get_by_role("row")).to_have_count(3)
    failures.get_by_role("button", name=f"Show event {kind}-4").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"replay-app events --event-id {kind}-4")
    expect(dialog.locator(".sample")).to_contain_text("no text form", timeout=SLOW_MS)
    dialog.get_by_role("button", name="Close").click()
    with page.expect_download() as download:
        failures.get_by_role("button", name="Export as JSON lines").click()
    assert download.value.suggested_filename == f"{replay_id}-failures.jsonl"
    lines = Path(download.value.path()).read_text().splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == [f"{kind}-1", f"{kind}-4"]


def test_sample_records_come_on_demand(replay: Page) -> None:
    samples = part(replay, "Sample records")
    expect(samples.locator(".sample")).to_have_count(0)
    samples.get_by_role("button").click()
    expect(samples.locator(".sample")).to_have_count(3, timeout=SLOW_MS)
    expect(samples.locator("pre").first).to_contain_text('"event_type"')


def test_the_command_runs_again_as_the_page_writes_it(
    shop: Cluster, worker: Worker, replay: Page, completed: str
) -> None:
    command = part(replay, "Command")
    shown = json.loads(command.get_by_label("The command as JSON").inner_text())
    assert shown["replay_id"] == completed
    first = shop.wait_for(completed, "completed")["start"]
    environment = {
        **os.environ,
        **shop.environment,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "REPLAY_URL": worker.url,
    }
    for label in ("The command as Command line", "The command as curl"):
        text = command.get_by_label(label).inner_text()
        done = subprocess.run(  # noqa: S602 - a shell must read it as it stands
            text, shell=True, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (again,) = set(re.findall(r"o-hara-s-home-[\w-]+|replay-\d{8}-\d{6}-\w+", done.stdout))
        start = shop.wait_for(again, "completed")["start"]
        for member in ("name", "reason", "filter", "target", "consumers", "dry_run", "rate"):
            assert start[member] == first[member], member


def test_run_again_opens_the_form_filled_in(replay: Page) -> None:
    replay.get_by_role("link", name="Run again as…").click()
    expect(replay.get_by_role("heading", level=1)).to_have_text("New replay")
    expect(replay.get_by_label("Name", exact=True)).to_have_value(
        """O'Hara's "$HOME" <b>view</b>"""
    )
    expect(replay.get_by_label("From")).to_have_value("2026-01-01T00:00:00Z")
    expect(replay.get_by_label("Further members")).to_have_value(re.compile("consumers"))
    expect(replay.locator(".matched")).to_contain_text(f"{SHOP_EVENTS:,} events", timeout=SLOW_MS)


def test_a_chain_is_a_graph(shop: Cluster, worker: Worker, page: Page) -> None:
    chain = unique_name("chain")
    some = {"filter": SHOP_HISTORY, "target": {"prefix": shop.target_prefix}, "max_events": 5}
    replays = {
        "customers": {"paused": True},
        "orders": {"after": ["customers"]},
        "search": {"after": ["customers", "orders"]},
    }
    body = {"chain": chain, "defaults": some, "replays": replays}
    assert worker.request("POST", "/chains", body)[0] == 202
    page.goto(f"{page.url}replays/{chain}.orders")
    graph = part(page, "Chain")
    boxes = graph.locator("svg a")
    expect(boxes).to_have_count(3, timeout=SLOW_MS)
    expect(graph.locator("svg .edge")).to_have_count(3)
    own = graph.locator('a[aria-current="page"]')
    expect(own).to_have_attribute("aria-label", re.compile(rf"^orders: .*after {chain}.customers"))
    rects = {name: boxes.filter(has_text=name).locator("rect") for name in replays}
    places = {name: float(rect.get_attribute("x") or 0) for name, rect in rects.items()}
    assert places["customers"] < places["orders"] < places["search"]
    boxes.filter(has_text="customers").click()
    expect(page).to_have_url(re.compile(rf"/replays/{re.escape(chain)}\.customers$"))
    expect(page.get_by_role("heading", level=1)).to_be_focused()
    page.get_by_role("button", name="Resume").click()
    shop.wait_for(f"{chain}.search", "completed")
    expect(boxes.filter(has_text="search")).to_contain_text("completed", timeout=SLOW_MS)


def test_a_replay_that_is_not_there_says_so(browser: Browser, worker: Worker) -> None:
    with opened(browser, f"{worker.url}/replays/never-started", refused=True) as page:
        expect(page.get_by_role("alert")).to_contain_text("There is no replay never-started")


class _Prefixed(http.server.BaseHTTPRequestHandler):
    """A proxy in front of a worker, at the path ``/tools/replay``."""

    worker = ""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        prefix = "/tools/replay"
        if not self.path.startswith(prefix + "/"):
            self.send_error(404)
            return
        with closing(http.client.HTTPConnection(self.worker, timeout=60)) as upstream:
            self._pass_on(upstream, self.path.removeprefix(prefix))

    def _pass_on(self, upstream: http.client.HTTPConnection, path: str) -> None:
        headers = {"Accept": self.headers["Accept"], "Host": self.worker}
        upstream.request("GET", path, headers=headers)
        answer = upstream.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name not in {"Transfer-Encoding", "Content-Length", "Connection"}:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with answer, suppress(OSError):  # the browser may leave a stream
            while piece := answer.read1(65536):
                self.wfile.write(piece)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def behind_a_prefix(worker: Worker) -> Iterator[str]:
    address = worker.url.removeprefix("http://")
    handler = type("_Handler", (_Prefixed,), {"worker": address})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/tools/replay"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_console_works_behind_a_path_prefix(
    browser: Browser, worker: Worker, completed: str
) -> None:
    with (
        behind_a_prefix(worker) as url,
        opened(browser, f"{url}/replays/{completed}") as page,
    ):
        wait_until_live(page)
        expect(part(page, "Receipt")).to_be_visible()
        page.get_by_role("link", name="History").first.click()
        expect(page).to_have_url(f"{url}/history")
        expect(page.locator("table.history tbody tr").first).to_be_visible()
        page.get_by_role("link", name="Now").click()
        expect(page).to_have_url(f"{url}/")
