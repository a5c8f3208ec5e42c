"""Write the pages from which the fuzzer starts into a folder, the first argument."""

import datetime as dt
import sys
import uuid
from pathlib import Path
from typing import Any

import bson
from bson import Binary, Decimal128, Int64, ObjectId, Regex, Timestamp

from replay_app.demo.shop import shop_events
from replay_app.events import STRICT

NOON = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
RICH: dict[str, Any] = {
    "_id": ObjectId("65920080000001000000002a"),
    "event_type": "order_placed",
    "timestamp": NOON,
    "meta": {"id": uuid.UUID(int=5), "key": Decimal128("10.50"), "list": [1, [True, None], {}]},
    "headers": {"trace": "ü\n\u0001"},
    "payload": Binary(b"\0\1\2", 0),
    "n": [Int64(2**53 + 1), -0.0, 1e22, Decimal128("-1.5E+30"), Decimal128("NaN"), float("inf")],
    "odd": [Regex("^a"), Timestamp(1, 2), bson.DBRef("c", 1), bson.MinKey()],
}
EVENTS = [
    *shop_events(6),
    RICH,
    RICH | {"odd": None, "n": [0.1, 2**31]},
    RICH | {"odd": None, "n": None, "timestamp": "2026-01-02T12:00:00.5+01:30"},
    RICH | {"odd": None, "n": None, "timestamp": 1_767_355_200_000, "payload": "text"},
]

folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
documents = [bson.encode(event, codec_options=STRICT) for event in EVENTS]
for option in range(0, 16384, 257):
    options, framed = (option & ~1).to_bytes(2, "little"), (option | 1).to_bytes(2, "little")
    document = documents[option // 257 % len(documents)]
    (folder / f"page-{option}").write_bytes(options + b"".join(documents[:4]) + document)
    (folder / f"document-{option}").write_bytes(framed + document[4:-1])
