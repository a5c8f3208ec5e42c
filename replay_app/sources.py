"""Where a replay's events come from, and how they become records: the same from plan to end.

A cursor is a place in one collection, read with one mapping. A worker that is pointed at another
collection would go on behind this place, and leave out what lies before. So the plan keeps what
counts, and every worker compares before it reads. Hosts, users and passwords do not count: the
members of a replica set may change during a replay.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from replay_app.exceptions import ReplayFailed
from replay_app.redaction import key_fingerprint
from replay_app.reports import changes_of
from replay_app.schemas import MEMBER, schemas_fingerprint
from replay_app.settings import mapping_settings
from replay_app.transform_names import is_transform, transform_fingerprints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replay_app.commands import Source, Start
    from replay_app.settings import Settings

MAX_VALUE = 200
"""Characters of a value. A longer one is kept as its hash."""
UUID = "UUID of the collection"
"""Under which name a plan keeps the identity of the collection. A view has none."""
_NAMES = {"mongo_database", "mongo_collection"}
_OF_RECORDS = {MEMBER} | {
    f"REPLAY_{name.upper()}"
    for name in (
        *("field_topic", "field_key", "field_value", "field_headers", "field_version"),
        *("exclude_fields", "null_values", "topics", "topic_template", "redact_key"),
    )
}
"""Settings that decide only how an event becomes a record, and not which events are read, nor in
which order."""


def settings_for(settings: Settings, source: Source) -> Settings:
    """Return the settings with which a replay of a source reads its events.

    Raises
    ------
    ReplayFailed
        When the settings do not allow the collection, or do not know the mapping.

    """
    if source == type(source)():
        return settings
    members: dict[str, Any] = {
        "mongo_database": source.database or settings.mongo_database,
        "mongo_collection": source.collection or settings.mongo_collection,
    }
    name = f"{members['mongo_database']}.{members['mongo_collection']}"
    own = f"{settings.mongo_database}.{settings.mongo_collection}"
    if name != own and not any(_fits(name, pattern) for pattern in settings.sources):
        allowed = ",".join(settings.sources) or "empty"
        msg = (
            f"no worker may read {name!r}: REPLAY_SOURCES is {allowed}; add the collection to "
            "REPLAY_SOURCES of all workers, then retry"
        )
        raise ReplayFailed(msg)
    if source.mapping is not None:
        if source.mapping not in settings.named_mappings:
            known = ", ".join(sorted(settings.named_mappings)) or "none"
            msg = (
                f"there is no mapping {source.mapping!r}: the file of REPLAY_MAPPINGS has {known}; "
                "add the mapping to the file of all workers and start them again, then retry"
            )
            raise ReplayFailed(msg)
        members |= settings.named_mappings[source.mapping]
    return settings.replaced(members)


def _fits(name: str, pattern: str) -> bool:
    """Return whether a name is that of a pattern, in which ``*`` stands for any text."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name, re.DOTALL) is not None


def source_of(settings: Settings, start: Start | None = None) -> dict[str, str]:
    """Return the settings that must stay the same while a replay lasts, by variable, as text.

    The key of the hashes is among them if the start command asks for a hash, and so are its
    transforms and the schemas that it checks.

    Raises
    ------
    ReplayFailed
        When a transform is unknown, or when a schema is none.

    """
    values = settings.model_dump(include=_NAMES | mapping_settings())
    found = {f"REPLAY_{name.upper()}": _text(value) for name, value in sorted(values.items())}
    if start is None:
        return found
    return {
        **found,
        **key_fingerprint(settings, start.redact),
        **transform_fingerprints(settings, start.transforms),
        **schemas_fingerprint(settings, start),
    }


def _text(value: Any) -> str:
    if isinstance(value, dict):
        value = json.dumps(value, sort_keys=True)
    elif isinstance(value, tuple):
        value = ",".join(sorted(value))
    if len(value) <= MAX_VALUE:
        return str(value)
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"


def with_uuid(source: Mapping[str, str], uuid: str) -> dict[str, str]:
    """Return a source with the identity of the collection, if the store tells one."""
    return {**source, UUID: uuid} if uuid else dict(source)


def require_same_source(
    planned: Mapping[str, str],
    now: Mapping[str, str],
    *,
    accept_changes: bool = False,
    can_retry: bool = True,
) -> None:
    """Compare what a replay was planned with, and what a worker has now.

    With ``accept_changes``, only what the cursor depends on must be the same: another collection,
    or another order, has no such place. ``can_retry``: the replay has not ended.

    Raises
    ------
    ReplayFailed
        When they differ. The message has both values, and what to do.

    """
    changes = changes_of(planned, now)
    fatal = [name for name in changes if name not in _OF_RECORDS and not is_transform(name)]
    if not (fatal if accept_changes else changes):
        return
    remedy = "Point all workers back, then retry; "
    if not fatal and can_retry:
        remedy += "or retry with accept_changes (--accept-changes) to go on with the new ones; "
    msg = (
        f"the replay was planned with another event store or mapping: {'; '.join(changes.values())}"
        f". {remedy}or start a new replay"
    )
    raise ReplayFailed(msg)
