"""Takes the pictures of the console in the README and the documents: ``make screenshots``.

Starts a broker, a store and a worker, fills the store with the shop's history, and lets some
replays run into what there is to see. The pictures go into ``docs/images``.
"""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from pathlib import Path
from typing import Any

from console import DESKTOP, PHONE, chromium, opened, wait_until_live
from playwright.sync_api import Browser, Page, expect
from support import create_topics, wait_until
from workers import SHOP_HISTORY, Cluster

from replay_app.demo.shop import SHOP_TOPICS
from replay_app.demo.stack import Stack

FOLDER = Path(__file__).parents[1] / "docs" / "images"
EVENTS = 3_000
WAIT_MS = 120_000
MAX_BYTES = 200_000
"""Of a picture."""
LOOK_READ = 400
"""Events that the replay of the pictures has read, so that its charts have a shape."""


class Shop(Cluster):
    """A shop whose replays go to topics with the prefix ``rebuild.``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "shop"
        self.target_prefix = "rebuild."
        self.environment |= {"REPLAY_MONGO_DATABASE": "shop", "REPLAY_ENVIRONMENT": "staging"}

    def fill(self) -> None:
        """Store the history, with one event that cannot be replayed, and create the topics."""
        self.seed(EVENTS)
        create_topics(self.stack.kafka, dict.fromkeys(SHOP_TOPICS, 3))
        at = dt.datetime(2026, 1, 21, 9, 30, tzinfo=dt.UTC)
        bad = {"_id": "bad", "event_id": "7f3a-broken", "event_type": "order_moved"}
        self.insert([{**bad, "aggregate_id": ["o-1"], "topic": "shop.orders", "timestamp": at}])

    def run_replays(self) -> None:
        """Start replays, and wait until each has got where the pictures show it."""
        orders = {"event_types": ["order_placed", "order_paid"], **SHOP_HISTORY}
        shipping = {"event_types": ["shipment_created", "shipment_delivered"]}
        moved = {"event_types": ["order_moved", "order_completed"]}

        def start(replay_id: str, name: str, by: str, **members: Any) -> None:
            self.command(replay_id, "start", name=name, requested_by=by, **members)

        start("feed-test", "Feed the test environment", "cleo", filter=orders)
        start("try-search", "Would the search index fit?", "ben", filter=SHOP_HISTORY, dry_run=True)
        start("nightly", "Nightly refresh", "cron", filter=moved, on_error="skip")
        start("wrong", "Customers to the lake", "ben", target={"topic": "lake.customers"})
        start("history-360", "Customer 360 projection", "dora", filter=moved)
        start("shipping", "Shipping view", "ana", filter=shipping, rate=40)
        for replay_id in ("feed-test", "try-search", "nightly", "wrong", "history-360"):
            self.wait_for(replay_id)
        wait_until(lambda: self.has_read("shipping", 60), 120)
        self.command("shipping", "pause", requested_by="ana")
        views = {
            "customers": {"rate": 5},
            "orders": {"after": ["customers"]},
            "billing": {"after": ["customers"]},
            "search": {"after": ["orders", "billing"]},
        }
        defaults = {"filter": SHOP_HISTORY, "target": {"prefix": "rebuild."}, "max_events": 500}
        chain = {"chain": "views", "defaults": defaults, "replays": views}
        assert self.workers[0].request("POST", "/chains", chain)[0] == 202
        start(
            "orders-view",
            "Rebuild the orders view",
            "ana",
            reason="the view has lost an index",
            filter=SHOP_HISTORY,
            rate=20,
            consumers=["orders-view"],
        )
        wait_until(lambda: self.has_read("orders-view", LOOK_READ // 2), 120)
        self.command("orders-view", "set-rate", rate=30, requested_by="eve")
        wait_until(lambda: self.has_read("orders-view", LOOK_READ), 120)


def fill_in(page: Page) -> None:
    """Fill the form of a new replay, and wait for its plan."""
    page.get_by_label("From").fill("2026-01-10")
    page.get_by_label("order_placed").check()
    page.get_by_label("order_paid").check()
    page.get_by_label("Name", exact=True).fill("Orders since the tenth")
    expect(page.locator(".sample").first).to_be_visible(timeout=WAIT_MS)
    page.get_by_role("heading", level=1).focus()


def wait_for_charts(page: Page) -> None:
    expect(page.locator("svg.chart").first).to_be_visible(timeout=WAIT_MS)
    expect(page.locator(".timeline li").first).to_be_visible(timeout=WAIT_MS)


def wait_for_cards(page: Page) -> None:
    expect(page.locator("svg.spark:visible").first).to_be_visible(timeout=WAIT_MS)
    page.wait_for_timeout(2_000)  # the last lines of the other cards


def wait_for_rows(page: Page) -> None:
    expect(page.locator("table.history tbody tr").nth(8)).to_be_visible(timeout=WAIT_MS)


PICTURES = {
    "now": ("/", wait_for_cards),
    "history": ("/history", wait_for_rows),
    "replay": ("/replays/orders-view", wait_for_charts),
    "new": ("/new", fill_in),
}


def take(browser: Browser, url: str) -> None:
    """Take each picture on a desktop in light colours, and on a phone in dark ones."""
    for name, (path, prepare) in PICTURES.items():
        for size, scheme in ((DESKTOP, "light"), (PHONE, "dark")):
            with opened(browser, url + path, viewport=size, color_scheme=scheme) as page:
                wait_until_live(page)
                prepare(page)
                file = FOLDER / f"console-{name}-{size['width']}.png"
                page.screenshot(path=file, animations="disabled")
                assert file.stat().st_size < MAX_BYTES, f"{file} has {file.stat().st_size} bytes"
                print(file, file.stat().st_size, "bytes")


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="screenshots-"))
    with Stack.start() as stack:
        shop = Shop(stack, folder)
        try:
            shop.fill()
            worker = shop.start_worker().wait_until_ready()
            shop.run_replays()
            with chromium() as browser:
                take(browser, worker.url)
        finally:
            shop.close()
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
