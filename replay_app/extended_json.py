"""Canonical extended JSON (version 2): MongoDB's JSON, which keeps the BSON type of every value."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from bson import json_util
from bson.binary import UuidRepresentation
from bson.codec_options import DatetimeConversion
from bson.json_util import JSONMode, JSONOptions

from replay_app.exceptions import EventError

CANONICAL = JSONOptions(
    json_mode=JSONMode.CANONICAL,
    tz_aware=True,
    tzinfo=UTC,
    uuid_representation=UuidRepresentation.STANDARD,
    # A date outside the years 1 to 9999 becomes a DatetimeMS, and keeps its milliseconds.
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
EXACT = CANONICAL.with_options(uuid_representation=UuidRepresentation.UNSPECIFIED)
"""To read with: `CANONICAL` would make a UUID of binary subtype 3 too, and lose the subtype."""
RELAXED = CANONICAL.with_options(
    json_mode=JSONMode.RELAXED, strict_number_long=None, datetime_representation=None
)
"""The form that people read, such as in dead letters."""


def extended_text(value: Any) -> str:
    """Return a value as extended JSON without spaces; fields keep their order.

    Raises
    ------
    EventError
        When the value is nested too deeply.

    """
    try:
        return json_util.dumps(
            value, json_options=CANONICAL, separators=(",", ":"), ensure_ascii=False
        )
    except RecursionError as error:
        msg = "it has a value that is nested too deeply"
        raise EventError(msg) from error
