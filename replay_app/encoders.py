"""The choice of the page encoder: ``REPLAY_ENCODER``."""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from replay_app.exceptions import InvalidSettings
from replay_app.pages import EncodedPage, EncodeSpec, PageEncoder
from replay_app.python_encoder import PythonEncoder
from replay_app.redaction import redaction_of
from replay_app.schemas import schemas_of
from replay_app.transform_names import transforms_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay_app.commands import Start
    from replay_app.sessions import Session
    from replay_app.settings import Settings

logger = logging.getLogger(__name__)


def record_spec(settings: Settings, start: Start, sort: Sequence[str]) -> EncodeSpec:
    """Return how the events of a start command become records, where nothing is published.

    ``sort`` are the fields of the shard's order.

    Raises
    ------
    ReplayFailed
        When the replay's redaction cannot be kept, when a transform is unknown, or when a schema is
        none.

    """
    return EncodeSpec(
        mapping=settings.mapping,
        target=start.target,
        replay_id=start.replay_id,
        attempt=1,
        name=start.name,
        reason=start.reason,
        partitions=None,
        cursor_fields=tuple(sort),
        stop_at_failure=False,
        include_replayed=start.include_replayed,
        record_timestamp=settings.record_timestamp,
        compression="none",
        max_record_bytes=settings.max_record_bytes,
        redaction=redaction_of(settings, start.redact),
        transforms=transforms_of(settings, start.transforms, start.target.prefix),
        schemas=schemas_of(settings, start),
    )


def encode_spec(
    settings: Settings,
    session: Session,
    sort: Sequence[str],
    partitions: dict[str, int],
    batch_bytes: dict[str, int],
) -> EncodeSpec:
    """Return how a session's events become records, in its present attempt.

    ``sort`` are the fields of the shard's order. ``partitions`` and ``batch_bytes`` are by topic:
    how many partitions the topic has, and the limit on its batches, see
    `destinations.batch_limits`.

    Raises
    ------
    ReplayFailed
        As `record_spec` does.

    """
    start = session.rules
    spec = record_spec(settings, start, sort)
    return replace(
        spec,
        attempt=session.attempt,
        partitions=partitions,
        stop_at_failure=start.on_error == "fail" and not start.dry_run,
        compression=codec_name(settings, needs_python=spec.needs_python),
        batch_bytes=batch_bytes,
    )


def make_encoder(spec: EncodeSpec, choice: str) -> PageEncoder:
    """Return the encoder for a value of ``REPLAY_ENCODER``.

    A replay with transforms or JSON Schemas has the Python encoder.

    Raises
    ------
    InvalidSettings
        When the choice is ``native`` and the native encoder cannot be used.

    """
    if spec.parking is not None:
        return ParkingEncoder(spec, choice)
    if encoder_name(choice) == "native" and not spec.needs_python:
        # Imported here: replay_native is optional.
        from replay_app.native_encoder import NativeEncoder  # noqa: PLC0415

        return NativeEncoder(spec)
    return PythonEncoder(spec)


class ParkingEncoder:
    """The encoder of a replay that parks: the usual one until an event of a page fails."""

    def __init__(self, spec: EncodeSpec, choice: str) -> None:
        self._spec = spec
        self._usual = make_encoder(replace(spec, parking=None), choice)
        self._reference = PythonEncoder(spec)
        self.name = self._usual.name

    def encode(self, page: bytes, now_ms: int) -> EncodedPage:
        """Encode a page; see `PageEncoder`."""
        if self._spec.parking is None or not self._spec.parking.behind:
            encoded = self._usual.encode(page, now_ms)
            if not encoded.failures:
                return encoded
        return self._reference.encode(page, now_ms)


def encoder_name(choice: str) -> str:
    """Return the name of the encoder, native or python, for a value of ``REPLAY_ENCODER``.

    Raises
    ------
    InvalidSettings
        When the choice is ``native`` and the native encoder cannot be used.

    """
    if choice == "python":
        return "python"
    obstacle = _native_obstacle()
    if obstacle is None:
        return "native"
    if choice == "native":
        msg = f"REPLAY_ENCODER=native: {obstacle}, or set REPLAY_ENCODER to auto or python"
        raise InvalidSettings(msg)
    return "python"


def codec_name(settings: Settings, *, needs_python: bool = False) -> str:
    """Return the codec of the published batches: ``REPLAY_COMPRESSION``, without ``auto``.

    The native encoder is fastest with lz4. aiokafka's lz4, which the Python encoder uses, takes
    three times as long as its snappy (bench/RESULTS.md).

    Raises
    ------
    InvalidSettings
        When the native encoder is demanded and cannot be used.

    """
    if settings.compression != "auto":
        return settings.compression
    is_native = encoder_name(settings.encoder) == "native" and not needs_python
    return "lz4" if is_native else "snappy"


@functools.cache
def _native_obstacle() -> str | None:
    """Return why the native encoder cannot be used; None if it can."""
    if importlib.util.find_spec("replay_native") is None:
        return "the native encoder is not installed: run `make native`"
    try:
        from replay_app.native_encoder import check_interface  # noqa: PLC0415 - optional, see above

        check_interface()
    except (ImportError, InvalidSettings) as error:
        logger.warning("the native encoder is not used: %s", error)
        return str(error)
    return None
