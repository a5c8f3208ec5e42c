"""The status page of a real worker, in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright
from secret_values import SECRET_TOKEN
from store_proxy import slow_store
from support import unique_name
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "no Chromium on the PATH: run `make browser`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, worker: Worker) -> Iterator[Page]:
    """The page, which must load without a single error in the console."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    errors: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(worker.url)
    expect(page.locator("#connection")).to_have_text("live")
    yield page
    context.close()
    assert errors == []


def test_a_replay_is_watched_and_controlled_by_its_buttons(shop: Cluster, page: Page) -> None:
    replay_id = _run_slowly(shop)
    row = page.get_by_role("row").filter(has_text=replay_id)
    expect(row.locator(".state")).to_have_text("running")
    # On a busy machine the count is a step of its own, and begins seconds after the first page.
    expect(row).to_contain_text(f"/ {SHOP_EVENTS:,}", timeout=60_000)
    expect(row).to_contain_text("ana")
    expect(row.get_by_role("progressbar")).to_be_visible()

    page.get_by_role("button", name=f"Pause {replay_id}").click()
    expect(row.locator(".state")).to_have_text("paused")
    expect(page.get_by_role("status")).to_contain_text(f"{replay_id} is paused")
    expect(page.get_by_role("button", name=f"Pause {replay_id}")).to_be_hidden()

    page.get_by_role("button", name=f"Resume {replay_id}").click()
    expect(row.locator(".state")).to_have_text("running")

    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name=f"Cancel {replay_id}").click()
    expect(row.locator(".state")).to_have_text("running")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=f"Cancel {replay_id}").click()
    expect(row.locator(".state")).to_have_text("cancelled")
    expect(row.locator(".buttons button:visible")).to_have_count(0)


def test_only_the_verbs_that_the_worker_names_have_a_button(shop: Cluster, page: Page) -> None:
    replay_id = _run_slowly(shop)

    def finish(route: Route) -> None:
        answer = route.fetch()
        listed = answer.json()
        for session in listed["replays"]:
            if session["replay_id"] == replay_id:
                assert session["verbs"] == ["pause", "cancel", "set-rate"]
                session |= {"finishing": True, "verbs": ["set-rate"]}
        route.fulfill(response=answer, json=listed)

    buttons = page.get_by_role("row").filter(has_text=replay_id).locator(".buttons button:visible")
    expect(buttons).to_have_text(["Pause", "Cancel"])
    page.route("**/replays?*", finish)
    expect(buttons).to_have_count(0)
    page.unroute("**/replays?*", finish)
    shop.command(replay_id, "cancel")
    shop.wait_for(replay_id, "cancelled")


def test_what_is_unknown_is_a_dash_and_never_a_zero(shop: Cluster, page: Page) -> None:
    replay_id = unique_name("r")
    missing = unique_name("not-there")
    shop.command(replay_id, target={"topic": missing})
    shop.wait_for(replay_id, "failed")
    row = page.get_by_role("row").filter(has_text=replay_id)
    expect(row.locator(".state")).to_have_text("failed")
    expect(row.locator(".notes .bad")).to_contain_text(missing)
    expect(row.locator(".progress")).to_have_text("—")
    expect(row.locator("progress")).to_be_hidden()
    texts = row.locator("td.number").all_text_contents()
    assert texts == ["— / —", "—", "—"]
    expect(page.get_by_role("button", name=f"Retry {replay_id}")).to_be_visible()


def test_the_details_show_the_receipt_and_are_left_by_keyboard(shop: Cluster, page: Page) -> None:
    replay_id = unique_name("r")
    group = unique_name("view")
    session = shop.run(replay_id, reason="orders view lost", filter=SHOP_HISTORY, consumers=[group])
    opener = page.get_by_role("button", name=replay_id, exact=True)
    opener.focus()
    page.keyboard.press("Enter")
    details = page.get_by_role("region", name=replay_id, exact=True)
    expect(details).to_contain_text("orders view lost")
    expect(details.get_by_role("heading", name="Receipt")).to_be_visible()
    expect(details).to_contain_text(f"{session['receipt']['bytes']:,}")
    for topic in session["receipt"]["by_topic"]:
        expect(details.get_by_role("term").filter(has_text=topic)).to_be_visible()
    consumer = details.get_by_role("row").filter(has_text=group)
    expect(consumer).to_contain_text("not seen yet", timeout=60_000)
    expect(details.get_by_role("heading", name=replay_id)).to_be_focused()
    page.keyboard.press("Escape")
    expect(details).to_be_hidden()
    expect(opener).to_be_focused()


def test_text_of_strangers_is_shown_as_text_only(shop: Cluster, page: Page) -> None:
    replay_id = unique_name("r")
    evil = "<img src=x onerror=alert(1)>"
    shop.command(replay_id, name=evil, requested_by=evil, dry_run=True, filter=SHOP_HISTORY)
    row = page.get_by_role("row").filter(has_text=replay_id)
    expect(row.locator("td.name")).to_have_text(evil)
    assert page.locator("img").count() == 0
    shop.wait_for(replay_id, "completed")


def test_a_refused_command_is_shown(shop: Cluster, page: Page) -> None:
    replay_id = unique_name("r")
    shop.command(replay_id, "resume")
    expect(page.locator("#refused")).to_contain_text(replay_id)


