"""The shop's two views: a Faust application with RocksDB tables.

`orders` has a row for each order, made from the events of the topic ``shop.orders``. Each change of
an order goes to the view `customers`, which also reads ``shop.customers``.

One program does three jobs, as its environment says:

- It keeps the views live (``VIEWS_REPLAYS`` is empty).
- It builds the views from the replays of a chain (``VIEWS_REPLAYS=rebuild-shop``): it reads the
  topics ``rebuild.shop.*`` and takes only the events of these replays.
- After the hand-over it goes on live with the tables that the replays have built. This is the first
  job again, under the same ``VIEWS_GROUP`` and in the same ``VIEWS_FOLDER``.

Faust reads records of aborted transactions too, and delivers records again after a crash. So each
row keeps the ids of the events that have changed it, and an event changes a row once. The same ids
drop the events that come both from the replay and live.

Start it with ``python examples/rebuild/views.py``.
"""

from __future__ import annotations

import os
from decimal import Decimal
from typing import Any

import faust

from replay_app.consumer import ReplayReader, SeenIds, provenance

GROUP = os.environ["VIEWS_GROUP"]
"""The app's name, which is also its consumer group."""
CHAIN = os.environ.get("VIEWS_REPLAYS", "")
PREFIX = "rebuild." if CHAIN else ""
PARTITIONS = 3
"""Of the source topics. Tables and their sources must have the same number."""
EVENTS_OF_A_ROW = 100
"""How many event ids a row keeps. An order has four events; a customer moves a few times."""

app = faust.App(
    GROUP,
    broker=f"kafka://{os.environ['VIEWS_KAFKA']}",
    store="rocksdb://",
    datadir=os.environ["VIEWS_FOLDER"],
    web_port=int(os.environ["VIEWS_PORT"]),
    web_bind="127.0.0.1",
    key_serializer="raw",
    value_serializer="json",
    topic_partitions=PARTITIONS,
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    # Faust's commits get over one transaction each (docs/faust.md), and the chain waits for them.
    broker_commit_interval=0.2,
)
ROCKSDB = {  # small: Faust's defaults take gigabytes
    "driver": "rocksdict",
    "write_buffer_size": 4 << 20,
    "max_write_buffer_number": 2,
    "block_cache_size": 16 << 20,
}


def _table(name: str) -> Any:
    return app.Table(name, key_type=bytes, partitions=PARTITIONS, options=ROCKSDB)


def _topic(name: str) -> Any:
    return app.topic(name, key_type=bytes, value_serializer="json", partitions=PARTITIONS)


orders = _table("orders")
customers = _table("customers")
ends = _table("ends")
"""The state of the `ReplayReader` of each source partition that has had a control record."""
order_events = _topic(f"{PREFIX}shop.orders")
customer_events = _topic(f"{PREFIX}shop.customers")
order_changes = _topic(f"{GROUP}-order-changes")
corrections = _topic(f"{GROUP}-corrections")
"""Rows that an operator sets by hand: key and new row, or null. `corrupt.py` misuses this topic."""


@app.agent(order_events, name="orders")
async def project_orders(stream: Any) -> None:
    """Keep one row for each order, and pass each change on to the customers."""
    async for event in stream.events():
        if not is_for_the_views(event, "orders"):
            continue
        order_id, happened = event.key, event.value
        row = orders.get(order_id) or {"version": 0, "events": 0, "seen": []}
        if is_first_time(row, happened):
            row["events"] += 1
            if happened["version"] > row["version"]:  # late events come out of order
                row["version"] = happened["version"]
                row["status"] = happened["event_type"]
                row["customer"] = happened["data"]["customer_id"]
                row["total"] = happened["data"]["total"]
            orders[order_id] = row
        # Also for an event that was seen before: the process may have died before it sent this.
        change = {"order": order_id.decode(), **{name: row[name] for name in ORDER_MEMBERS}}
        await order_changes.send(key=row["customer"].encode(), value=change)


