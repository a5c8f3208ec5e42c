"""Private names of other libraries, behind public names, and a check of the libraries' versions.

A private name may change with any version. So the versions are pinned, and a worker that finds
other versions does not start (`check_versions`). Only three modules of this program may use private
names of aiokafka, Faust and PyMongo: this one, `kafka_internals` (aiokafka's producer and its
connections) and `kafka_requests` (requests that aiokafka does not have).
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any, Never, Protocol

import bson
from aiokafka.producer.message_accumulator import BatchBuilder
from bson import json_util, raw_bson
from pymongo.cursor import RawBatchCursor

from replay_app.exceptions import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import faust
    from bson.json_util import JSONOptions

__all__ = (
    "BatchBuilder",
    "FinishedBatch",
    "PageCursor",
    "batch_bytes",
    "check_versions",
    "has_lost_membership",
    "to_json_values",
)

VERSIONS = {"aiokafka": "0.14.0", "faust-streaming": "0.15.3", "pymongo": "4.20.0"}
"""The versions whose private names were read and tested. ``pyproject.toml`` pins the same ones."""


def check_versions() -> None:
    """Compare the installed libraries with `VERSIONS`.

    Raises
    ------
    InvalidSettings
        When another version is installed. The message names the library and both versions.

    """
    for library, wanted in VERSIONS.items():
        found = importlib.metadata.version(library)
        if found != wanted:
            msg = (
                f"{library} {found} is installed, but this program is tested with {wanted} and "
                f"uses private names of that version: pip install {library}=={wanted}"
            )
            raise InvalidSettings(msg)


# aiokafka


class EncodedRecords(Protocol):
    """Encoded and compressed records of one partition: ``replay_native.Batch``."""

    @property
    def size(self) -> int:
        """Bytes of the batch, header included."""

    def seal(self, producer_id: int, producer_epoch: int, base_sequence: int) -> bytes:
        """Return the batch with its header, for one producer."""


class FinishedBatch(BatchBuilder):  # type: ignore[misc]  # aiokafka ships no types
    """A batch whose records are already encoded. The header is written when the batch is sent.

    ``AIOKafkaProducer.send_batch`` takes it in place of the builder of ``create_batch``.
    """

    def __init__(self, batch: EncodedRecords, records: int) -> None:
        # The base's __init__ would open a builder for records that are encoded already.
        self._unsealed: EncodedRecords | None = batch
        self._size = batch.size
        self._records = records
        self._producer_state = (-1, -1, 0)
        self._sealed = b""

    def append(
        self, *, timestamp: int, key: bytes, value: bytes, headers: Sequence[Any] = ()
    ) -> None:
        """Return None, as a full batch does."""

    def close(self) -> None:
        """Do nothing: the batch is closed."""

    def closed(self) -> bool:
        """Return True."""
        return True

    def size(self) -> int:
        """Return the bytes that are sent."""
        return self._size

    def record_count(self) -> int:
        """Return the number of records."""
        return self._records

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        # As in the base: a batch that may have been sent keeps its sequence number.
        assert self._unsealed is not None, "the batch is sealed"  # noqa: S101
        self._producer_state = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> bytes:
        # Sealed once: a retry must send the same bytes, and memory holds one copy only.
        if self._unsealed is not None:
            self._sealed = self._unsealed.seal(*self._producer_state)
            self._unsealed = None
        return self._sealed

    def _serialize(self, key: Any, value: Any) -> Never:
        raise NotImplementedError


def batch_bytes(builder: BatchBuilder) -> int:
    """Close a batch, compress it, and return its bytes as the producer sends them."""
    return len(builder._build())  # noqa: SLF001


def has_lost_membership(app: faust.App) -> bool:
    """Return whether aiokafka has given up the consumer group of a Faust app.

    aiokafka's coordinator ends its task then. Neither aiokafka nor Faust reports this.
    """
    thread = getattr(app._consumer, "_thread", None)  # noqa: SLF001
    coordinator = getattr(getattr(thread, "_consumer", None), "_coordinator", None)
    task = getattr(coordinator, "_coordination_task", None)
    return task is not None and task.done()


# PyMongo


class PageCursor(RawBatchCursor[Any]):
    """The cursor of ``find_raw_batches``, at a third of its cost.

    The base makes an object of each document of a page and throws the object away, while it holds
    the interpreter's lock.
    """

    def _unpack_response(
        self,
        response: Any,
        cursor_id: int | None,  # noqa: ARG002 - the base's signature
        codec_options: Any,  # noqa: ARG002
        user_fields: Any = None,
        legacy_response: bool = False,  # noqa: ARG002, FBT001, FBT002
    ) -> list[Any]:
        options: Any = raw_bson._RAW_ARRAY_BSON_OPTIONS  # noqa: SLF001
        reply = raw_bson._RawArrayBSONDocument(response.payload_document, options)  # noqa: SLF001
        fields = bson._decode_selective(reply, user_fields, options)  # noqa: SLF001
        bson._convert_raw_document_lists_to_streams(fields)  # noqa: SLF001
        return [fields]


def to_json_values(value: Any, options: JSONOptions) -> Any:
    """Return what ``json_util.dumps`` would write, as plain JSON values instead of text."""
    return json_util._json_convert(value, options)  # noqa: SLF001
