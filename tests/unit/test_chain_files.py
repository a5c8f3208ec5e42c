"""Chain files: what YAML means here, and that each fault has its line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replay_app.chain_files import MAX_DEPTH, WrongChainFile, read_chain_file
from replay_app.chains import MAX_CHAIN_BYTES
from replay_app.exceptions import WrongUsage

SHOP = """\
# The shop's views.
chain: rebuild-shop
defaults: {requested_by: ana, reason: "views lost", target: {prefix: rebuild.}}
replays:
  orders:
    filter: {event_types: [order_placed, order_paid], start: 2026-01-01T00:00:00Z}
    consumers: [orders-view]
  customers:
    after: [{replay: orders, consumed: true}]
    filter:
      all: true
    rate: 0.5
    consumers:
      - customers-view
"""


def members(text: str) -> Any:
    return read_chain_file("shop.yaml", text.encode())[1]


def refusal(text: str | bytes) -> str:
    content = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(WrongUsage) as refused:
        read_chain_file("shop.yaml", content)
    return str(refused.value)


def test_a_file_has_the_members_that_it_shows() -> None:
    found = members(SHOP)
    assert found["replays"]["orders"]["filter"]["start"] == "2026-01-01T00:00:00Z"
    assert found["replays"]["customers"]["rate"] == 0.5
    chain, _ = read_chain_file("shop.yaml", SHOP.encode())
    assert [start.replay_id for start in chain.starts] == [
        "rebuild-shop.orders",
        "rebuild-shop.customers",
    ]
    # JSON is YAML.
    assert members(json.dumps(found)) == members(json.dumps(found, indent="\t")) == found


def test_an_anchor_stands_for_its_value() -> None:
    text = """\
chain: shop
defaults: {filter: &all {all: true}}
replays: {a: {filter: *all}, b: &b {after: [a]}, c: *b}
"""
    assert members(text)["replays"] == {
        "a": {"filter": {"all": True}},
        "b": {"after": ["a"]},
        "c": {"after": ["a"]},
    }


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("replay: orders", "replay: ordrs", 9, "has no replay 'ordrs'; do you mean 'orders'?"),
        ("    rate: 0.5", "    rates: 0.5", 12, "replays.customers.rates: unknown field"),
        ("reason:", "reasons:", 3, "defaults.reasons: unknown field"),
        ("    rate: 0.5", "    rate: -1", 12, "replays.customers.rate: Input should be greater"),
        ("      all: true", "      all: false", 10, "name at least one condition"),
        ("- customers-view", "- ' x'", 14, "consumers.0: a consumer group's name is"),
        (
            "    consumers: [orders-view]",
            "    after: [customers]\n    consumers: [orders-view]",
            7,
            "replays wait for each other: orders -> customers -> orders",
        ),
        ("    consumers: [orders-view]\n", "", 8, "replay 'orders' names no consumers"),
        ("    rate: 0.5", "    filter: {}", 12, "'filter' is here twice, first in line 10"),
        ("  customers:", "  orders:", 8, "'orders' is here twice, first in line 5"),
        ("all: true", "all: yes", 11, "'yes': write true or false; put text into quotes"),
        ("rate: 0.5", "rate: 010", 12, "'010': a number is written as 1000 or 0.5"),
        ("rate: 0.5", "rate: 1:30", 12, "'1:30': a number is written as 1000 or 0.5"),
        ("rate: 0.5", "rate: .inf", 12, "'.inf': a number is written as 1000 or 0.5"),
        ("rate: 0.5", f"rate: {'9' * 5000}", 12, "a number of 5,000 digits is too long"),
        ("rate: 0.5", "rate: *none", 12, "*none has no finished value with the name &none"),
        ("rate: 0.5", "<<: {}", 12, "'<<' is not supported"),
        ("rate: 0.5", "rate: !!python/name:os.system 5", 12, "tags are not allowed"),
        ("rate: 0.5", "rate: !x {}", 12, "the tag '!x' is not allowed"),
        ("rate: 0.5", "? [a]\n    : b", 12, "a name must be text"),
        ("rate: 0.5", "rate: &a [*a]", 12, "*a has no finished value"),
    ],
)
def test_each_fault_has_its_line(old: str, new: str, line: int, message: str) -> None:
    assert old in SHOP
    told = refusal(SHOP.replace(old, new, 1))
    assert told.startswith(f"shop.yaml, line {line}: ")
    assert message in told


@pytest.mark.parametrize("reason", ["views \U0001f600 lost", "\\ud83d\\ude00", "\\\\\U0001f600"])
def test_json_with_escaped_characters_is_read_as_python_writes_it(reason: str) -> None:
    replay = {"filter": {"all": True}, "reason": reason}
    text = json.dumps({"chain": "c", "replays": {"a": replay}})
    assert members(text)["replays"]["a"]["reason"] == reason


def test_all_faults_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = SHOP.replace("rate: 0.5", "rate: 0").replace("start: 2026", "start: 226")
    with pytest.raises(WrongChainFile) as refused:
        read_chain_file("shop.yaml", text.encode())
    assert [sentence.partition(": ")[0] for sentence in refused.value.sentences] == [
        "shop.yaml, line 6",
        "shop.yaml, line 12",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the file is empty"),
        (b"# nothing\n", "the file is empty"),
        (b"--- \n...\n", "is not a chain: write an object"),
        (b"- chain: a", "is not a chain: write an object"),
        (b"just text", "is not a chain: write an object"),
        (b"chain: a\n---\nchain: b\n", "line 2: a second document begins"),
        (b"chain: {a: b\n", "is not YAML: line"),
        (b"chain: a\n\treplays: 1\n", "is not YAML: line 2: found"),
        (b"chain: 'a", "is not YAML: line"),
        (b"\x00", "is not YAML: "),
        (b"chain: \xff\xfe", "is not YAML: "),
        (b"[" * 100_000, ""),
        (b"- " * 100_000, ""),
        (b"a: " + b"x" * MAX_CHAIN_BYTES, "bytes, at most 4,000,000 are allowed"),
    ],
)
def test_what_is_no_chain_file_is_refused_with_its_name(text: bytes, message: str) -> None:
    told = refusal(text)
    assert told.startswith("shop.yaml")
    assert message in told


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep = "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)
    assert "more than 20 lists and objects" in refusal(f"chain: {deep}")


def test_aliases_cannot_make_a_small_file_large() -> None:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    for number in range(1, 12):
        alias = f"*l{number - 1}"
        lines.append(f"l{number}: &l{number} [{', '.join([alias] * 10)}]")
    assert "more than 200,000 values" in refusal("\n".join(lines))
