"""The console's form for a new replay, with its plan, in a real browser."""

from __future__ import annotations

import json
import re

import pytest
from console import SLOW_MS, opened, wait_until_live
from playwright.sync_api import Browser, Page, expect
from support import create_topics, unique_name
from workers import SHOP_EVENTS, Cluster, Worker, events_of


@pytest.fixture
def form(page: Page) -> Page:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("banner").get_by_role("link", name="New replay").click()
    expect(page.get_by_text("rare types may be missing")).to_be_visible(timeout=SLOW_MS)
    return page


def copied(page: Page) -> str:
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def start_button(page: Page) -> str | None:
    button = page.get_by_role("button", name=re.compile("^Start"))
    return button.get_attribute("aria-disabled")


def test_a_plan_comes_by_itself_and_is_run_dry(shop: Cluster, form: Page) -> None:
    expect(form.get_by_text("Choose the events")).to_be_visible()
    assert start_button(form) == "true"
    form.get_by_label("order_placed").check()
    form.get_by_label("From").fill("2026-01-01")
    expect(form.get_by_text("1 Jan 00:00:00 CET (2025-12-31 23:00:00 UTC)")).to_be_visible()
    form.get_by_label("Until").fill("2026-02-01T00:00Z")
    form.get_by_label("Prefix", exact=True).fill(shop.target_prefix)
    placed = len(shop.stored({"event_type": "order_placed"}))
    matched = form.locator(".matched")
    expect(matched).to_have_text(f"{placed} events, to 1 topic", timeout=SLOW_MS)
    topics = form.get_by_role("group", name="Topics that get events")
    expect(topics).to_contain_text(f"{shop.target_prefix}shop.orders")
    expect(form.locator(".sample")).to_have_count(3)
    expect(form.locator(".sample").first).to_contain_text('"order_placed"')
    expect(form.get_by_text("No group reads these topics.")).to_be_visible()

    form.get_by_label("Name", exact=True).fill("Try the orders")
    expect(matched).to_have_text(f"{placed} events, to 1 topic", timeout=SLOW_MS)
    form.get_by_role("button", name="Copy JSON").click()
    expect(form.get_by_role("button", name="Copied")).to_be_visible()
    body = json.loads(copied(form))
    assert body == {
        "name": "Try the orders",
        "filter": {
            "start": "2025-12-31T23:00:00.000Z",
            "end": "2026-02-01T00:00:00.000Z",
            "event_types": ["order_placed"],
        },
        "target": {"prefix": shop.target_prefix},
    }
    form.get_by_role("button", name="Dry run").click()
    expect(form.get_by_role("heading", level=1)).to_have_text("Try the orders", timeout=SLOW_MS)
    session = shop.wait_for(form.url.rpartition("/")[2], "completed")
    assert session["start"]["dry_run"]
    assert session["counters"]["read"] == placed


def test_fields_are_conditions_of_their_stored_type(shop: Cluster, form: Page) -> None:
    form.get_by_role("button", name="Add a condition").click()
    expect(form.get_by_label("Field")).to_be_focused()
    form.get_by_label("Field").fill("version")
    expect(form.locator(".condition .note").filter(has_text="such as")).to_be_visible()
    form.get_by_label("Condition").select_option("≥")
    form.get_by_label("Value").fill("3")
    form.get_by_role("button", name="Add a condition").click()
    form.get_by_label("Field").last.fill("service")
    form.get_by_label("Value").last.fill("orders")
    form.get_by_label("Prefix", exact=True).fill(shop.target_prefix)
    number = len(shop.stored({"version": {"$gte": 3}, "service": "orders"}))
    assert 0 < number < SHOP_EVENTS
    expect(form.locator(".matched")).to_contain_text(f"{number} event", timeout=SLOW_MS)
    form.get_by_role("button", name="Copy JSON").click()
    expect(form.get_by_role("button", name="Copied")).to_be_visible()
    fields = json.loads(copied(form))["filter"]["fields"]
    assert fields == {"version": {"gte": 3}, "service": "orders"}
    form.get_by_role("button", name="Remove").first.click()
    expect(form.get_by_label("Field")).to_have_count(1)


def test_missing_topics_are_named_with_the_command_that_creates_them(
    browser: Browser, worker: Worker
) -> None:
    missing = unique_name("missing") + "."
    with opened(browser, f"{worker.url}/new", refused=True) as page:
        wait_until_live(page)
        # One type: other tests have stored events for other topics, and a message names a few only.
        page.get_by_role("textbox", name="Event types").fill("order_placed")
        page.keyboard.press("Enter")
        page.get_by_label("Prefix", exact=True).fill(missing)
        problem = page.locator(".plan .notice")
        expect(problem).to_contain_text(f"{missing}shop.orders", timeout=SLOW_MS)
        expect(page.get_by_label("The command that creates")).to_contain_text(
            re.compile(rf"topics --create-destinations --execute.*--prefix {missing}", re.DOTALL)
        )
        assert start_button(page) == "true"


def test_what_cannot_be_read_is_not_planned(form: Page) -> None:
    form.get_by_label("From").fill("the day before")
    expect(form.get_by_text("no time that can be read")).to_be_visible()
    expect(form.get_by_label("From")).to_have_attribute("aria-invalid", "true")
    form.get_by_label("From").fill("2h ago")
    expect(form.get_by_label("From")).not_to_have_attribute("aria-invalid", "true")
    form.get_by_text("Everything else").click()
    form.get_by_label("Further members").fill("{")
    expect(form.get_by_text("The further members are no JSON object.")).to_be_visible()
    assert start_button(form) == "true"


def test_live_topics_are_reached_only_after_their_name_is_typed(shop: Cluster, form: Page) -> None:
    kind, live = unique_name("live"), unique_name("live-topic")
    create_topics(shop.stack.kafka, {live: 1})
    shop.insert(events_of(kind, 4, topic=live))
    form.get_by_role("textbox", name="Event types").fill(kind)
    form.keyboard.press("Enter")
    form.get_by_label("The LIVE topics of the events").check()
    expect(form.locator(".matched")).to_have_text("4 events, to 1 topic", timeout=SLOW_MS)
    expect(form.get_by_role("group", name="Topics that get events")).to_contain_text("LIVE")
    assert start_button(form) == "true"
    name = form.get_by_label("To start, type the name of the topic")
    name.fill("another-topic")
    assert start_button(form) == "true"
    name.fill(live)
    expect(form.get_by_role("button", name="Start to LIVE topics")).not_to_have_attribute(
        "aria-disabled", "true"
    )
    form.get_by_role("button", name="Start to LIVE topics").click()
    expect(form.get_by_role("heading", level=1)).not_to_have_text("New replay", timeout=SLOW_MS)
    session = shop.wait_for(form.url.rpartition("/")[2], "completed")
    assert session["start"]["to_original"]
    assert session["counters"]["published"] == 4


def test_where_live_topics_are_forbidden_they_are_not_offered(
    browser: Browser, cluster: Cluster
) -> None:
    cluster.seed(10)
    worker = cluster.start_worker(None, REPLAY_ALLOW_ORIGINAL="false").wait_until_ready()
    with opened(browser, f"{worker.url}/new") as page:
        wait_until_live(page)
        expect(page.get_by_text("forbids replays to live topics")).to_be_visible()
        expect(page.get_by_label("The LIVE topics of the events")).to_be_hidden()
        page.get_by_label("Every event of the collection").check()
        page.get_by_label("Prefix", exact=True).fill(cluster.target_prefix)
        expect(page.locator(".matched")).to_contain_text("10 events", timeout=SLOW_MS)
