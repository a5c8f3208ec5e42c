"""The native page encoder: the records of `PythonEncoder`, in a sixth of its time.

The module ``replay_native`` (written in Rust, in ``native/``) does the work, without the
interpreter's lock. It declines every document that it might encode in another way than the Python
encoder. The Python encoder encodes these documents, so all errors are errors of the Python encoder.
"""

from __future__ import annotations

from typing import Any

import replay_native

from replay_app.exceptions import EventError, InvalidSettings
from replay_app.internals import FinishedBatch
from replay_app.pages import (
    Batch,
    EncodedPage,
    EncodeSpec,
    count_documents,
    make_failure,
    overhead_bytes,
    replay_headers,
    set_position,
    timestamp_ms,
)
from replay_app.python_encoder import PythonEncoder

INTERFACE = 6
"""The version of ``replay_native``'s interface that this module calls."""


def check_interface() -> None:
    """Compare the installed ``replay_native`` with `INTERFACE`.

    Raises
    ------
    InvalidSettings
        When another interface is installed.

    """
    if (interface := replay_native.INTERFACE) != INTERFACE:
        msg = (
            f"the native encoder that is installed has interface {interface}, not {INTERFACE}: "
            "run `make native`"
        )
        raise InvalidSettings(msg)


class NativeEncoder:
    """Encodes pages with ``replay_native``; see `PageEncoder`."""

    name = "native"

    def __init__(self, spec: EncodeSpec) -> None:
        self._spec = spec
        self._reference = PythonEncoder(spec)
        self._encoder = replay_native.Encoder(_native_spec(spec))

    def encode(self, page: bytes, now_ms: int) -> EncodedPage:
        """Encode a page; see `PageEncoder`."""
        spec, out = self._spec, EncodedPage()
        try:
            work = self._encoder.begin(page, now_ms)
        except ValueError:
            count_documents(page)  # raises the error that names the cause
            raise
        while (declined := work.run()) is not None:
            index, start, end = declined
            document = page[start:end]
            try:
                record = self._reference.record(document)
            except EventError as error:
                out.failures.append(make_failure(index, document, error, spec.mapping))
                if spec.stop_at_failure:
                    break
                work.leave_out()
                continue
            if record is None:
                work.skip()
                continue
            kind, topic, partition, time, key, value, headers = record
            timestamp = timestamp_ms(time) if spec.record_timestamp == "original" else now_ms
            work.add(kind, topic, partition, timestamp, key, value, headers)
        account = work.finish()
        out.read = account["read"]
        out.encoded = account["encoded"]
        out.skipped_replays = account["skipped_replays"]
        out.bytes = account["bytes"]
        out.by_type = account["by_type"]
        out.by_topic = account["by_topic"]
        for topic, partition, batch, records, size in account["batches"]:
            builder = FinishedBatch(batch, records)
            out.batches.append(Batch(topic, partition, builder, records, size))
        if (last := account["last"]) is not None:
            set_position(out, page, last, spec)
        return out


def _native_spec(spec: EncodeSpec) -> dict[str, Any]:
    """Return a spec as the argument of ``replay_native.Encoder``."""
    mapping, target = spec.mapping, spec.target
    headers = replay_headers(spec)
    redact, redact_key = ([], b"") if spec.redaction is None else spec.redaction.native
    return {
        "field_id": mapping.field_id,
        "field_timestamp": mapping.field_timestamp,
        "field_type": mapping.field_type,
        "field_aggregate": mapping.field_aggregate,
        "field_topic": mapping.field_topic,
        "field_key": mapping.field_key,
        "field_value": mapping.field_value,
        "field_headers": mapping.field_headers,
        "field_replayed": None if spec.include_replayed else mapping.field_replayed,
        "timestamp_type": mapping.timestamp_type,
        "exclude_fields": list(mapping.exclude_fields),
        "redact": redact,
        "redact_key": redact_key,
        "topics": dict(mapping.topics),
        "topic_template": mapping.topic_template,
        "target_topic": target.topic,
        "target_topics": dict(target.topics),
        "target_prefix": target.prefix or "",
        "replay_id": spec.replay_id,
        "headers": headers,
        "overhead_bytes": overhead_bytes(headers),
        "partitions": spec.partitions,
        "original_timestamps": spec.record_timestamp == "original",
        "compression": spec.compression,
        "max_record_bytes": spec.max_record_bytes,
        "batch_bytes": spec.batch_bytes,
    }
