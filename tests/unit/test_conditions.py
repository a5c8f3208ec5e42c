"""Conditions on fields: what is taken, what is refused, and the queries that they become."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Decimal128, ObjectId
from pydantic import TypeAdapter, ValidationError

from replay_app.commands import Filter
from replay_app.conditions import FieldCondition
from replay_app.events import EventMapping
from replay_app.queries import compile_filter

OID = "65a000000000000000000001"
UID = "7ce42c82-1807-4e8c-b5bf-992dc9e9c616"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
CONDITION: TypeAdapter[Any] = TypeAdapter(FieldCondition)


@pytest.mark.parametrize(
    ("condition", "query"),
    [
        ({"$oid": OID}, {"$eq": ObjectId(OID)}),
        ({"$uuid": UID}, {"$eq": uuid.UUID(UID)}),
        ({"$date": "2026-01-31T13:00:00+01:00"}, {"$eq": NOON}),
        ({"$numberDecimal": "-12.50"}, {"$eq": Decimal128("-12.50")}),
        ({"gte": 1, "lt": 5.5}, {"$gte": 1, "$lt": 5.5}),
        ({"gt": "a", "lte": "b"}, {"$gt": "a", "$lte": "b"}),
        # The text of an id stands for the id only where values are compared for equality.
        ({"gt": OID}, {"$gt": OID}),
        ({"gt": {"$oid": OID}}, {"$gt": ObjectId(OID)}),
        ({"in": [1, None, OID]}, {"$in": [1, None, OID, ObjectId(OID)]}),
        ({"ne": OID}, {"$nin": [OID, ObjectId(OID)]}),
        ({"ne": None}, {"$nin": [None]}),
        ({"exists": False}, {"$exists": False}),
        ({"exists": True, "ne": None}, {"$exists": True, "$nin": [None]}),
        # BSON has whole milliseconds, and no date lies between .0005 and .001.
        ({"gte": {"$date": "2026-01-31T12:00:00.0005Z"}}, {"$gte": NOON.replace(microsecond=1000)}),
        ({"lt": {"$date": "2026-01-31T12:00:00.0005Z"}}, {"$lt": NOON.replace(microsecond=1000)}),
        ({"gt": {"$date": "2026-01-31T12:00:00.0005Z"}}, {"$gt": NOON.replace(microsecond=500)}),
        ({"$date": "2026-01-31T12:00:00.0005Z"}, {"$in": []}),
        ({"ne": {"$date": "2026-01-31T12:00:00.0005Z"}}, {"$nin": []}),
        (
            {"gte": {"$date": "9999-12-31T23:59:59.9995Z"}},
            {"$gte": datetime(9999, 12, 31, 23, 59, 59, 999_500, UTC)},
        ),
        (2**63, {"$eq": float(2**63)}),  # as before there were conditions
        ({"gt": 2**70}, {"$gt": float(2**70)}),
    ],
)
def test_a_condition_becomes_a_query(condition: Any, query: dict[str, Any]) -> None:
    wanted = Filter.model_validate({"fields": {"a.b": condition}})
    assert compile_filter(wanted, EventMapping()) == {"a.b": query}
    assert Filter.model_validate_json(wanted.model_dump_json()) == wanted


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ({"$oid": "5"}, '$oid: must be a text such as "65a0'),
        ({"$oid": f"{OID}\n"}, "$oid: must be a text"),
        ({"$uuid": 5}, "$uuid: must be a text"),
        ({"$date": "2026-02-30T00:00:00Z"}, "$date: must be a text"),
        ({"$date": "2026-01-01"}, "$date: must be a text"),
        ({"$date": "0001-01-01T00:00:00+14:00"}, "$date: must be a text"),
        ({"$numberDecimal": "1e400"}, "$numberDecimal: must be a text"),
        ({"$oid": OID, "$uuid": UID}, "not with '$oid', '$uuid'; operators of the store are not"),
        ({"$gt": 5}, "not with '$gt'; operators of the store are not"),
        ({"gte": 1, "$where": "1"}, "not with '$where', 'gte'"),
        ({}, "not with nothing"),
        ({"in": []}, "in: must be a list of 1 to 10,000 values"),
        ({"in": "a"}, "in: must be a list"),
        ({"in": [[1]]}, "in: must be a string, a number"),
        ({"in": ["x"] * 10_001}, "in: must be a list"),
        ({"gte": None}, "gte: must be a string, a number, or a typed value"),
        ({"lt": True}, "lt: must be a string, a number, or a typed value"),
        ({"gt": {"$gt": 1}}, "gt: must be a string"),
        ({"ne": {"$regex": "x"}}, "ne: must be a string"),
        ({"exists": 1}, "exists: must be true or false"),
        (10**400, "must be a string, a number"),
        (float("nan"), "must be a string, a number"),
        ([], "must be a string, a number"),
    ],
)
def test_what_is_no_condition_is_refused_with_one_sentence(condition: Any, told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CONDITION.validate_python(condition)
    (error,) = refused.value.errors()
    assert told in error["msg"]
