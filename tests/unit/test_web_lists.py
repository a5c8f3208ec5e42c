"""The list of replays: its filters, and that every page together has every replay once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from replay_app.commands import Filter, Start, Target
from replay_app.exceptions import InvalidCommand
from replay_app.sessions import Session
from replay_app.web.lists import ListQuery

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NOW = T0 + timedelta(days=1)


def session(number: int, state: Any = "completed", **members: Any) -> Session:
    at = T0 + timedelta(minutes=number // 2)  # two at the same moment
    times = dict.fromkeys(("created_at", "updated_at", "progressed_at", "heard_at"), at)
    start = Start(replay_id=f"r-{number:04}", **members)
    return Session(replay_id=start.replay_id, state=state, start=start, **times)


def query(text: str) -> ListQuery:
    return ListQuery.of(make_mocked_request("GET", f"/replays?{text}"), NOW)


def ids(sessions: list[Session]) -> list[str]:
    return [one.replay_id for one in sessions]


def test_pages_have_every_replay_once_the_newest_first() -> None:
    every = [session(number) for number in range(25)]
    seen: list[str] = []
    cursor: str | None = ""
    sizes = []
    while cursor is not None:
        wanted = query(f"limit=10&cursor={cursor}" if cursor else "limit=10")
        page, cursor, total = wanted.page(every)
        assert total == 25
        seen += ids(page)
        sizes.append(len(page))
    assert sizes == [10, 10, 5]
    assert seen == ids(every[::-1])


def test_a_full_last_page_has_no_next_one() -> None:
    page, cursor, _ = query("limit=10").page([session(number) for number in range(10)])
    assert (len(page), cursor) == (10, None)


def test_a_replay_under_way_is_on_the_first_page_however_old_and_on_no_other() -> None:
    states = {0: "failed", 3: "running", 4: "paused", 23: "waiting"}
    every = [session(number, states.get(number, "completed")) for number in range(25)]
    page, cursor, total = query("limit=5").page(every)
    assert ids(page)[5:] == ["r-0004", "r-0003", "r-0000"]
    assert total == 25
    seen = ids(page)
    while cursor is not None:
        page, cursor, _ = query(f"limit=5&cursor={cursor}").page(every)
        assert all(one.state == "completed" for one in page)
        seen += ids(page)
    assert sorted(seen) == ids(every)


def test_a_replay_that_ends_between_two_pages_is_on_one_of_them_only() -> None:
    every = [session(number, "running" if number == 3 else "completed") for number in range(10)]
    page, cursor, _ = query("limit=4").page(every)
    seen = ids(page)
    ended = {"state": "completed", "ended_at": NOW + timedelta(seconds=1)}
    every[3] = every[3].model_copy(update=ended)
    while cursor is not None:
        page, cursor, _ = query(f"limit=4&cursor={cursor}").page(every)
        seen += ids(page)
    assert sorted(seen) == ids(every)


def test_only_replays_under_way_need_no_next_page() -> None:
    page, cursor, _ = query("limit=5").page([session(n, "running") for n in range(9)])
    assert (len(page), cursor) == (9, None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("r-0001", True),
        ("MONTHLY", True),
        ("ana", True),
        ("view%20is%20lost", True),
        ("REBUILD.", True),
        ("order_placed", True),
        ("chain-7", True),
        ("elsewhere", False),
    ],
)
def test_a_search_looks_at_what_people_know_of_a_replay(text: str, *, found: bool) -> None:
    one = session(
        1,
        name="Monthly",
        requested_by="Ana",
        reason="the view is lost",
        chain="chain-7",
        target=Target(prefix="rebuild."),
        filter=Filter(event_types=("order_placed",)),
    )
    assert bool(query(f"text={text}").page([one])[0]) is found


def test_filters_are_state_chain_and_time() -> None:
    every = [session(2, "failed"), session(4, chain="c"), session(6)]
    assert ids(query("state=failed").page(every)[0]) == ["r-0002"]
    assert ids(query("state=failed&state=completed").page(every)[0]) == ids(every[::-1])
    assert ids(query("chain=c").page(every)[0]) == ["r-0004"]
    assert ids(query("since=2026-01-01T00:02:00Z").page(every)[0]) == ["r-0006", "r-0004"]
    assert ids(query("since=2026-01-01T01:02:00%2B01:00").page(every)[0]) == ["r-0006", "r-0004"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("state=lost", "state: lost"),
        ("limit=0", "limit: '0'"),
        ("limit=1001", "limit: '1001'"),
        ("limit=%C2%B2", "limit"),
        ("chain=%20", "chain"),
        ("since=2026", "since: '2026'"),
        ("since=2026-13-01T00:00:00Z", "since"),
        ("cursor=1", "cursor"),
        ("cursor=1~%0A", "cursor"),
        ("cursor=99999999999999999999~r~1", "cursor"),
        ("cursor=1~r", "cursor"),
        ("text=" + 201 * "x", "text: at most 200"),
    ],
)
def test_a_wrong_parameter_is_named(text: str, named: str) -> None:
    with pytest.raises(InvalidCommand, match=named):
        query(text)
