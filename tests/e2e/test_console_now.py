"""The console's view of what is under way, of a real worker, in a real browser."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import pytest
from console import SLOW_MS, opened, wait_until_live
from playwright.sync_api import Browser, Locator, Page, Route, expect
from store_proxy import slow_store
from support import unique_name
from workers import SHOP_EVENTS, SHOP_HISTORY, Cluster, Worker, events_of

BUTTONS = ".buttons button:visible"


def card_of(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def run_slowly(cluster: Cluster, **members: Any) -> str:
    """Start a replay that would take a minute, and return its id once it runs."""
    replay_id = unique_name("r")
    defaults: dict[str, Any] = {"rate": SHOP_EVENTS / 60, "requested_by": "ana"}
    defaults |= {"filter": SHOP_HISTORY}
    cluster.command(replay_id, "start", **defaults | members)
    cluster.wait_for(replay_id, "running")
    return replay_id


def cancel(cluster: Cluster, replay_id: str) -> None:
    cluster.command(replay_id, "cancel")
    cluster.wait_for(replay_id, "cancelled")


def test_a_card_says_where_a_replay_is_and_what_limits_it(shop: Cluster, page: Page) -> None:
    replay_id = run_slowly(shop, name="Orders view")
    shop.wait_for(replay_id, "running", matched=SHOP_EVENTS)
    card = page.get_by_role("article").filter(has_text=replay_id)
    expect(card.locator(".state")).to_have_text("running")
    expect(card.get_by_role("heading")).to_contain_text("Orders view")
    expect(card.locator(".target")).to_have_text(f"to {shop.target_prefix}*, 5 topics")
    counts = re.compile(rf"[\d,]+ of {SHOP_EVENTS:,} · [\d.]+ %")
    expect(card).to_contain_text(counts, timeout=SLOW_MS)
    expect(card).to_contain_text(re.compile(r"at \d+ Jan \d\d:\d\d of 1 Feb 01:00"))
    expect(card).to_contain_text(re.compile(r"Events/s\s*\d+(\.\d)? of at most 20"))
    expect(card).to_contain_text("Limited bythe rate, 20/s")
    expect(card.locator(".left")).to_contain_text("left", timeout=SLOW_MS)
    expect(card.get_by_role("progressbar")).to_be_visible()
    spark = card.get_by_role("img", name=re.compile(r"Events a second: now \d+.*, at most 20"))
    expect(spark).to_be_visible(timeout=SLOW_MS)
    expect(spark.locator(".cap")).not_to_have_attribute("visibility", "hidden")
    cancel(shop, replay_id)


def test_a_replay_is_controlled_by_its_buttons(shop: Cluster, page: Page) -> None:
    replay_id = run_slowly(shop)
    card = card_of(page, replay_id)
    state, buttons = card.locator(".state"), card.locator(BUTTONS)
    expect(buttons).to_have_text(["Pause", "Cancel…"])
    card.get_by_role("button", name="Pause").click()
    expect(state).to_have_text("paused")
    expect(page.locator("#announcement")).to_contain_text(f"{replay_id} is paused")
    expect(buttons).to_have_text(["Resume", "Step…", "Cancel…"])

    published = shop.wait_for(replay_id, "paused")["counters"]["published"]
    card.get_by_role("button", name="Step").click()
    page.get_by_label("Events, then pause again").fill("7")
    page.get_by_role("dialog").get_by_role("button", name="Step").click()
    expect(card.locator(".progress b")).to_contain_text(f"{published + 7:,} ", timeout=SLOW_MS)
    expect(state).to_have_text("paused")

    card.get_by_role("button", name="Resume").click()
    expect(state).to_have_text("running")
    card.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(state).to_have_text("running")
    card.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the replay").click()
    expect(state).to_have_text("cancelled")
    expect(buttons).to_have_count(0)


def test_a_failed_replay_goes_on_without_the_event_that_stopped_it(
    shop: Cluster, page: Page
) -> None:
    kind, topic = unique_name("odd"), shop.topics()[0]
    events = events_of(kind, 6)
    events[3] |= {"event_id": f"{kind}-it's", "aggregate_id": [1]}
    shop.insert(events)
    failed, running = unique_name("failed"), run_slowly(shop)
    shop.command(failed, filter={"event_types": [kind]}, target={"topic": topic})
    shop.wait_for(failed, "failed")
    card = card_of(page, failed)
    expect(card.locator(".state")).to_have_text("failed")
    order = page.get_by_role("article").evaluate_all("all => all.map((one) => one.ariaLabel)")
    assert order.index(failed) < order.index(running)
    why = card.locator(".why")
    expect(why).to_contain_text(f"{kind}-it's")
    line = float(why.evaluate("one => parseFloat(getComputedStyle(one).lineHeight)"))
    assert (why.bounding_box() or {"height": 0})["height"] < 2 * line
    expect(card.locator(BUTTONS)).to_have_text(
        ["Retry", "Retry and skip this event", "Show event", "Cancel…"]
    )

    card.get_by_role("button", name="Show event").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"{kind}-it's")
    expect(dialog).to_contain_text("which has no text form")
    expect(dialog).to_contain_text(f"replay-app events --event-id '{kind}-it'\\''s'")
    expect(dialog.locator(".sample")).to_contain_text("which has no text form", timeout=SLOW_MS)
    expect(dialog.locator("pre.document")).to_contain_text(f'"event_type": "{kind}"')
    page.keyboard.press("Escape")
    expect(card.get_by_role("button", name="Show event")).to_be_focused()

    card.get_by_role("button", name="Retry and skip this event").click()
    session = shop.wait_for(failed, "completed_with_errors", "completed")
    assert session["counters"]["published"] == len(events) - 1
    expect(card.locator(".state")).to_have_text("completed with errors")
    cancel(shop, running)


def test_a_missing_topic_gives_no_event_to_skip(shop: Cluster, page: Page) -> None:
    replay_id, missing = unique_name("r"), unique_name("not-there")
    shop.command(replay_id, target={"topic": missing})
    shop.wait_for(replay_id, "failed")
    card = card_of(page, replay_id)
    expect(card.locator(".why")).to_contain_text(missing)
    expect(card.locator(BUTTONS)).to_have_text(["Retry", "Cancel…"])
    expect(card.get_by_role("progressbar")).to_be_hidden()  # nothing is known, and that is no zero
    cancel(shop, replay_id)


def test_only_the_verbs_that_the_worker_names_have_a_button(
    browser: Browser, shop: Cluster, worker: Worker
) -> None:
    replay_id = run_slowly(shop)

    def finish(route: Route) -> None:
        answer = route.fetch()
        listed = answer.json()
        for session in listed["replays"]:
            if session["replay_id"] == replay_id:
                assert session["verbs"] == ["pause", "cancel", "set-rate"]
                session |= {"finishing": True, "verbs": ["set-rate"]}
        route.fulfill(response=answer, json=listed)

    with opened(browser, worker.url) as page:
        wait_until_live(page)
        buttons = card_of(page, replay_id).locator(BUTTONS)
        expect(buttons).to_have_text(["Pause", "Cancel…"])
    with opened(browser, worker.url, refused=True, prepare=polling(finish)) as page:
        card = card_of(page, replay_id)
        expect(card).to_be_visible()
        expect(card.locator(BUTTONS)).to_have_count(0)
        expect(card.locator(".left")).to_have_text("finishing")
        page.unroute_all(behavior="wait")
    cancel(shop, replay_id)


def polling(change: Callable[[Route], None]) -> Callable[[Page], None]:
    """Refuse the stream of the console, so that it polls the list, and change each list."""
    full = {"detail": "64 streams of events are open, as many as a worker has"}

    def prepare(page: Page) -> None:
        page.route(
            "**/events",
            lambda route: route.fulfill(status=503, headers={"Retry-After": "60"}, json=full),
        )
        page.route("**/replays?*", change)

    return prepare


def test_a_dry_run_and_live_topics_are_told_apart_at_a_glance(shop: Cluster, page: Page) -> None:
    kind, live = unique_name("dry"), unique_name("live")
    shop.insert(events_of(kind, 3, topic=live))
    dry, waiting = unique_name("dry"), unique_name("live")
    shop.command(
        dry, dry_run=True, filter={"event_types": [kind]}, target={"topic": live}, paused=True
    )
    shop.command(waiting, filter={"event_types": [kind]}, target={}, paused=True)
    expect(card_of(page, dry).locator(".badge.dry")).to_have_text("DRY")
    expect(card_of(page, dry).locator(".badge.live")).to_have_count(0)
    expect(card_of(page, waiting).locator(".badge.dry")).to_be_hidden()
    expect(card_of(page, waiting).locator(".badge.live")).to_contain_text("LIVE topics")
    cancel(shop, dry)
    cancel(shop, waiting)


def test_a_replay_that_waits_for_others_is_released_by_its_button(
    shop: Cluster, page: Page
) -> None:
    replay_id, parent = unique_name("waiting"), unique_name("never-started")
    shop.command(replay_id, after=[parent], filter=SHOP_HISTORY, dry_run=True)
    card = card_of(page, replay_id)
    expect(card.locator(".state")).to_have_text("waiting", timeout=SLOW_MS)
    expect(card).to_contain_text(f"waiting for replay '{parent}' (unknown)")
    expect(card.locator(BUTTONS)).to_have_text(["Pause", "Release", "Cancel…"])
    card.get_by_role("button", name="Release").click()
    assert shop.wait_for(replay_id, "completed")["released"]


def test_a_refused_command_is_shown(shop: Cluster, page: Page) -> None:
    replay_id = unique_name("r")
    shop.command(replay_id, "resume")
    expect(page.get_by_role("region", name="Refused commands")).to_contain_text(replay_id)


def test_the_focus_stays_while_the_numbers_change_and_when_a_card_goes(
    shop: Cluster, page: Page
) -> None:
    replay_id = run_slowly(shop)
    card = card_of(page, replay_id)
    button = card.get_by_role("button", name="Pause")
    button.focus()
    counts = card.locator(".progress b")
    before = counts.text_content() or ""
    expect(counts).not_to_have_text(before, timeout=SLOW_MS)
    expect(button).to_be_focused()
    other = unique_name("new")  # a failed card comes before this one
    shop.command(other, target={"topic": unique_name("not-there")})
    expect(card_of(page, other)).to_be_visible(timeout=SLOW_MS)
    expect(button).to_be_focused()
    cancel(shop, replay_id)
    expect(button).to_be_hidden()
    expect(card.get_by_role("link", name=replay_id)).to_be_focused()
    expect(card).to_have_count(0, timeout=SLOW_MS)  # it stays for a while, and then goes
    assert page.evaluate("document.activeElement !== document.body")


def test_text_of_strangers_is_shown_as_text_only(shop: Cluster, page: Page) -> None:
    replay_id = unique_name("r")
    evil = "<img src=x onerror=alert(1)>"
    shop.command(
        replay_id, name=evil, requested_by=evil, filter={"event_types": [evil]}, paused=True
    )
    card = page.get_by_role("article").filter(has_text=replay_id)
    expect(card.get_by_role("link")).to_have_text(evil)
    expect(card).to_contain_text(f"By{evil}")
    page.get_by_role("link", name="History").click()
    expect(page.get_by_role("link", name=evil).first).to_be_visible()
    page.goto(page.url.replace("/history", f"/replays/{replay_id}"))
    expect(page.get_by_role("heading", level=1)).to_have_text(evil)
    assert page.locator("main img").count() == 0
    cancel(shop, replay_id)


@pytest.mark.parametrize("width", [1200, 360])
def test_the_buttons_are_in_sight_however_narrow_the_window(
    browser: Browser, shop: Cluster, worker: Worker, width: int
) -> None:
    long = {"name": "n" * 200, "requested_by": "ana.of.a.long.name@example.com"}
    running = run_slowly(shop, **long)
    failed = unique_name("a-replay-with-a-rather-long-name")
    shop.command(failed, target={"topic": unique_name("not-there")}, **long)
    shop.wait_for(failed, "failed")

    def enlarge(route: Route) -> None:
        """Show the figures of a long replay: they need more room than those of the shop."""
        answer = route.fetch()
        listed = answer.json()
        large = {"matched": 10_234_567, "percent": 1.2, "rate": 200_000.0}
        for session in listed["replays"]:
            session |= {**large, "events_per_second": 123_456.7, "eta_seconds": 259_197.0}
        route.fulfill(response=answer, json=listed)

    size = {"width": width, "height": 800}
    with opened(browser, worker.url, refused=True, prepare=polling(enlarge), viewport=size) as page:
        for replay_id, labels in ((running, ("Pause", "Cancel")), (failed, ("Retry", "Cancel"))):
            card = page.get_by_role("article").filter(has_text=replay_id)
            for label in labels:
                button = card.get_by_role("button", name=label)
                button.scroll_into_view_if_needed()
                expect(button).to_be_in_viewport(ratio=1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.unroute_all(behavior="wait")  # an answer may be under way
    cancel(shop, running)


def test_a_replay_shows_where_it_is_before_its_events_are_counted(
    browser: Browser, cluster: Cluster
) -> None:
    cluster.seed(SHOP_EVENTS)
    with slow_store(cluster.stack.mongo, 3, b"$group") as uri:
        worker = cluster.start_worker(None, REPLAY_MONGO=uri).wait_until_ready()
        with opened(browser, worker.url) as page:
            cluster.command("r", rate=SHOP_EVENTS / 60, filter=SHOP_HISTORY)
            card = card_of(page, "r")
            expect(card).to_contain_text("of counting", timeout=SLOW_MS)
            expect(card).to_contain_text(re.compile(r"at \d+ Jan \d\d:\d\d of 1 Feb 01:00"))
            expect(card.locator(".left")).to_have_text("counting the events")
            expect(card).to_contain_text(f"of {SHOP_EVENTS:,}", timeout=SLOW_MS)
        cluster.command("r", "cancel")
        cluster.wait_for("r", "cancelled")


def test_times_are_local_with_utc_on_hover(shop: Cluster, page: Page) -> None:
    replay_id = unique_name("r")
    session = shop.run(replay_id, dry_run=True, filter=SHOP_HISTORY)
    page.goto(f"{page.url}replays/{replay_id}")
    created = dt.datetime.fromisoformat(session["created_at"])
    local = created.astimezone(dt.timezone(dt.timedelta(hours=vienna_hours(created))))
    time = page.get_by_role("region", name="Course").locator("time").first
    expect(time).to_have_text(f"{local.day} {local:%b %H:%M:%S}")
    expect(time).to_have_attribute("title", f"{created:%Y-%m-%d %H:%M:%S} UTC")


def vienna_hours(moment: dt.datetime) -> int:
    """Return how many hours Vienna is ahead of UTC: two in summer, by the rule of 1996."""

    def last_sunday(month: int) -> dt.datetime:
        day = dt.datetime(moment.year, month, 31, 1, tzinfo=dt.UTC)
        return day - dt.timedelta(days=(day.weekday() + 1) % 7)

    return 2 if last_sunday(3) <= moment < last_sunday(10) else 1
