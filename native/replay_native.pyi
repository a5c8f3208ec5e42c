"""The native page encoder; only `replay_app.native_encoder` uses this module."""

from typing import Any, Final, TypedDict, final

INTERFACE: Final = 5

class Account(TypedDict):
    """The batches and counts of a page."""

    read: int
    """Documents that were read, with the skipped and the failed documents."""
    encoded: int
    """Records in the batches."""
    skipped_replays: int
    """Documents that were not encoded because they are replayed events themselves."""
    bytes: int
    """Bytes of all values."""
    batches: list[tuple[str, int, Batch, int, int]]
    """Topic, partition, batch, number of records, bytes of the values."""
    by_type: dict[str, int]
    """Records of each event type."""
    by_topic: dict[str, int]
    """Records of each topic."""
    last: tuple[int, int] | None
    """Begin and end, in the page, of the last document that was read."""

@final
class Encoder:
    """Encodes the pages of a replay."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Take the parts of an `EncodeSpec`, each under its name.

        Raises `KeyError` if a part is missing, `ValueError` if a part has an unknown value.
        """

    def begin(self, page: bytes, now_ms: int) -> Page:
        """Begin a page; ``now_ms`` is the append time in milliseconds after 1970.

        Raises `ValueError` if the bytes are not a sequence of documents.
        """

@final
class Page:
    """A page that is being encoded; one thread uses it."""

    def run(self) -> tuple[int, int, int] | None:
        """Encode until a document is declined; return the document's index, begin and end.

        None: no document is left.
        """

    def add(
        self,
        kind: str,
        topic: str,
        partition: int,
        timestamp_ms: int,
        key: bytes,
        value: bytes | None,
        headers: list[tuple[str, bytes | None]],
    ) -> None:
        """Append the record that the reference made of the declined document."""

    def leave_out(self) -> None:
        """Go on after the declined document, which failed."""

    def skip(self) -> None:
        """Go on after the declined document, which is a replayed event itself."""

    def finish(self) -> Account:
        """Return the batches and the counts; the page cannot be used any more."""

@final
class Batch:
    """A batch that takes no more records."""

    @property
    def size(self) -> int:
        """Bytes of the batch as the producer sends it."""

    def records(self) -> list[tuple[int, bytes, bytes | None, list[bytes]]] | None:
        """Return each record's timestamp, key, value, and the values of its last two headers.

        None: the records are compressed.
        """

    def seal(self, producer_id: int, producer_epoch: int, base_sequence: int) -> bytes:
        """Return the batch as the producer sends it, with the producer's state in the header."""
