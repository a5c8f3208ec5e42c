"""The console's history: search, filters, pages and thousands of replays, in a real browser."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from console import PHONE, SLOW_MS, opened, wait_until_live
from playwright.sync_api import Browser, Locator, Page, expect
from support import unique_name, wait_until
from workers import SHOP_HISTORY, Cluster, Worker

from replay_app.commands import Filter, Start, Target
from replay_app.sessions import Session

MANY = 5_000
PAGE_ROWS = 100


@pytest.fixture
def history(page: Page) -> Page:
    page.get_by_role("link", name="History").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("History")
    return page


def rows(page: Page) -> Locator:
    return page.locator("table.history tbody tr")


def row_of(page: Page, replay_id: str) -> Locator:
    """Return a row by its address: a row may have a name in place of the id."""
    return rows(page).filter(has=page.locator(f'a[href$="/replays/{replay_id}"]'))


def test_a_replay_is_one_dense_line(shop: Cluster, history: Page) -> None:
    replay_id, by = unique_name("r"), unique_name("ana")
    types = ["order_placed", "order_paid", "order_confirmed"]
    shop.run(
        replay_id,
        name="Fill the test environment",
        requested_by=by,
        dry_run=True,
        filter={"event_types": types, **SHOP_HISTORY},
    )
    row = row_of(history, replay_id)
    cells = row.get_by_role("cell")
    expect(cells).to_have_text(
        [
            "completed",
            re.compile(r"DRY\s*Fill the test environment"),
            "3 types, 1 Jan 01:00 to 1 Feb 01:00",
            re.compile(rf"to {re.escape(shop.target_prefix)}\*"),
            "0",
            "0",
            re.compile(r"\d+(\.\d)? (s|min)"),
            re.compile("now|min"),
            by,
        ],
        timeout=SLOW_MS,
    )
    height = (row.bounding_box() or {"height": 0})["height"]
    assert height < 40, "more than one line"
    row.get_by_role("link").click()
    expect(history).to_have_url(re.compile(rf"/replays/{replay_id}$"))


def test_what_fails_is_counted_in_its_line(shop: Cluster, history: Page) -> None:
    kind, replay_id = unique_name("odd"), unique_name("r")
    bad = {"_id": kind, "event_id": kind, "event_type": kind, "aggregate_id": [1]}
    shop.insert([{**bad, "timestamp": datetime(2026, 2, 1, tzinfo=UTC)}])
    target = {"topic": shop.topics()[0]}
    shop.run(replay_id, filter={"event_types": [kind]}, target=target, on_error="skip")
    row = row_of(history, replay_id)
    expect(row.locator('[data-label="Failed"]')).to_have_text("1", timeout=SLOW_MS)
    expect(row.locator(".state")).to_have_text("with errors")


def test_search_and_filters_are_in_the_address(shop: Cluster, history: Page) -> None:
    word = unique_name("word")
    done, failed = unique_name("done"), unique_name("failed")
    shop.run(done, reason=f"because of {word.upper()}", dry_run=True, filter=SHOP_HISTORY)
    shop.run(failed, name=word, target={"topic": unique_name("not-there")})
    search = history.get_by_label("Search")
    search.press_sequentially(word)
    expect(rows(history)).to_have_count(2)
    expect(history.locator(".summary")).to_have_text("2 replays")
    expect(search).to_be_focused()
    history.get_by_label("Failed", exact=True).check()
    expect(rows(history)).to_have_count(1)
    expect(row_of(history, failed)).to_be_visible()
    assert history.url.endswith(f"/history?text={word}&show=failed")

    row_of(history, failed).get_by_role("link").click()
    expect(history.get_by_role("heading", level=1)).to_have_text(word)
    history.go_back()
    expect(search).to_have_value(word)
    expect(history.get_by_label("Failed", exact=True)).to_be_checked()
    expect(rows(history)).to_have_count(1)
    history.reload()
    expect(rows(history)).to_have_count(1)
    search.fill("no replay has such a name")
    expect(history.get_by_text("No replay fits.")).to_be_visible()
    shop.command(failed, "cancel")


def test_a_new_replay_and_its_states_come_by_themselves(shop: Cluster, history: Page) -> None:
    replay_id = unique_name("r")
    shop.command(replay_id, filter=SHOP_HISTORY, paused=True)
    row = row_of(history, replay_id)
    expect(row.locator(".state")).to_have_text("paused", timeout=SLOW_MS)
    shop.command(replay_id, "cancel")
    expect(row.locator(".state")).to_have_text("cancelled", timeout=SLOW_MS)


def test_on_a_phone_each_line_is_a_card(browser: Browser, shop: Cluster, worker: Worker) -> None:
    replay_id = unique_name("r")
    shop.run(replay_id, name="n" * 200, dry_run=True, filter=SHOP_HISTORY)
    with opened(browser, f"{worker.url}/history", viewport=PHONE) as page:
        row = row_of(page, replay_id)
        expect(row.get_by_role("link")).to_be_visible()
        expect(row.get_by_role("cell")).to_have_count(9)  # a table still, for a screen reader
        box = row.bounding_box() or {"height": 0}
        assert box["height"] > 60
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def settled(number: int, now: datetime) -> Session:
    """Return the session of a replay that was completed a while ago."""
    at = now - timedelta(seconds=MANY - number)
    kind = "order_placed" if number % 2 else "order_paid"
    start = Start(
        replay_id=f"old-{number:04}",
        name=f"Replay number {number:04}",
        filter=Filter(event_types=(kind,)),
        target=Target(prefix="rebuild."),
    )
    return Session(
        replay_id=start.replay_id,
        revision=3,
        state="completed",
        start=start,
        created_at=at,
        updated_at=at,
        started_at=at,
        ended_at=at,
        progressed_at=at,
        heard_at=at,
    )


def test_thousands_of_replays_are_paged_and_searched(browser: Browser, cluster: Cluster) -> None:
    cluster.seed(10)
    worker = cluster.start_worker().wait_until_ready()
    now = datetime.now(UTC)
    sessions = [settled(number, now) for number in range(MANY)]
    cluster.produce_all(((s.replay_id.encode(), s.encode()) for s in sessions), "status")
    wait_until(lambda: worker.get("/replays?limit=1")["total"] == MANY, 60, "not all are listed")
    with opened(browser, f"{worker.url}/history") as page:
        expect(page.locator(".summary")).to_have_text(f"{MANY:,} replays")
        expect(rows(page)).to_have_count(PAGE_ROWS)
        assert page.locator("*").count() < 40 * PAGE_ROWS
        expect(rows(page).first).to_contain_text(f"Replay number {MANY - 1:04}")

        page.get_by_role("button", name="Older").click()
        expect(rows(page).first).to_contain_text(f"Replay number {MANY - PAGE_ROWS - 1:04}")
        expect(rows(page)).to_have_count(PAGE_ROWS)
        page.get_by_role("button", name="Newer").click()
        expect(rows(page).first).to_contain_text(f"Replay number {MANY - 1:04}")

        search = page.get_by_label("Search")
        search.press_sequentially("number 0007", delay=20)  # far behind the first page
        expect(rows(page)).to_have_count(1)
        expect(search).to_have_value("number 0007")
        search.fill("order_paid")
        expect(page.locator(".summary")).to_have_text(f"{MANY // 2:,} replays")
        expect(rows(page)).to_have_count(PAGE_ROWS)

        page.get_by_role("link", name="Now").click()
        wait_until_live(page)
        expect(page.get_by_text("Nothing is under way.")).to_be_visible()
        expect(page.get_by_role("article")).to_have_count(0)
