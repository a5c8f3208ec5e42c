"""Redaction: fields of an event that a replay drops, blanks, masks or hashes (docs/mapping.md).

A path leads through arrays: its next name means the field of each document in the array.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from bson import DBRef

from replay_app.events import encode_json, fields_of, is_text, is_within
from replay_app.exceptions import EventError, ReplayFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replay_app.commands import Redact
    from replay_app.events import Document
    from replay_app.settings import Settings

MASK = "***"
"""What becomes of a masked text, and of every other value that JSON writes as text."""
KEY_SETTING = "REPLAY_REDACT_KEY"

Tree = dict[str, Any]
"""By the name of a field: a `Redact`, or a further tree."""


class Redaction:
    """The rules of one replay."""

    def __init__(self, rules: Mapping[str, Redact], key: bytes) -> None:
        """``rules`` are by dotted path; no path lies within another one. ``key`` is for hashes."""
        self._rules = dict(rules)
        self._key = key
        self._tree: Tree = {}
        for path, action in rules.items():
            *parents, name = path.split(".")
            tree = self._tree
            for parent in parents:
                tree = tree.setdefault(parent, {})
            tree[name] = action

    @property
    def native(self) -> tuple[list[tuple[str, Redact]], bytes]:
        """The rules and the key, for the native encoder."""
        return [*self._rules.items()], self._key

    def apply(self, document: Document) -> None:
        """Redact the fields of a decoded document.

        Raises
        ------
        EventError
            When a value is to be hashed and has no mapping to JSON.

        """
        self._redact(document, self._tree, "")

    def masked(self) -> Redaction:
        """Return the same redaction with masks for hashes. No value is refused."""
        rules = {path: "mask" if rule == "hash" else rule for path, rule in self._rules.items()}
        return Redaction(rules, b"")

    def _redact(self, value: Any, tree: Tree, outer: str) -> None:
        if isinstance(value, list):
            value[:] = map(_plain, value)
            for one in value:
                self._redact(one, tree, outer)
            return
        if not isinstance(value, dict):
            return
        for name, rule in tree.items():
            if name not in value:
                continue
            path = f"{outer}.{name}" if outer else name
            if isinstance(rule, dict):
                value[name] = _plain(value[name])
                self._redact(value[name], rule, path)
            elif rule == "drop":
                del value[name]
            elif rule == "null":
                value[name] = None
            elif rule == "mask":
                value[name] = _mask(value[name])
            else:
                value[name] = self._hash(value[name], path)

    def _hash(self, value: Any, path: str) -> str | None:
        """Return the HMAC-SHA256 of a text, or of the JSON of another value; null stays null."""
        if value is None:
            return None
        try:
            text = value.encode() if is_text(value) else encode_json(value)
        except EventError:  # it may quote the value
            msg = f"field {path!r} cannot be hashed: its value has no mapping to JSON"
            raise EventError(msg) from None
        return hmac.digest(self._key, text, "sha256").hex()


def _plain(value: Any) -> Any:
    """Return a reference as the document that it is. The driver makes an object of it."""
    return dict(value.as_doc()) if isinstance(value, DBRef) else value


def _mask(value: Any) -> Any:
    """Return a value of the same JSON type that tells nothing."""
    if value is None:
        return None
    if isinstance(value, bool):
        return False
    if isinstance(value, int | float):
        return 0
    if isinstance(value, dict):
        return {}
    return [] if isinstance(value, list) else MASK


def leads_to_field(value: Any, path: str) -> bool:
    """Return whether a dotted path leads to a field of a document, also through arrays."""
    if isinstance(value, list):
        return any(leads_to_field(one, path) for one in value)
    name, _, rest = path.partition(".")
    value = _plain(value)
    if not isinstance(value, dict) or name not in value:
        return False
    return not rest or leads_to_field(value[name], rest)


def redaction_of(settings: Settings, rules: Mapping[str, Redact]) -> Redaction | None:
    """Return the redaction of a replay; None if the replay redacts nothing.

    Raises
    ------
    ReplayFailed
        When a rule cannot be kept: the key is missing, or the field is not only in the value.

    """
    if not rules:
        return None
    mapping = settings.mapping
    if mapping.field_value is not None:
        msg = (
            f"redact: the value of each record is field {mapping.field_value!r} unchanged "
            "(REPLAY_FIELD_VALUE), and nothing in it can be redacted"
        )
        raise ReplayFailed(msg)
    for path in rules:
        for used in sorted({*fields_of(mapping), "_id"} - {mapping.field_replayed}):
            if is_within(path, used) or is_within(used, path):
                msg = (
                    f"redact: {path!r} cannot be redacted: the mapping reads {used!r}, and key, "
                    "headers, topic or place of the record would still tell it; leave the path "
                    "out, or name another field in the mapping"
                )
                raise ReplayFailed(msg)
    key = settings.redact_key
    if key is None and "hash" in rules.values():
        msg = (
            f"redact: a hash needs a secret key: set {KEY_SETTING}, the same on all workers, then "
            "retry"
        )
        raise ReplayFailed(msg)
    return Redaction(rules, b"" if key is None else key.get_secret_value().encode())


def key_fingerprint(settings: Settings, rules: Mapping[str, Redact]) -> dict[str, str]:
    """Return what a plan keeps of the key, so that no replay has hashes of two keys."""
    key = settings.redact_key
    if key is None or "hash" not in rules.values():
        return {}
    digest = hmac.digest(key.get_secret_value().encode(), b"event-replay", "sha256")
    return {KEY_SETTING: f"hmac:{digest.hex()[:16]}"}
