"""Corrupt the views: remove every third row, and change every other third.

Usage: ``python examples/rebuild/corrupt.py KAFKA GROUP URL``, with the group of a `views.py` and
the address of its pages. The last line of the output is the number of rows.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from urllib.request import urlopen

from aiokafka import AIOKafkaProducer


async def corrupt(kafka: str, group: str, url: str) -> int:
    """Send wrong rows to the topic with which an operator corrects rows; return how many."""
    with urlopen(f"{url}/views", timeout=10) as answer:  # noqa: ASYNC210, S310 - our own app
        views = json.load(answer)
    producer = AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True)
    await producer.start()
    count = 0
    try:
        for view, rows in views.items():
            for number, key in enumerate(sorted(rows)):
                if number % 3 == 2:  # noqa: PLR2004 - two thirds of the rows
                    continue
                row = None if number % 3 == 0 else wrong(view)
                body = json.dumps({"view": view, "row": row}).encode()
                await producer.send_and_wait(f"{group}-corrections", body, key.encode())
                count += 1
    finally:
        await producer.stop()
    return count


def wrong(view: str) -> dict[str, Any]:
    """Return a row that no history gives."""
    row = {"version": 1000, "events": 1000, "seen": []}
    if view == "orders":
        return {**row, "status": "lost", "customer": "u-00000", "total": "0.00"}
    return {**row, "name": "nobody", "street": "nowhere", "orders": {}}


if __name__ == "__main__":
    if len(sys.argv) != 4:  # noqa: PLR2004 - the program and its three arguments
        sys.exit("usage: corrupt.py KAFKA GROUP URL")
    print(asyncio.run(corrupt(*sys.argv[1:])))
