"""The broker's error codes: each has a kind, as Kafka describes the code."""

from __future__ import annotations

import copy

import pytest
from aiokafka.errors import KafkaError, ProducerFenced, kafka_errors

from replay_app.broker_errors import (
    ACCEPTED,
    CODES,
    FENCED,
    OPERATION_NOT_ATTEMPTED,
    UNKNOWN,
    Kind,
    Refused,
    TopicGone,
    explain,
    explain_topic,
    kind_of,
    name_of,
)

# Kafka 4: what a broker may answer to Produce, AddPartitionsToTxn and EndTxn, by the exception that
# Java's client has for the code.
RETRIABLE = {3, 5, 6, 7, 9, 13, 14, 15, 16, 19, 20, 51, 56, 74, 75, 89, 100}
"""Subclasses of RetriableException, except CORRUPT_MESSAGE."""
OF_AN_EVENT = {2, 10, 18, 32, 87}
OF_A_TOPIC = {17, 21, 29, 43, 44, 76}
OF_A_PRODUCER = {31, 33, 34, 35, 42, 45, 47, 48, 49, 50, 53, 54, 58, 59, 90, 120}
OF_THE_BROKER = {-1, 8, 52, 57}
OTHERS = set(range(-1, 200)) - ACCEPTED - {OPERATION_NOT_ATTEMPTED}


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        (RETRIABLE, Kind.PASSING),
        (OF_THE_BROKER, Kind.PASSING),
        (OF_AN_EVENT, Kind.EVENT),
        (OF_A_TOPIC, Kind.TOPIC),
        (OF_A_PRODUCER, Kind.PRODUCER),
        (OTHERS - CODES.keys(), UNKNOWN),
    ],
)
def test_each_code_has_its_kind(codes: set[int], kind: Kind) -> None:
    assert {code: kind_of(code) for code in codes} == dict.fromkeys(codes, kind)


def test_the_table_has_exactly_the_codes_of_these_lists() -> None:
    assert CODES.keys() == RETRIABLE | OF_AN_EVENT | OF_A_TOPIC | OF_A_PRODUCER | OF_THE_BROKER


def test_no_code_that_aiokafka_tries_again_is_taken_for_final() -> None:
    retried = {code for code, error in kafka_errors.items() if error.retriable}
    assert {kind_of(code) for code in retried} == {Kind.PASSING}


def test_a_fenced_producer_is_of_no_more_use() -> None:
    assert {kind_of(code) for code in FENCED} == {Kind.PRODUCER}


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (87, "INVALID_RECORD"),  # aiokafka does not know this one
        (10, "MESSAGE_TOO_LARGE"),  # Kafka's name, not aiokafka's
        (36, "TOPIC_ALREADY_EXISTS"),  # not of these requests
        (4711, "error code 4711"),
    ],
)
def test_each_code_has_a_name(code: int, name: str) -> None:
    assert name_of(code) == name
    assert str(Refused(code, "orders")) == name
    assert (
        str(Refused(code, "orders", "in the broker's words")) == f"{name} (in the broker's words)"
    )


@pytest.mark.parametrize(
    "error", [Refused(87, "orders", "no key", (1, 2)), TopicGone("orders")], ids=repr
)
def test_an_error_is_copied_whole(error: Refused) -> None:
    again = copy.copy(error)  # aiokafka gives each record of a batch a copy
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_a_topic_that_is_gone_is_named_with_the_remedy() -> None:
    assert TopicGone("orders").kind is Kind.TOPIC
    assert explain_topic(TopicGone("orders")).startswith("topic 'orders' is gone: it was deleted")
    assert "create it again, then retry" in explain_topic(TopicGone("orders"))


def test_a_topic_that_refuses_is_named_with_the_brokers_reason() -> None:
    text = explain_topic(Refused(29, "orders"))
    assert text == (
        "the broker refuses topic 'orders': TOPIC_AUTHORIZATION_FAILED; allow it, then retry"
    )


def test_an_error_of_aiokafkas_sender_is_explained_by_its_cause() -> None:
    outer = KafkaError("Unexpected error during batch delivery")
    outer.__cause__ = Refused(48, "orders")
    assert explain(outer) == "INVALID_TXN_STATE"
    assert "newer producer" in explain(ProducerFenced())
    assert explain(AssertionError()) == "AssertionError()"
