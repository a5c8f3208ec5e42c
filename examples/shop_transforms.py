"""Transforms for the shop of the demo; docs/transforms.md explains each.

Point the workers to them::

    export PYTHONPATH=examples
    export REPLAY_TRANSFORMS='{"upcast": "shop_transforms:upcast", "avro": "shop_transforms:avro"}'
    replay-app start --event-type order_placed --transform upcast --transform avro --prefix new.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import fastavro
from pydantic import BaseModel

from replay_app.transforms import DROP, EventContext, Output

Document = dict[str, Any]


def no_tests(event: Document, _context: EventContext) -> Any:
    """Leave out the orders of test customers."""
    return DROP if event.get("customer", "").endswith("@example.test") else event


# Upcasters, by type and version: each brings an event to the next version.


def _order_placed_1(event: Document) -> Document:
    """Version 2 has the amount as whole cents."""
    amount = event.pop("amount")
    return {**event, "version": 2, "amount_cents": round(float(amount) * 100)}


UPCASTERS: dict[tuple[str, int], Callable[[Document], Document]] = {
    ("order_placed", 1): _order_placed_1,
}


def upcast(event: Document, context: EventContext) -> Document:
    """Bring an event to the newest version of its type."""
    while True:
        upcaster = UPCASTERS.get((context.event_type, event.get("version", 1)))
        if upcaster is None:
            return event
        event = upcaster(event)


# A model: an event that does not fit fails, and the replay's on_error decides.


class OrderPlaced(BaseModel):
    """An order of version 2."""

    event_id: str
    aggregate_id: str
    version: int
    amount_cents: int


def checked(event: Document, context: EventContext) -> Document:
    """Require that an order fits its model. An event of another type passes."""
    if context.event_type == "order_placed":
        OrderPlaced.model_validate(event)
    return event


# Avro, in the framing of schema registries: a zero, the id of the schema in four bytes, the data.

SCHEMA_ID = 7
"""The id that the registry has given to the schema."""
SCHEMA = fastavro.parse_schema(
    {
        "type": "record",
        "name": "OrderPlaced",
        "fields": [
            {"name": "event_id", "type": "string"},
            {"name": "aggregate_id", "type": "string"},
            {"name": "amount_cents", "type": "long"},
        ],
    }
)


def avro(event: Document, _context: EventContext) -> Output:
    """Give the value as Avro. Fields that the schema does not have are left out."""
    out = io.BytesIO()
    out.write(struct.pack(">bI", 0, SCHEMA_ID))
    fastavro.schemaless_writer(out, SCHEMA, event)
    return Output(value=out.getvalue())
