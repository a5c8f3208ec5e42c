"""Ties: pages are never cut between events with the same sort values."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from itertools import groupby, pairwise
from typing import Any

import bson
import pytest
from bson import Decimal128, Int64

from replay_app import ties
from replay_app.exceptions import ReplayFailed
from replay_app.pages import document_spans
from replay_app.ties import tie_begin, tie_end, tie_runs, untorn_pages

SORT = ("t", "_id")
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def page_of(*values: Any) -> bytes:
    """Return a page of documents with these ids and the same time."""
    return b"".join(
        bson.encode({"t": T0, **({} if value is None else {"_id": value}), "n": number})
        for number, value in enumerate(values)
    )


async def feed(*pages: bytes) -> AsyncGenerator[bytes, None]:
    for page in pages:
        yield page


async def untorn(*pages: bytes) -> list[list[Any]]:
    """Return the ids of the pages that come out."""
    found = [page async for page in untorn_pages(feed(*pages), SORT)]
    return [[document.get("_id") for document in bson.decode_all(page)] for page in found]


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        ([], []),
        ([[1]], [[1]]),
        ([[1, 2, 3]], [[1, 2], [3]]),
        ([[1, 2], [3, 4]], [[1], [2, 3], [4]]),
        ([[1, 2, 2], [2, 2, 3]], [[1], [2, 2, 2, 2], [3]]),
        ([[1, 1], [1, 1], [1]], [[1, 1, 1, 1, 1]]),
        ([[1, 1], [2, 2]], [[1, 1], [2, 2]]),
        ([[None, None], [None, 1]], [[None, None, None], [1]]),  # documents without the field
    ],
)
async def test_pages_end_with_a_whole_tie(
    pages: list[list[Any]], expected: list[list[Any]]
) -> None:
    assert await untorn(*(page_of(*page) for page in pages)) == expected


@pytest.mark.parametrize("size", range(1, 8))
async def test_whatever_the_pages_no_event_is_lost_and_no_tie_is_torn(size: int) -> None:
    ids = [1, 1, 2, 3, 3, 3, 3, 4, 5, 5]
    found = await untorn(*(page_of(*ids[at : at + size]) for at in range(0, len(ids), size)))
    assert [one for page in found for one in page] == ids
    assert all(before[-1] != after[0] for before, after in pairwise(found))


async def test_a_tie_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ties, "MAX_TIE_BYTES", 200)
    pages = [page_of(7, 7) for _ in range(6)]
    with pytest.raises(ReplayFailed, match=r"have the same sort values .*'_id': 7.*its own _id"):
        await untorn(*pages)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, Int64(1)),
        (1, Decimal128("1.0")),
        (0.5, Decimal128("0.50")),
        (math.nan, math.nan),
        (math.nan, Decimal128("NaN")),
        (0.0, -0.0),
        ({"a": 1, "b": math.nan}, {"a": 1.0, "b": math.nan}),
        ([1, Decimal128("2")], [1, 2]),
        ("é", "é"),
    ],
)
def test_values_that_are_equal_to_the_store_are_one_tie(one: Any, other: Any) -> None:
    page = page_of(0, one, other, 9)
    if one == 0:
        page = page_of("before", one, other, 9)
    assert tie_end(page, 2, SORT) == 3
    assert tie_begin(page, 2, SORT) == 1


IDS = [1, 1, 2, 3, 3, 3]


@pytest.mark.parametrize("documents", range(1, 9))
def test_a_cut_moves_to_the_end_of_its_tie(documents: int) -> None:
    ends, total = [], 0
    for _, tied in groupby(IDS):
        total += len(list(tied))
        ends.append(total)
    expected = min((end for end in ends if end >= documents), default=len(IDS))
    assert tie_end(page_of(*IDS), documents, SORT) == expected


@pytest.mark.parametrize("index", range(6))
def test_the_begin_of_a_tie_is_found(index: int) -> None:
    assert tie_begin(page_of(*IDS), index, SORT) == IDS.index(IDS[index])


def test_events_of_one_id_and_other_times_do_not_tie() -> None:
    page = bson.encode({"_id": 1, "t": 1}) + bson.encode({"_id": 1, "t": 2})
    assert (tie_end(page, 1, SORT), tie_begin(page, 1, SORT)) == (1, 1)


def test_a_page_is_parted_into_ties_and_what_lies_between_them() -> None:
    times = [1, 1, 2, 3, 4, 4, 4, 5, 5, 6]
    page = b"".join(bson.encode({"t": time}) for time in times)
    parts = [
        ([bson.decode(part[slice(*span)])["t"] for span in document_spans(part)], is_tie)
        for part, is_tie in tie_runs(page, ("t",))
    ]
    assert parts == [
        ([1, 1], True),
        ([2, 3], False),
        ([4, 4, 4], True),
        ([5, 5], True),
        ([6], False),
    ]
    assert list(tie_runs(b"", ("t",))) == []
