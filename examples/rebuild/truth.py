"""What the views should be, computed from the event store without Kafka and without the views."""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import Any

import pymongo

Views = dict[str, dict[str, Any]]
"""Rows by key, by view: the answer of the path /views."""


def true_views(mongo: str, database: str) -> Views:
    """Return the rows of both views, from all events that are stored now."""
    events: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with pymongo.MongoClient[dict[str, Any]](mongo) as client:
        wanted = {"topic": {"$in": ["shop.orders", "shop.customers"]}}
        for event in client[database]["events"].find(wanted):
            events[event["aggregate_id"]].append(event)
    orders: dict[str, Any] = {}
    customers: dict[str, Any] = {}
    for key, history in events.items():
        last = max(history, key=lambda event: int(event["version"]))
        if key.startswith("o-"):
            orders[key] = {
                "status": last["event_type"],
                "customer": last["data"]["customer_id"],
                "total": str(last["data"]["total"]),
                "events": len(history),
            }
        else:
            address = last["data"]["address"]
            customers[key] = {
                "name": address["name"],
                "street": address["street"],
                "events": len(history),
                "orders": 0,
                "spent": Decimal(0),
            }
    for order in orders.values():
        customer = customers[order["customer"]]
        customer["orders"] += 1
        if order["status"] == "order_completed":
            customer["spent"] += Decimal(order["total"])
    for customer in customers.values():
        customer["spent"] = str(customer["spent"])
    return {"orders": orders, "customers": customers}


def wrong_rows(views: Views, truth: Views) -> dict[str, int]:
    """Return by view how many rows are missing, differ, or should not be there."""
    return {
        view: sum(views[view].get(key) != rows.get(key) for key in views[view].keys() | rows)
        for view, rows in truth.items()
    }


def has_all_of(views: Views | None, truth: Views) -> bool:
    """Return whether the views know at least the events of the truth. The shop may have gone on."""
    return views is not None and all(
        views[view].get(key, {"events": 0})["events"] >= row["events"]
        for view, rows in truth.items()
        for key, row in rows.items()
    )