def test_the_focus_stays_while_the_numbers_change(shop: Cluster, page: Page) -> None:
    replay_id = _run_slowly(shop)
    opener = page.get_by_role("button", name=replay_id, exact=True)
    opener.focus()
    read = page.get_by_role("row").filter(has_text=replay_id).locator("td.number").first
    before = read.text_content() or ""
    expect(read).not_to_have_text(before, timeout=60_000)
    expect(opener).to_be_focused()
    shop.command(replay_id, "cancel")
    shop.wait_for(replay_id, "cancelled")


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_wider_than_the_window(
    browser: Browser, shop: Cluster, worker: Worker, width: int
) -> None:
    replay_id = unique_name("r")
    shop.run(replay_id, name="n" * 200, dry_run=True, filter=SHOP_HISTORY)
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark")
    page.goto(worker.url)
    expect(page.get_by_role("button", name=replay_id, exact=True)).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()


def test_a_replay_that_waits_for_others_is_released_by_its_button(
    shop: Cluster, page: Page
) -> None:
    replay_id, parent = unique_name("waiting"), unique_name("never-started")
    shop.command(replay_id, after=[parent], filter=SHOP_HISTORY, dry_run=True)
    row = page.get_by_role("row").filter(has_text=replay_id)
    expect(row.locator(".state")).to_have_text("waiting")
    expect(row).to_contain_text(f"waiting for replay '{parent}' (unknown)")
    buttons = row.locator(".buttons button:visible")
    expect(buttons).to_have_text(["Pause", "Release", "Cancel"])
    page.get_by_role("button", name=f"Release {replay_id}").click()
    assert shop.wait_for(replay_id, "completed")["released"]
    expect(buttons).to_have_count(0)


@pytest.mark.parametrize("width", [1200, 360])
def test_the_buttons_are_in_sight_however_narrow_the_window(
    browser: Browser, shop: Cluster, worker: Worker, width: int
) -> None:
    running = unique_name("a-replay-with-a-rather-long-name")
    long = {"name": "n" * 60, "requested_by": "ana.of.a.long.name@example.com"}
    shop.command(running, rate=SHOP_EVENTS / 60, filter=SHOP_HISTORY, **long)
    failed = unique_name("a-replay-with-a-rather-long-name")
    shop.command(failed, target={"topic": unique_name("not-there")}, **long)
    shop.wait_for(running, "running")
    shop.wait_for(failed, "failed")
    page = browser.new_page(viewport={"width": width, "height": 800})

    def enlarge(route: Route) -> None:
        """Show the figures of a long replay: they need more room than those of the shop."""
        answer = route.fetch()
        listed = answer.json()
        large = {"matched": 10_234_567, "percent": 1.2, "rate": 200_000.0}
        for session in listed["replays"]:
            session |= {**large, "events_per_second": 123_456.7, "eta_seconds": 259_197.0}
        route.fulfill(response=answer, json=listed)

    page.route("**/replays?*", enlarge)
    page.goto(worker.url)
    for label in (f"Pause {running}", f"Cancel {running}", f"Retry {failed}", f"Cancel {failed}"):
        expect(page.get_by_role("button", name=label)).to_be_in_viewport(ratio=1)
    page.unroute_all(behavior="wait")  # an answer may be under way
    page.close()
    shop.command(running, "cancel")
    shop.wait_for(running, "cancelled")


def test_a_replay_shows_where_it_is_before_its_events_are_counted(
    browser: Browser, cluster: Cluster
) -> None:
    cluster.seed(SHOP_EVENTS)
    with slow_store(cluster.stack.mongo, 3, b"$group") as uri:
        worker = cluster.start_worker(None, REPLAY_MONGO=uri).wait_until_ready()
        page = browser.new_page()
        page.goto(worker.url)
        cluster.command("r", rate=SHOP_EVENTS / 60, filter=SHOP_HISTORY)
        row = page.locator("tbody tr")
        expect(row).to_contain_text("/ counting", timeout=60_000)
        expect(row).to_contain_text(re.compile(r"at 2026-01-\d\d \d\d:\d\d of 2026-02-01 00:00"))
        expect(row).to_contain_text(f"/ {SHOP_EVENTS:,}", timeout=60_000)
        page.close()
        cluster.command("r", "cancel")
        cluster.wait_for("r", "cancelled")


def test_without_its_worker_the_page_says_so_and_recovers(
    browser: Browser, cluster: Cluster
) -> None:
    worker = cluster.start_worker().wait_until_ready()
    page = browser.new_page()
    page.goto(worker.url)
    expect(page.locator("#empty")).to_be_visible()
    worker.kill()
    expect(page.locator("#connection")).to_contain_text("does not answer", timeout=60_000)
    cluster.start_worker(0).wait_until_ready()
    expect(page.locator("#connection")).to_have_text("live", timeout=60_000)
    page.close()


def test_the_page_asks_for_the_token_and_uses_it(browser: Browser, cluster: Cluster) -> None:
    cluster.environment |= {"REPLAY_API_TOKEN": SECRET_TOKEN, "REPLAY_WEB_HOST": "127.0.0.1"}
    worker = cluster.start_worker().wait_until_ready()
    page = browser.new_page()
    page.goto(worker.url)
    field = page.get_by_label("API token")
    expect(field).to_be_focused()
    field.fill("wrong")
    field.press("Enter")
    expect(field).to_be_visible()
    field.fill(SECRET_TOKEN)
    field.press("Enter")
    expect(page.locator("#connection")).to_have_text("live")
    expect(field).to_be_hidden()
    page.close()


def _run_slowly(cluster: Cluster) -> str:
    """Start a replay that would take a minute, and return its id once it runs."""
    replay_id = unique_name("r")
    cluster.command(replay_id, rate=SHOP_EVENTS / 60, requested_by="ana", filter=SHOP_HISTORY)
    cluster.wait_for(replay_id, "running")
    return replay_id
