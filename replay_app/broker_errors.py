"""What the broker's error codes mean for a replay, and the error that carries such a code.

The codes are those of Kafka's protocol guide. `CODES` has every code with which a broker answers
the requests Produce, AddPartitionsToTxn and EndTxn.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from aiokafka.errors import KafkaError, kafka_errors

ACCEPTED = frozenset({0, 46})
"""Codes of a batch that the broker has: NONE, and DUPLICATE_SEQUENCE_NUMBER after a repetition."""
FENCED = frozenset({47, 90})
"""INVALID_PRODUCER_EPOCH and PRODUCER_FENCED: another producer has the transactional id, or the
transaction has timed out."""
CONCURRENT_TRANSACTIONS = 51
OPERATION_NOT_ATTEMPTED = 55


class Kind(StrEnum):
    """What an error code is about."""

    PASSING = "passing"
    """The same request may succeed later. A replay waits, and fails after PASSING_SECONDS."""
    EVENT = "event"
    """One record, or the size of a batch. The event fails under the replay's ``on_error``."""
    TOPIC = "topic"
    """The topic takes no record of this worker until a person acts. The replay fails."""
    PRODUCER = "producer"
    """The producer is of no more use. A new producer starts the slice again; if the error stays,
    the replay fails after PASSING_SECONDS."""


CODES: dict[int, tuple[str, Kind]] = {
    -1: ("UNKNOWN_SERVER_ERROR", Kind.PASSING),
    2: ("CORRUPT_MESSAGE", Kind.EVENT),
    3: ("UNKNOWN_TOPIC_OR_PARTITION", Kind.PASSING),  # the publisher finds out if a topic is gone
    5: ("LEADER_NOT_AVAILABLE", Kind.PASSING),
    6: ("NOT_LEADER_OR_FOLLOWER", Kind.PASSING),
    7: ("REQUEST_TIMED_OUT", Kind.PASSING),
    8: ("BROKER_NOT_AVAILABLE", Kind.PASSING),
    9: ("REPLICA_NOT_AVAILABLE", Kind.PASSING),
    10: ("MESSAGE_TOO_LARGE", Kind.EVENT),
    13: ("NETWORK_EXCEPTION", Kind.PASSING),
    14: ("COORDINATOR_LOAD_IN_PROGRESS", Kind.PASSING),
    15: ("COORDINATOR_NOT_AVAILABLE", Kind.PASSING),
    16: ("NOT_COORDINATOR", Kind.PASSING),
    17: ("INVALID_TOPIC_EXCEPTION", Kind.TOPIC),
    18: ("RECORD_LIST_TOO_LARGE", Kind.EVENT),
    19: ("NOT_ENOUGH_REPLICAS", Kind.PASSING),
    20: ("NOT_ENOUGH_REPLICAS_AFTER_APPEND", Kind.PASSING),
    21: ("INVALID_REQUIRED_ACKS", Kind.TOPIC),
    29: ("TOPIC_AUTHORIZATION_FAILED", Kind.TOPIC),
    31: ("CLUSTER_AUTHORIZATION_FAILED", Kind.PRODUCER),
    32: ("INVALID_TIMESTAMP", Kind.EVENT),
    33: ("UNSUPPORTED_SASL_MECHANISM", Kind.PRODUCER),
    34: ("ILLEGAL_SASL_STATE", Kind.PRODUCER),
    35: ("UNSUPPORTED_VERSION", Kind.PRODUCER),
    42: ("INVALID_REQUEST", Kind.PRODUCER),
    43: ("UNSUPPORTED_FOR_MESSAGE_FORMAT", Kind.TOPIC),
    44: ("POLICY_VIOLATION", Kind.TOPIC),
    45: ("OUT_OF_ORDER_SEQUENCE_NUMBER", Kind.PRODUCER),
    47: ("INVALID_PRODUCER_EPOCH", Kind.PRODUCER),
    48: ("INVALID_TXN_STATE", Kind.PRODUCER),
    49: ("INVALID_PRODUCER_ID_MAPPING", Kind.PRODUCER),
    50: ("INVALID_TRANSACTION_TIMEOUT", Kind.PRODUCER),
    CONCURRENT_TRANSACTIONS: ("CONCURRENT_TRANSACTIONS", Kind.PASSING),
    52: ("TRANSACTION_COORDINATOR_FENCED", Kind.PASSING),
    53: ("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", Kind.PRODUCER),
    54: ("SECURITY_DISABLED", Kind.PRODUCER),
    56: ("KAFKA_STORAGE_ERROR", Kind.PASSING),
    57: ("LOG_DIR_NOT_FOUND", Kind.PASSING),
    58: ("SASL_AUTHENTICATION_FAILED", Kind.PRODUCER),
    59: ("UNKNOWN_PRODUCER_ID", Kind.PRODUCER),
    74: ("FENCED_LEADER_EPOCH", Kind.PASSING),
    75: ("UNKNOWN_LEADER_EPOCH", Kind.PASSING),
    76: ("UNSUPPORTED_COMPRESSION_TYPE", Kind.TOPIC),
    87: ("INVALID_RECORD", Kind.EVENT),
    89: ("THROTTLING_QUOTA_EXCEEDED", Kind.PASSING),
    90: ("PRODUCER_FENCED", Kind.PRODUCER),
    100: ("UNKNOWN_TOPIC_ID", Kind.PASSING),
    120: ("TRANSACTION_ABORTABLE", Kind.PRODUCER),
}
UNKNOWN = Kind.PASSING
"""The kind of a code that is not in `CODES`: another attempt can do no harm, and the attempts are
limited."""


