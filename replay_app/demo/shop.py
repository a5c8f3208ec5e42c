"""A realistic history to replay: one January of a small shop with five services.

Each order is a story: a sequence of events of several services, such as placed, stock reserved,
paid, shipped. Some hundreds of stories run at the same time, so their events interleave. As in a
real store, events may share a timestamp, texts are not ASCII, and the order of insertion is not the
order of time.
"""

from __future__ import annotations

import datetime as dt
import itertools
import random
import struct
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pymongo
from bson import Decimal128, Int64, ObjectId

SHOP_TOPICS: tuple[str, ...] = (
    "shop.customers",
    "shop.inventory",
    "shop.orders",
    "shop.payments",
    "shop.shipping",
)

JANUARY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MONTH = dt.timedelta(days=31)
MAX_OPEN_ORDERS = 300
MAX_CUSTOMERS = 2_000  # a limit, so that memory does not grow with the number of events
NEW_CUSTOMER_PROBABILITY = 0.05  # at each step
NEW_ORDER_PROBABILITY = 0.2
INSERT_EVENTS = 5_000  # events of a batch; each batch is shuffled before it is inserted

# Event type -> (service, aggregate type).
EVENT_TYPES = {
    "customer_registered": ("customers", "customer"),
    "customer_moved": ("customers", "customer"),
    "stock_reserved": ("inventory", "stock_item"),
    "stock_released": ("inventory", "stock_item"),
    "order_placed": ("orders", "order"),
    "order_confirmed": ("orders", "order"),
    "order_cancelled": ("orders", "order"),
    "order_completed": ("orders", "order"),
    "payment_requested": ("payments", "payment"),
    "order_paid": ("payments", "payment"),
    "payment_refunded": ("payments", "payment"),
    "shipment_created": ("shipping", "shipment"),
    "shipment_dispatched": ("shipping", "shipment"),
    "shipment_delivered": ("shipping", "shipment"),
}
_PAID = ("order_placed", "stock_reserved", "payment_requested", "order_paid", "order_confirmed")
_SHIPPED = ("shipment_created", "shipment_dispatched", "shipment_delivered", "order_completed")
STORIES: tuple[tuple[str, ...], ...] = (
    (*_PAID, *_SHIPPED),
    (*_PAID, *_SHIPPED, "customer_moved"),
    (*_PAID, *_SHIPPED, "payment_refunded", "stock_released"),
    ("order_placed", "stock_reserved", "payment_requested", "order_cancelled", "stock_released"),
)
STORY_WEIGHTS = (75, 7, 6, 12)

NAMES = (
    *("Zoë Müller", "José Peña", "Ana Ković", "Łukasz Żak", "Siân O'Neill", "Åsa Björk"),
    *("Παναγιώτης Δήμου", "Олена Шевченко", "山田 太郎", "김민준", "فاطمة الزهراء", "Ines Çelik"),
)
CITIES = (
    *("Zürich", "São Paulo", "Kraków", "Málaga", "Αθήνα", "Київ", "東京", "서울", "القاهرة"),
    *("Reykjavík", "Düsseldorf", "Québec"),
)
STREETS = ("Große Allee", "Rue de l'Église", "Ulica Świętego Jana", "Calle Ñandú", "Storgatan")
ITEMS = (
    *(
        ("MUG-BLUE", "Blue mug ☕"),
        ("TEA-GREEN", "Green tea 🍵 100 g"),
        ("BOOK-KAFKA", "Der Prozeß"),
    ),
    *(("LAMP-01", "Lámpara de mesa"), ("SOCKS-RED", "Red socks 🧦"), ("PEN-INK", "Füllfeder ✒️")),
    *(("BAG-JUTE", "Jutebeutel 👜"), ("SOAP-ROSE", "Savon à la rose 🌹")),
)
NOTES = (
    "Bitte klingeln 🔔",
    "¡Es un regalo! 🎁",
    "前に置いてください",
    "No hurry 🙂",
    "Merci à vous ❤️",
)
CARRIERS = ("Poste Œuvre", "Škoda Kurýr", "Nordic Frakt")


@dataclass(slots=True)
class _Story:
    """An order, and the events that it will still have."""

    number: int
    customer: int
    items: list[dict[str, Any]]
    amount: Decimal128
    correlation_id: str
    events_left: list[str]
    """Event types in reverse order: the last item is the next event."""
    versions: Counter[str] = field(default_factory=Counter)


