"""What all views of the console share, on a real worker, in a real browser."""

from __future__ import annotations

import http.client
import json
import re
from contextlib import ExitStack

import pytest
from console import DESKTOP, PHONE, SLOW_MS, assert_accessible, opened, wait_until_live
from playwright.sync_api import Browser, Page, expect
from secret_values import SECRET_TOKEN
from support import unique_name
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker, events_of

from replay_app.web.server import Limits

VIEWS = ("now", "history", "replay", "failed", "new")


@pytest.fixture(scope="module")
def addresses(shop: Cluster) -> dict[str, str]:
    """The address of each view, with something to see in it."""
    kind = unique_name("odd")
    events = events_of(kind, 6)
    events[3] |= {"aggregate_id": [1]}
    shop.insert(events)
    done, failed = unique_name("done"), unique_name("failed")
    shop.run(done, name="n" * 200, filter=SHOP_HISTORY, consumers=[unique_name("view")])
    shop.run(failed, filter={"event_types": [kind]}, target={"topic": shop.topics()[0]})
    url = shop.workers[0].url
    return {
        "now": f"{url}/",
        "history": f"{url}/history",
        "replay": f"{url}/replays/{done}",
        "failed": f"{url}/replays/{failed}",
        "new": f"{url}/new?again={done}",
    }