def kind_of(code: int) -> Kind:
    """Return what an error code is about."""
    return CODES[code][1] if code in CODES else UNKNOWN


def name_of(code: int) -> str:
    """Return the name of an error code in Kafka's protocol guide, or the number."""
    if code in CODES:
        return CODES[code][0]
    known = kafka_errors.get(code)
    return known.message if known else f"error code {code}"


class Refused(KafkaError):  # type: ignore[misc]  # aiokafka ships no types
    """The broker, or the library, has refused a batch for good: nothing of the batch is written."""

    def __init__(
        self, code: int, topic: str, detail: str | None = None, records: Sequence[int] = ()
    ) -> None:
        # aiokafka copies errors: the arguments must be enough to make the error again.
        super().__init__(code, topic, detail, records)
        self.code = code
        self.topic = topic
        self.detail = detail
        """The broker's own words."""
        self.records = records
        """The places, in the batch, of the records at fault. Empty: the broker does not say."""

    @property
    def kind(self) -> Kind:
        """What the error code is about."""
        return kind_of(self.code)

    def __str__(self) -> str:
        """Return the name of the code, and the broker's own words."""
        return name_of(self.code) + (f" ({self.detail})" if self.detail else "")


class TopicGone(Refused):
    """The topic does not exist any more."""

    def __init__(self, topic: str) -> None:
        super().__init__(3, topic)
        self.args = (topic,)  # as in the base: for a copy

    @property
    def kind(self) -> Kind:
        """Return that the topic is at fault."""
        return Kind.TOPIC

    def __str__(self) -> str:
        """Return which topic is gone."""
        return f"topic {self.topic!r} is gone"


def explain(error: BaseException) -> str:
    """Return an error as text. An error of aiokafka's sender is explained by its cause."""
    cause = error.__cause__ if isinstance(error, KafkaError) else None
    return str(cause or error) or repr(error)


def explain_topic(error: Refused) -> str:
    """Return why a topic takes no records, and what to do."""
    if isinstance(error, TopicGone):
        return (
            f"topic {error.topic!r} is gone: it was deleted during the replay; create it again, "
            "then retry. What was published before is lost with the topic: start a new replay to "
            "publish all events"
        )
    return f"the broker refuses topic {error.topic!r}: {error}; allow it, then retry"
