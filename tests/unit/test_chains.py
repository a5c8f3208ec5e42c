"""A chain is checked as a whole: its parts, its names, its order."""

from __future__ import annotations

from typing import Any

import pytest

from replay_app.chains import MAX_REPLAYS, InvalidChain, differences, read_chain
from replay_app.commands import Parent, Start, command_of

ALL = {"all": True}


def replay(*after: Any, **members: Any) -> dict[str, Any]:
    return {"filter": ALL, **({"after": list(after)} if after else {}), **members}


def chain(defaults: Any = None, /, **replays: Any) -> dict[str, Any]:
    defaults = {} if defaults is None else {"defaults": defaults}
    return {"chain": "shop", **defaults, "replays": replays}


def refusal(members: dict[str, Any]) -> str:
    with pytest.raises(InvalidChain) as refused:
        read_chain(members)
    return str(refused.value)


def order(members: dict[str, Any]) -> list[list[str]]:
    levels = read_chain(members).levels
    return [[start.replay_id.removeprefix("shop.") for start in level] for level in levels]


def test_a_chain_is_a_start_for_each_replay_parents_first() -> None:
    made = read_chain(
        {
            "chain": "rebuild-shop",
            "defaults": {
                "requested_by": "ana",
                "target": {"prefix": "rebuild."},
                "control_records": True,
                "rate": 5,
            },
            "replays": {
                "customers": {
                    "after": [{"replay": "orders", "consumed": True}, "orders"],
                    "filter": ALL,
                    "rate": None,
                },
                "orders": {
                    "filter": {"event_types": ["order_placed"]},
                    "consumers": ["orders-view"],
                    "target": {"topics": {"order_placed": "o"}},
                },
            },
        }
    )
    assert made.name == "rebuild-shop"
    orders, customers = made.starts
    assert orders == command_of(
        {
            "command": "start",
            "replay_id": "rebuild-shop.orders",
            "chain": "rebuild-shop",
            "requested_by": "ana",
            "filter": {"event_types": ["order_placed"]},
            "target": {"prefix": "rebuild.", "topics": {"order_placed": "o"}},
            "control_records": True,
            "rate": 5,
            "consumers": ["orders-view"],
        }
    )
    parent = "rebuild-shop.orders"
    assert customers.after == (Parent(replay=parent, consumed=True), parent)
    assert customers.rate is None  # a null goes over a default
    assert customers.model_dump_json(exclude_unset=True).startswith('{"replay_id"')


@pytest.mark.parametrize(
    ("replays", "levels"),
    [
        ({"a": replay()}, [["a"]]),
        ({"b": replay("a"), "a": replay()}, [["a"], ["b"]]),
        (
            {"d": replay("b", "c"), "c": replay("a"), "b": replay("a"), "a": replay()},
            [["a"], ["c", "b"], ["d"]],
        ),
        ({"a": replay(), "c": replay("b"), "b": replay(), "d": replay("a", "c")},
         [["a", "b"], ["c"], ["d"]]),
    ],
    ids=["one", "two", "diamond", "two-roots"],
)  # fmt: skip
def test_each_replay_comes_after_those_that_it_waits_for(
    replays: dict[str, Any], levels: list[list[str]]
) -> None:
    assert order(chain(**replays)) == levels


def test_a_chain_of_a_thousand_replays_one_after_the_other_is_allowed() -> None:
    line = {f"r{n}": replay(*([f"r{n - 1}"] if n else [])) for n in range(MAX_REPLAYS)}
    assert len(order(chain(**line))) == MAX_REPLAYS
    line["one-more"] = replay()
    assert refusal(chain(**line)) == "replays: has 1,001 replays, a chain has at most 1,000"