def wait_for_view(page: Page, view: str) -> None:
    """Wait until a view shows what it is to show."""
    wait_until_live(page)
    sign = {
        "now": "article",
        "history": "table.history tbody tr",
        "replay": ".timeline li",
        "failed": ".timeline li",
        "new": ".sample",
    }[view]
    expect(page.locator(sign).first).to_be_visible(timeout=SLOW_MS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    browser: Browser, addresses: dict[str, str], view: str, size: dict[str, int], scheme: str
) -> None:
    with opened(browser, addresses[view], viewport=size, color_scheme=scheme) as page:
        wait_for_view(page, view)
        assert_accessible(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


def test_axe_finds_nothing_in_dialogs(browser: Browser, addresses: dict[str, str]) -> None:
    with opened(browser, addresses["failed"]) as page:
        wait_for_view(page, "failed")
        page.locator(".replay-head").get_by_role("button", name="Show event").click()
        expect(page.locator("dialog .sample")).to_be_visible(timeout=SLOW_MS)
        assert_accessible(page)
        page.keyboard.press("Escape")
        page.locator(".replay-head").get_by_role("button", name="Cancel").click()
        assert_accessible(page)


def test_who_wants_less_motion_gets_none(browser: Browser, addresses: dict[str, str]) -> None:
    seconds = "getComputedStyle(document.querySelector('top-bar .button')).transitionDuration"
    for motion, expected in (("reduce", "0s"), ("no-preference", "0.1s, 0.1s")):
        with opened(browser, addresses["now"], reduced_motion=motion) as page:
            wait_until_live(page)
            assert page.evaluate(seconds) == expected


def test_the_views_have_addresses_and_back_and_forward_work(
    browser: Browser, addresses: dict[str, str]
) -> None:
    with opened(browser, addresses["now"]) as page:
        heading = page.get_by_role("heading", level=1)
        visited = []
        for link, title in (("History", "History"), ("New replay", "New replay"), ("Now", "Now")):
            page.get_by_role("banner").get_by_role("link", name=link).click()
            expect(heading).to_have_text(title)
            expect(heading).to_be_focused()
            expect(page).to_have_title(f"{title} · Replays")
            visited.append(page.url)
        page.go_back()
        expect(heading).to_have_text("New replay")
        page.go_back()
        expect(heading).to_have_text("History")
        page.go_forward()
        expect(page).to_have_url(visited[1])
        page.reload()
        expect(heading).to_have_text("New replay")
    base = addresses["now"]
    assert visited == [f"{base}history", f"{base}new", base]


def test_everything_can_be_done_by_keyboard(shop: Cluster, page: Page) -> None:
    """Start a replay, pause it and cancel it without a pointer."""
    press = page.keyboard.press

    def tab_to(name: str, role: str = "button") -> None:
        wanted = page.get_by_role(role, name=re.compile(f"^{name}")).first  # type: ignore[arg-type]
        expect(wanted).to_be_visible(timeout=SLOW_MS)
        for _ in range(120):
            if wanted.evaluate("one => one === document.activeElement"):
                outline = wanted.evaluate("one => getComputedStyle(one).outlineStyle")
                assert outline == "solid", f"the focus on {name} cannot be seen"
                return
            press("Tab")
        raise AssertionError(f"Tab does not reach {name}")

    press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab_to("New replay", "link")
    press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("New replay")
    tab_to("From", "textbox")
    page.keyboard.type("2026-01-01")
    tab_to("Until", "textbox")
    page.keyboard.type("2026-02-01T00:00Z")
    tab_to("Prefix", "textbox")
    press("Control+A")
    page.keyboard.type(shop.target_prefix)
    name = unique_name("by keyboard")
    tab_to("Name", "textbox")
    page.keyboard.type(name)
    tab_to("Rate", "spinbutton")
    page.keyboard.type("20")
    expect(page.locator(".matched")).to_have_text(re.compile(r"1,\d+ events"), timeout=SLOW_MS)
    tab_to("Start")
    press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(name, timeout=SLOW_MS)
    replay_id = page.url.rpartition("/")[2]
    shop.wait_for(replay_id, "running")
    tab_to("Pause")
    press("Enter")
    shop.wait_for(replay_id, "paused")
    tab_to("Cancel")
    press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Keep it")).to_be_focused()
    press("Tab")
    press("Enter")
    shop.wait_for(replay_id, "cancelled")


def test_without_its_worker_the_page_keeps_what_it_knows_and_recovers(
    browser: Browser, cluster: Cluster
) -> None:
    cluster.seed(SHOP_EVENTS)
    worker = cluster.start_worker().wait_until_ready()
    with opened(browser, worker.url, refused=True) as page:
        wait_until_live(page)
        cluster.command("r", rate=SHOP_EVENTS / 600, filter=SHOP_HISTORY)
        card = page.get_by_role("article", name="r", exact=True)
        expect(card.locator(".state")).to_have_text("running", timeout=SLOW_MS)
        page.evaluate("window.isSame = true")
        worker.kill()
        expect(page.locator("#connection")).to_have_attribute("data-kind", "away", timeout=SLOW_MS)
        stale = page.locator("#stale")
        expect(stale).to_contain_text(re.compile(r"As of \d\d:\d\d:\d\d CES?T: "))
        expect(card).to_be_visible()
        assert page.evaluate("getComputedStyle(document.querySelector('main')).filter") == (
            "grayscale(1)"
        )
        cluster.start_worker(0).wait_until_ready()
        wait_until_live(page)
        expect(stale).to_be_hidden()
        before = card.locator(".progress b").text_content() or ""
        expect(card.locator(".progress b")).not_to_have_text(before, timeout=SLOW_MS)
        assert page.evaluate("window.isSame")
    cluster.command("r", "cancel")
    cluster.wait_for("r", "cancelled")


def test_when_all_streams_are_taken_the_page_polls(browser: Browser, cluster: Cluster) -> None:
    cluster.seed(10)
    worker = cluster.start_worker().wait_until_ready()
    address = worker.url.removeprefix("http://")
    with ExitStack() as streams:
        for _ in range(Limits.of_this_process().streams):
            connection = http.client.HTTPConnection(address, timeout=60)
            streams.callback(connection.close)
            connection.request("GET", "/events")
            streams.enter_context(connection.getresponse())
        with opened(browser, worker.url, refused=True) as page:
            expect(page.locator("#connection")).to_contain_text("polling", timeout=SLOW_MS)
            cluster.command("r", filter=SHOP_HISTORY, paused=True)
            card = page.get_by_role("article", name="r", exact=True)
            expect(card.locator(".state")).to_have_text("paused", timeout=SLOW_MS)
            streams.close()
            wait_until_live(page)
            expect(card).to_be_visible()


def test_a_wrong_token_is_told_and_the_right_one_lets_in(
    browser: Browser, cluster: Cluster
) -> None:
    tokens = cluster.folder / "tokens.json"
    operator, reader = SECRET_TOKEN + "-of-ana", SECRET_TOKEN + "-of-ben"
    listed = [
        {"name": "ana", "token": operator, "role": "operate"},
        {"name": "ben", "token": reader, "role": "read"},
    ]
    tokens.write_text(json.dumps({"tokens": listed}))
    cluster.environment |= {
        "REPLAY_TOKENS_FILE": str(tokens),
        "REPLAY_WEB_HOST": "127.0.0.1",
        "REPLAY_ENVIRONMENT": "prod",
    }
    cluster.seed(10)
    worker = cluster.start_worker().wait_until_ready()
    cluster.command("r", filter=SHOP_HISTORY, paused=True)
    with opened(browser, worker.url, refused=True) as page:
        field = page.get_by_label("API token")
        expect(field).to_be_focused()
        field.fill("wrong")
        field.press("Enter")
        expect(page.get_by_text("The worker does not know this token.")).to_be_visible()
        expect(field).to_be_focused()
        assert_accessible(page)
        field.fill(reader)
        field.press("Enter")
        wait_until_live(page)
        expect(field).to_be_hidden()
        bar = page.get_by_role("banner")
        expect(bar).to_contain_text("ben, read only")
        badge = bar.locator(".environment")
        expect(badge).to_have_text("prod")
        expect(badge).to_have_css("background-color", "rgb(179, 32, 26)")
        expect(bar).to_contain_text(f"{cluster.name}.events")
        expect(bar).to_contain_text("1 worker")
        card = page.get_by_role("article", name="r", exact=True)
        expect(card).to_be_visible()
        expect(card.locator(".buttons button:visible")).to_have_count(0)
        expect(bar.get_by_role("link", name="New replay")).to_be_hidden()

        bar.get_by_role("button", name="Token").click()
        page.get_by_label("API token").fill(operator)
        page.keyboard.press("Enter")
        expect(bar.locator(".you")).to_have_text("ana")
        expect(bar.get_by_role("link", name="New replay")).to_be_visible()
        card.get_by_role("button", name="Cancel").click()
        page.get_by_role("button", name="Cancel the replay").click()
        expect(card.locator(".state")).to_have_text("cancelled", timeout=SLOW_MS)


def test_only_the_files_of_the_console_are_served(worker: Worker) -> None:
    for name in ("main.js", "style.css", "icon.svg"):
        assert worker.request("GET", f"/static/{name}")[0] == 200
    for name in ("index.html", "..%2fviews.py", "app.js", ""):
        assert worker.request("GET", f"/static/{name}")[0] == 404
