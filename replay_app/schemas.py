"""JSON Schemas of events, by type and version: what the value of a record must fit.

A folder has a file for each type, or for each version of a type: ``order_placed.json``,
``order_placed.2.json`` (docs/transforms.md). The files are read once by each worker.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson

from replay_app.events import as_text, field_at
from replay_app.exceptions import EventError, ReplayFailed
from replay_app.reports import few

if TYPE_CHECKING:
    from collections.abc import Iterable

    from replay_app.commands import Start
    from replay_app.events import Document
    from replay_app.settings import Settings

SETTING = "REPLAY_SCHEMAS"
MEMBER = "schemas"
"""The name under which a plan keeps the fingerprint."""
MAX_FILES = 10_000
MAX_MESSAGE = 300
"""Characters of what a validator says that are kept."""


class Schemas:
    """The schemas of a folder."""

    def __init__(
        self, validators: dict[str, jsonschema_rs.Validator], field_version: str, fingerprint: str
    ) -> None:
        """Keep the ``validators``, which are by the name of the file without its suffix."""
        self._validators = validators
        self._field_version = field_version
        self._versions: dict[str, list[str]] = {}
        """By type: the names of the files of versions that are numbers."""
        self._prefixes = {name.rpartition(".")[0] for name in validators}
        for name in validators:
            kind, _, version = name.rpartition(".")
            if kind and version.isdecimal():
                self._versions.setdefault(kind, []).append(f"{name}.json")
        self.fingerprint = fingerprint
        """A hash of the names and the bytes of all files."""

    def version_of(self, document: Document) -> Any:
        """Return the value in the field of the version; None without one."""
        return field_at(document, self._field_version)

    def check(self, kind: str, version: Any, value: bytes) -> None:
        """Check the JSON of an event. A type without a schema passes.

        ``version`` is the value in the field of the version.

        Raises
        ------
        EventError
            When the value does not fit, or is no JSON, or when only other versions have a schema.
            The message names the schema and the place.

        """
        versions = self._versions.get(kind)
        if kind not in self._validators and kind not in self._prefixes:
            return
        text = None if version is None else as_text(version, "version")
        names = [kind] if text is None else [f"{kind}.{text}", kind]
        name = next((one for one in names if one in self._validators), None)
        if name is None:
            if versions and text is not None and text.isdecimal():
                msg = f"no schema checks version {text} of its type: there are {few(versions, 5)}"
                raise EventError(msg)
            return
        try:
            document = orjson.loads(value)
        except ValueError as error:
            msg = f"its value is no JSON, so that the schema {name}.json cannot check it: {error}"
            raise EventError(msg) from error
        fault = next(iter(self._validators[name].iter_errors(document)), None)
        if fault is not None:
            place = "/".join(map(str, fault.instance_path))
            where = f" at {place!r}" if place else ""
            msg = f"it does not fit the schema {name}.json{where}: {fault.message[:MAX_MESSAGE]}"
            raise EventError(msg)

    def missing(self, kinds: Iterable[str]) -> list[str]:
        """Return the types that have no schema, of any version."""
        return sorted({*kinds} - self._validators.keys() - self._versions.keys())


def schemas_of(settings: Settings, start: Start) -> Schemas | None:
    """Return the schemas that a replay checks; None if it checks none.

    Raises
    ------
    ReplayFailed
        When the folder cannot be read, or has a file that is no JSON Schema. The message names it.

    """
    if settings.schemas is None and start.check_schemas:
        msg = f"check_schemas: {SETTING} names no folder; set it on all workers, then retry"
        raise ReplayFailed(msg)
    if settings.schemas is None or not (start.dry_run or start.check_schemas):
        return None
    return _read(settings.schemas, settings.field_version)


def schemas_fingerprint(settings: Settings, start: Start) -> dict[str, str]:
    """Return what a plan keeps of the schemas; raise as `schemas_of` does."""
    found = schemas_of(settings, start)
    return {} if found is None else {MEMBER: found.fingerprint}


@functools.cache
def _read(folder: Path, field_version: str) -> Schemas:
    beginning = f"{SETTING}={folder}"
    try:
        files = sorted(folder.glob("*.json"))
        contents = {path: path.read_bytes() for path in files[:MAX_FILES]}
    except OSError as error:
        msg = f"{beginning}: {error.strerror}; correct the folder on all workers, then retry"
        raise ReplayFailed(msg) from error
    if not files or len(files) > MAX_FILES:
        msg = f"{beginning}: a folder with 1 to {MAX_FILES:,} files TYPE.json is needed, then retry"
        raise ReplayFailed(msg)
    digest = hashlib.sha256()
    validators = {}
    for path, content in contents.items():
        digest.update(b"%s\0%d\0%s" % (path.name.encode(), len(content), content))
        validators[path.stem] = _validator(path, content, contents, beginning)
    return Schemas(validators, field_version, f"sha256:{digest.hexdigest()[:16]}")


def _validator(
    path: Path, content: bytes, contents: dict[Path, bytes], beginning: str
) -> jsonschema_rs.Validator:
    known = {one.resolve().as_uri(): one for one in contents}

    def retrieve(uri: str) -> Any:
        """Return another schema of the folder: nothing is asked for in the network."""
        if uri not in known:
            msg = f"{uri} is not in the folder"
            raise ValueError(msg)
        return orjson.loads(contents[known[uri]])

    try:
        return jsonschema_rs.validator_for(
            orjson.loads(content), base_uri=path.resolve().as_uri(), retriever=retrieve
        )
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        told = str(error).partition("\n")[0][:MAX_MESSAGE]
        msg = (
            f"{beginning}: {path.name} is no JSON Schema: {told}; correct the file on all workers, "
            "start them again, then retry"
        )
        raise ReplayFailed(msg) from error