@pytest.mark.parametrize(
    ("replays", "path"),
    [
        ({"a": replay("b"), "b": replay("a")}, "a -> b -> a"),
        ({"x": replay(), "a": replay("x", "b"), "b": replay("c"), "c": replay("a")},
         "a -> b -> c -> a"),
    ],
)  # fmt: skip
def test_replays_that_wait_for_each_other_are_shown_as_a_path(
    replays: dict[str, Any], path: str
) -> None:
    shown = refusal(chain(**replays)).partition("wait for each other: ")[2].partition(";")[0]
    around = path.split(" -> ")[:-1]
    first = around.index(shown.split(" -> ")[0])  # a circle has no beginning
    assert shown.split(" -> ") == [*around[first:], *around[:first], around[first]]


def test_messages_stay_short_and_come_soon_whatever_is_wrong() -> None:
    circle = {f"r{n}": replay(f"r{(n + 1) % MAX_REPLAYS}") for n in range(MAX_REPLAYS)}
    assert "(981 more) -> " in refusal(chain(**circle))
    # Looking for a name like each of these would take minutes.
    unknown = {f"r{n}": replay(*(f"s{m}" for m in range(100))) for n in range(MAX_REPLAYS)}
    assert refusal(chain(**unknown)).endswith("; and 180 more")
    many = chain(a=replay(*(f"s{m}" for m in range(101))))
    assert refusal(many).startswith("replays.a.after: ")


def test_a_replay_that_waits_for_itself_is_refused() -> None:
    assert refusal(chain(a=replay("a"))) == "replays.a: a replay cannot wait for itself"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "chain: a chain's name is 1 to 128 letters"),
        ({"chain": "a b", "replays": {"a": replay()}}, "chain: a chain's name is"),
        ({"chain": 5, "replays": {"a": replay()}}, "chain: a chain's name is"),
        ({"chain": "shop"}, "replays: must be an object with at least one replay"),
        (chain(), "replays: must be an object with at least one replay"),
        ({"chain": "shop", "replays": [replay()]}, "replays: must be an object"),
        (chain(a=replay()) | {"replay": {}}, "replay: unknown field; a chain has chain, defaults"),
        (chain([], a=replay()), "defaults: must be an object"),
        (chain({"ratio": 1}, a=replay()), "defaults.ratio: unknown field"),
        (chain({"after": ["a"]}, a=replay()), "defaults.after: belongs to a replay"),
        (chain({"replay_id": "a"}, a=replay()), "defaults.replay_id: is made from the names"),
        (chain(a=replay(replay_id="b")), "replays.a.replay_id: is made from the names"),
        (chain(a=replay(chain="shop")), "replays.a.chain: is made from the names"),
        (chain(a=replay(command="start")), "replays.a.command: is made from the names"),
        (chain(a=5), "replays.a: must be an object"),
        (chain(a=replay(ratio=1)), "replays.a.ratio: unknown field"),
        (chain(a=replay(rate="5")), "replays.a.rate: Input should be a valid number"),
        (chain({"rate": -1}, a=replay(), b=replay()), "defaults.rate: Input should be greater"),
        (chain({"rate": -1}, a=replay(rate=-2)), "replays.a.rate: Input should be greater"),
        (chain(a={}), "replays.a: filter: name at least one condition"),
        (chain(a=None), "replays.a: filter: name at least one condition"),
        (chain({"filter": {}}, a={}), "defaults.filter: filter: name at least one condition"),
        (chain(a={"filter": {"ends": 1}}), "replays.a.filter.ends: unknown field"),
        (chain({"filter": {"end": 1}}, a={}), "defaults.filter.end: a time is written as"),
        (
            chain({"target": {"prefix": "r."}}, a=replay(target={"topic": "t"})),
            "replays.a.target: a target has either a topic or a prefix; the defaults are merged",
        ),
        (
            chain({"target": {"prefix": "r /"}}, a=replay(target={"topics": {"x": "t"}})),
            "defaults.target.prefix: String should match",
        ),
        (chain(a=replay(), orders=replay("b")), "after.0: the chain has no replay 'b'; it has a"),
        (
            chain(orders=replay(), b=replay("ordrs")),
            "replays.b.after.0: the chain has no replay 'ordrs'; do you mean 'orders'?",
        ),
        (
            chain(orders=replay(), b=replay("shop.orders")),
            "the chain has no replay 'shop.orders'; do you mean 'orders'?",
        ),
        (chain(a=replay(), b=replay({"replay": "x"})), "replays.b.after.0: the chain has no"),
        (chain(a=replay(), b=replay(5)), "replays.b.after.0: must be a replay_id, or an object"),
        (chain(a=replay(), b=replay({"replay": "a", "read": 1})), "replays.b.after.0: must be"),
        (chain(a=replay(), b={"filter": ALL, "after": "a"}), "replays.b.after: Input should be"),
        (
            chain(a=replay(), b=replay({"replay": "a", "consumed": True})),
            "replays.b.after.0: replay 'a' names no consumers",
        ),
        (
            chain({"consumers": ["g"]}, a=replay(dry_run=True)),
            "replays.a: consumers: a dry run publishes nothing that a group could read",
        ),
        (chain(**{"a b": replay()}), "replays.a b: the replay's id would be 'shop.a b', and an id"),
        (chain(**{"a" * 124: replay()}), "and an id is 1 to 128 letters"),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_refused_with_its_place(members: Any, message: str) -> None:
    assert message in refusal(members)


