"""Ties: events with the same sort values. No cursor can stand between such events.

The store may return tied events in another order with each query. So a slice ends only where the
sort values change: the events of a tie are published in one transaction, or none of them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from bson import Decimal128

from replay_app.elements import values_at
from replay_app.exceptions import ReplayFailed
from replay_app.pages import document_spans
from replay_app.queries import sort_value

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

MAX_TIE_BYTES = 16 << 20
"""Most bytes of tied events, as stored. A tie stays in memory, and in one transaction."""


async def untorn_pages(
    pages: AsyncGenerator[bytes, None], sort: Sequence[str]
) -> AsyncGenerator[bytes, None]:
    """Yield the same documents in pages that end where the sort values change.

    Such a page may have as many documents as two of the pages that come in.

    Raises
    ------
    ReplayFailed
        When a tie is larger than MAX_TIE_BYTES.

    """
    held = b""
    async with contextlib.aclosing(pages):
        async for page in pages:
            held += page
            spans = list(document_spans(held))
            begin = _begin(held, spans, len(spans) - 1, sort)
            if begin:
                yield held[: spans[begin][0]]
                held = held[spans[begin][0] :]
            elif len(held) > MAX_TIE_BYTES:
                values = dict(zip(sort, _values(held, spans[0], sort), strict=True))
                msg = (
                    f"more than {MAX_TIE_BYTES >> 20} MiB of events have the same sort values "
                    f"{values}, too many for one transaction: give each row of the view, or of "
                    "the time series, its own _id"
                )
                raise ReplayFailed(msg)
    if held:
        yield held


def tie_end(page: bytes, documents: int, sort: Sequence[str]) -> int:
    """Return the smallest number of documents, from ``documents`` on, that ends with a whole tie.

    A page that ends with a whole tie may have fewer documents; then this is their number.
    """
    spans = list(document_spans(page))
    if not 0 < documents < len(spans):
        return min(documents, len(spans))
    last = _values(page, spans[documents - 1], sort)
    while documents < len(spans) and _values(page, spans[documents], sort) == last:
        documents += 1
    return documents


def tie_begin(page: bytes, index: int, sort: Sequence[str]) -> int:
    """Return the place of the first document that has the sort values of document ``index``."""
    return _begin(page, list(document_spans(page)), index, sort)


def tie_runs(page: bytes, sort: Sequence[str]) -> Iterator[tuple[bytes, bool]]:
    """Yield the page in parts. True: the documents of the part have the same sort values."""
    spans = list(document_spans(page))
    values = [_values(page, span, sort) for span in spans]
    first = 0
    while first < len(spans):
        is_tie = values[first : first + 1] == values[first + 1 : first + 2]
        end = first + 1
        while end < len(spans):
            if is_tie and values[end] != values[first]:
                break
            if not is_tie and values[end : end + 1] == values[end + 1 : end + 2]:
                break
            end += 1
        yield page[spans[first][0] : spans[end - 1][1]], is_tie
        first = end


def _begin(page: bytes, spans: list[tuple[int, int]], index: int, sort: Sequence[str]) -> int:
    values = _values(page, spans[index], sort)
    while index and _values(page, spans[index - 1], sort) == values:
        index -= 1
    return index


def _values(page: bytes, span: tuple[int, int], sort: Sequence[str]) -> list[Any]:
    """Return a document's sort values. Values that are equal to the store are equal here.

    More values may be equal here (to Python, true is 1): a tie may be too large, never too small.
    """
    document = page[slice(*span)]
    try:
        found = [
            [_comparable(sort_value(value)) for value in values_at(document, path)] for path in sort
        ]
    except ValueError as error:
        msg = f"the event store sent a document that is not BSON: {error}; correct it, then retry"
        raise ReplayFailed(msg) from error
    return [values[0] if len(values) == 1 else values for values in found]


def _comparable(value: Any) -> Any:
    if isinstance(value, Decimal128):
        value = value.to_decimal()
    if isinstance(value, dict):
        return [(name, _comparable(inner)) for name, inner in value.items()]
    if isinstance(value, list):
        return [_comparable(inner) for inner in value]
    return "NaN" if value != value else value  # noqa: PLR0124 - only NaN is not equal to itself