def shop_events(count: int, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Yield ``count`` events, oldest first. The same arguments give the same events.

    The events always spread over the whole of January 2026. Memory does not grow with ``count``.
    ``_id`` ascends with the events. Two seeds below 2 ** 24 never give the same ``_id``.
    """
    rng = random.Random(seed)
    shop = _Shop(rng)
    timestamp = JANUARY
    repeats = 0  # further events with the same timestamp
    for index in range(count):
        if repeats:
            repeats -= 1
        else:
            timestamp = JANUARY + MONTH * index // count
            timestamp -= dt.timedelta(microseconds=timestamp.microsecond % 1000)  # BSON's precision
            repeats = rng.choice((0, 0, 0, 0, 0, 0, 0, 1, 2, 4))
        event_type, story = shop.step()
        service, aggregate_type = EVENT_TYPES[event_type]
        aggregate_id = _aggregate_id(aggregate_type, story)
        object_id = struct.pack(">IQ", int(timestamp.timestamp()), (seed & 0xFFFFFF) << 40 | index)
        yield {
            "_id": ObjectId(object_id),
            "event_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
            "event_type": event_type,
            "aggregate_id": aggregate_id,
            "aggregate_type": aggregate_type,
            "timestamp": timestamp,
            "service": service,
            "topic": f"shop.{service}",
            "version": shop.next_version(aggregate_id, story),
            "metadata": {
                "user_id": _aggregate_id("customer", story),
                "correlation_id": story.correlation_id,
            },
            "data": _data(aggregate_type, story, rng),
        }


def seed_store(  # noqa: PLR0913 - a collection, and what to insert
    mongo_uri: str,
    database: str,
    collection: str,
    count: int,
    *,
    seed: int = 1,
    drop: bool = False,
    index: bool = True,
) -> None:
    """Insert ``count`` events of the shop, and create the index that a replay needs.

    To seed again with the same seed, use ``drop``: the store has every ``_id`` already.
    """
    rng = random.Random(seed)
    with pymongo.MongoClient[dict[str, Any]](mongo_uri) as client:
        events = client[database][collection]
        if drop:
            events.drop()
        stream = shop_events(count, seed)
        while batch := list(itertools.islice(stream, INSERT_EVENTS)):
            rng.shuffle(batch)
            events.insert_many(batch, ordered=False)
        if index:
            events.create_index([("timestamp", 1), ("_id", 1)])


class _Shop:
    """The state of the shop: the stories under way, and the versions of lasting aggregates."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._stories: list[_Story] = []
        self._orders = 0
        self._customers = 0
        self._versions: Counter[str] = Counter()

    def step(self) -> tuple[str, _Story]:
        """Return the type of the next event, and the event's story."""
        rng = self._rng
        if not self._customers or (
            self._customers < MAX_CUSTOMERS and rng.random() < NEW_CUSTOMER_PROBABILITY
        ):
            self._customers += 1
            return "customer_registered", self._story(0, self._customers, ())
        if not self._stories or (
            len(self._stories) < MAX_OPEN_ORDERS and rng.random() < NEW_ORDER_PROBABILITY
        ):
            self._orders += 1
            events = rng.choices(STORIES, STORY_WEIGHTS)[0]
            customer = rng.randint(1, self._customers)
            self._stories.append(self._story(self._orders, customer, events))
        place = rng.randrange(len(self._stories))
        story = self._stories[place]
        event_type = story.events_left.pop()
        if not story.events_left:
            self._stories[place] = self._stories[-1]
            self._stories.pop()
        return event_type, story

    def next_version(self, aggregate_id: str, story: _Story) -> int:
        """Return the version of an aggregate after one more event: 1, 2, ..."""
        lasting = aggregate_id.startswith(("u-", "s-"))  # customers and stock items: only a few
        versions = self._versions if lasting else story.versions
        versions[aggregate_id] += 1
        return versions[aggregate_id]

    def _story(self, number: int, customer: int, events: tuple[str, ...]) -> _Story:
        rng = self._rng
        items = []
        cents = 0
        for sku, name in rng.sample(ITEMS, rng.choice((1, 1, 2))):
            quantity, price = rng.randint(1, 3), rng.randint(300, 9999)
            cents += quantity * price
            items.append(
                {"sku": sku, "name": name, "quantity": Int64(quantity), "price": _euros(price)}
            )
        correlation_id = f"c-{rng.getrandbits(48):012x}"
        return _Story(number, customer, items, _euros(cents), correlation_id, list(events[::-1]))


def _euros(cents: int) -> Decimal128:
    return Decimal128(f"{cents // 100}.{cents % 100:02d}")


def _aggregate_id(aggregate_type: str, story: _Story) -> str:
    match aggregate_type:
        case "customer":
            return f"u-{story.customer:05d}"
        case "stock_item":
            return f"s-{story.items[0]['sku']}"
        case "payment":
            return f"p-{story.number:07d}"
        case "shipment":
            return f"h-{story.number:07d}"
        case _:
            return f"o-{story.number:07d}"


def _data(aggregate_type: str, story: _Story, rng: random.Random) -> dict[str, Any]:
    """Return the data of an event of this type of aggregate."""
    order_id = _aggregate_id("order", story)
    address = {
        "name": NAMES[story.customer % len(NAMES)],
        "street": f"{rng.choice(STREETS)} {rng.randint(1, 180)}",
        "city": CITIES[story.customer % len(CITIES)],
        "postal_code": f"{rng.randint(10_000, 99_999)}",
    }
    match aggregate_type:
        case "customer":
            return {
                "address": address,
                "email": f"customer.{story.customer}@example.com",
                "languages": ["de", "en", "uk"][: rng.randint(1, 3)],
                "newsletter": rng.random() < 0.5,  # noqa: PLR2004 - a coin
                "note": rng.choice(NOTES),
            }
        case "stock_item":
            return {
                "order_id": order_id,
                "item": story.items[0],
                "warehouse": {"city": rng.choice(CITIES), "aisle": f"Gang {rng.randint(1, 40)}"},
                "remaining": Int64(rng.randint(0, 900)),
                "reason": rng.choice(NOTES),
            }
        case "payment":
            return {
                "order_id": order_id,
                "amount": story.amount,
                "currency": "EUR",
                "method": {"kind": "card", "brand": "Visa", "last_digits": f"{order_id[-4:]}"},
                "payer": address,
                "risk_score": round(rng.random(), 4),
            }
        case "shipment":
            return {
                "order_id": order_id,
                "carrier": rng.choice(CARRIERS),
                "to": address,
                "parcels": [{"weight_grams": rng.randint(100, 9000), "tracking": order_id[2:]}],
                "note": rng.choice(NOTES),
            }
        case _:
            return {
                "customer_id": _aggregate_id("customer", story),
                "items": story.items,
                "total": story.amount,
                "currency": "EUR",
                "ship_to": address,
                "gift_note": rng.choice((None, *NOTES)),
            }