def test_a_wrong_default_is_one_fault_and_other_faults_stand_beside_it() -> None:
    replays = {f"r{number}": replay() for number in range(50)}
    refused = refusal(chain({"rate": -1, "ratio": 1}, **replays))
    assert refused == "defaults.ratio: unknown field"
    refused = refusal(chain({"rate": -1}, **replays, x=replay("y")))
    assert refused.count("rate") == 1
    assert refused.count("; ") == 2  # the suggestion has one too
    refused = refusal(chain(**{name: replay(rate=-1) for name in replays}))
    assert refused.endswith("; and 30 more")


def test_a_filter_that_defaults_have_is_enough() -> None:
    assert order(chain({"filter": ALL}, a=None, b={"after": ["a"]})) == [["a"], ["b"]]


def test_defaults_that_are_large_for_each_replay_are_refused_as_a_whole() -> None:
    large = {"filter": {"event_ids": ["x" * 1000] * 600}}
    replays: dict[str, Any] = {f"r{number}": {} for number in range(1000)}
    assert "more than 4,000,000 bytes" in refusal(chain(large, **replays))
    huge = {"filter": {"event_ids": ["x" * 1000] * 800}}
    assert "at most 700,000 are allowed" in refusal(chain(huge, a={}))


def test_the_consent_to_original_topics_may_stand_in_the_defaults() -> None:
    defaults = {"filter": ALL, "to_original": True}
    found = read_chain({"chain": "c", "defaults": defaults, "replays": {"a": {}, "b": None}})
    assert [one.to_original for one in found.starts] == [True, True]


def start(**members: Any) -> Start:
    return Start.model_validate({"replay_id": "shop.a", "filter": ALL, **members})


def test_a_changed_replay_says_in_which_members_it_differs() -> None:
    assert differences(start(), start()) == []
    # The same instant, defaults written out, and another person change nothing.
    before = start(filter={"start": "2026-01-01T00:00:00Z"}, requested_by="ana")
    after = start(filter={"start": "2026-01-01T01:00:00+01:00"}, rate=None, requested_by="eva")
    assert differences(before, after) == []
    assert differences(start(), start(to_original=True)) == []
    before = start(rate=5, after=["b"], target={"prefix": "a."})
    after = start(filter={"event_types": ["x" * 100]}, target={"prefix": "b."})
    assert differences(before, after) == [
        'after is ["b"] there and [] here',
        "filter.all is true there and false here",
        f'filter.event_types is [] there and ["{"x" * 58}... here',
        "rate is 5.0 there and null here",
        'target.prefix is "a." there and "b." here',
    ]