@app.agent(order_changes, name="changes")
async def project_changes(stream: Any) -> None:
    """Keep the newest state of each order in the row of its customer."""
    async for event in stream.events():
        change = event.value
        row = customers.get(event.key) or new_customer()
        known = row["orders"].get(change["order"])
        if known is None or change["events"] > known["events"]:
            row["orders"][change["order"]] = change
            customers[event.key] = row


@app.agent(customer_events, name="customers")
async def project_customers(stream: Any) -> None:
    """Keep name and street of each customer."""
    async for event in stream.events():
        if not is_for_the_views(event, "customers"):
            continue
        row, happened = customers.get(event.key) or new_customer(), event.value
        if is_first_time(row, happened):
            row["events"] += 1
            if happened["version"] > row["version"]:
                row["version"] = happened["version"]
                row["name"] = happened["data"]["address"]["name"]
                row["street"] = happened["data"]["address"]["street"]
            customers[event.key] = row


@app.agent(corrections, name="corrections")
async def correct(stream: Any) -> None:
    """Set or remove rows by hand."""
    async for event in stream.events():
        table = {"orders": orders, "customers": customers}[event.value["view"]]
        if event.value["row"] is None:
            table.pop(event.key, None)
        else:
            table[event.key] = event.value["row"]


ORDER_MEMBERS = ("status", "customer", "total", "version", "events")


def new_customer() -> dict[str, Any]:
    """Return the row of a customer of whom nothing is known yet."""
    return {"version": 0, "events": 0, "seen": [], "name": None, "street": None, "orders": {}}


def is_first_time(row: dict[str, Any], event: dict[str, Any]) -> bool:
    """Note the event's id in the row; return whether the event has not changed the row yet."""
    seen = SeenIds(EVENTS_OF_A_ROW, row["seen"])
    is_new = seen.add(event["event_id"])
    row["seen"] = seen.state()
    return is_new


def is_for_the_views(event: Any, replay: str) -> bool:
    """Return whether a record is an event of the source that is read now: replay or live."""
    record = event.message
    if not CHAIN:
        return provenance(record.headers) is None
    place = f"{record.topic}/{record.partition}".encode()
    saved = ends.get(place)
    # A reader for each partition, because a Faust worker may get any of them at any time.
    reader = (
        ReplayReader.from_state(saved)
        if saved
        else ReplayReader(f"{CHAIN}.{replay}", [(record.topic, record.partition)])
    )
    kind = reader.take(record.topic, record.partition, record.offset, record.headers)
    if kind in {"begin", "end", "cancelled"}:
        ends[place] = reader.state()
    return kind == "event"


# What the shop's other programs ask for


@app.page("/views")
async def show_views(view: Any, _: Any) -> Any:
    """Answer all rows of both views."""
    return view.json(
        {
            "orders": {key.decode(): public_order(row) for key, row in orders.items()},
            "customers": {key.decode(): public_customer(row) for key, row in customers.items()},
        }
    )


@app.page("/replay")
async def show_replay(view: Any, _: Any) -> Any:
    """Answer by source partition whether the replay is complete there."""
    readers = {place.decode(): ReplayReader.from_state(state) for place, state in ends.items()}
    return view.json(
        {
            place: reader.open.isdisjoint(reader.next_offsets) and not reader.is_cancelled
            for place, reader in readers.items()
        }
    )


def public_order(row: dict[str, Any]) -> dict[str, Any]:
    """Return what others see of an order."""
    return {name: row.get(name) for name in ("status", "customer", "total", "events")}


def public_customer(row: dict[str, Any]) -> dict[str, Any]:
    """Return what others see of a customer."""
    done = [one for one in row["orders"].values() if one["status"] == "order_completed"]
    return {
        **{name: row[name] for name in ("name", "street", "events")},
        "orders": len(row["orders"]),
        "spent": str(sum((Decimal(one["total"]) for one in done), Decimal(0))),
    }


if __name__ == "__main__":
    app.main()
