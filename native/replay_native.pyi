"""The native page encoder; `replay_app.native` is its one user."""

from typing import Any, Final, TypedDict, final

INTERFACE: Final = 2

class Account(TypedDict):
    read: int
    encoded: int
    skipped_replays: int
    bytes: int
    batches: list[tuple[str, int, Batch, int, int]]
    """Topic, partition, batch, records, bytes of the values."""
    by_type: dict[str, int]
    by_topic: dict[str, int]
    last: tuple[int, int] | None
    """Where in the page the last document that was read begins and ends."""

@final
class Encoder:
    def __init__(self, spec: dict[str, Any]) -> None: ...
    def begin(self, page: bytes, now_ms: int) -> Page: ...

@final
class Page:
    def run(self) -> tuple[int, int, int] | None:
        """Return index, begin and end of the next document that is declined; None: all are done."""

    def add(
        self,
        kind: str,
        topic: str,
        partition: int,
        timestamp_ms: int,
        key: bytes,
        value: bytes,
        headers: list[tuple[str, bytes]],
    ) -> None: ...
    def leave_out(self) -> None: ...
    def skip(self) -> None: ...
    def finish(self) -> Account: ...

@final
class Batch:
    @property
    def size(self) -> int: ...
    def seal(
        self, producer_id: int, producer_epoch: int, base_sequence: int, transactional: bool
    ) -> bytes: ...
