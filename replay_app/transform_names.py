"""The names of transforms: for which functions they stand, and in which version."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import logging
from concurrent.futures import TimeoutError as LateError
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay_app.exceptions import InvalidSettings, ReplayFailed
from replay_app.functions import Call, imported
from replay_app.transforms import Transforms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay_app.settings import Settings
    from replay_app.transforms import Transform

logger = logging.getLogger(__name__)

GROUP = "event_replay.transforms"
"""The group of the entry points with which a package offers transforms."""
SETTING = "REPLAY_TRANSFORMS"
IMPORT_SECONDS = 30.0
"""How long a worker waits at its start for the modules of its transforms."""
MEMBER = "transform "
"""Begin of the names under which a plan keeps fingerprints."""
_hanging: dict[str, str] = {}
"""By place: why its module cannot be imported. To try again would wait for ever."""


def import_transforms(settings: Settings) -> None:
    """Import the modules of all transforms, at the start of a worker.

    So a replay does not wait for an import, and all transforms of a worker are of one moment. A
    module that cannot be imported fails only the replays that name its transforms.
    """
    for name in sorted(_offered() | settings.transforms):
        place = _place(settings, name)
        call = Call(functools.partial(_loaded, place))
        try:
            call.outcome.result(IMPORT_SECONDS)
        except LateError:
            _hanging[place] = (
                f"{SETTING}={place}: its import takes longer than {IMPORT_SECONDS:g} s"
            )
            logger.warning("transform %s cannot be used: %s", name, _hanging[place])
        except ReplayFailed as error:
            logger.warning("transform %s cannot be used: %s", name, error)


def transforms_of(
    settings: Settings, names: Sequence[str], prefix: str | None = None
) -> Transforms | None:
    """Return the transforms that a command names; None if it names none.

    Raises
    ------
    ReplayFailed
        When a name is unknown, or when its function cannot be imported.

    """
    if not names:
        return None
    found = [(name, _loaded(_place(settings, name))[0]) for name in names]
    return Transforms(found, prefix or "")


def transform_fingerprints(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """Return what a plan keeps of transforms: the function, and a hash of the module's file.

    Raises
    ------
    ReplayFailed
        When a name is unknown, or when its function cannot be imported.

    """
    places = {name: _place(settings, name) for name in names}
    return {f"{MEMBER}{name}": f"{place}{_loaded(place)[1]}" for name, place in places.items()}


def is_transform(member: str) -> bool:
    """Return whether a member of a plan's source is the fingerprint of a transform."""
    return member.startswith(MEMBER)


def _place(settings: Settings, name: str) -> str:
    """Return the ``module:function`` of a name."""
    known = _offered() | settings.transforms
    if name not in known:
        msg = (
            f"there is no transform {name!r}: {SETTING} and the installed packages have "
            f"{', '.join(sorted(known)) or 'none'}; add it to {SETTING} of all workers and start "
            "them again, then retry"
        )
        raise ReplayFailed(msg)
    return known[name]


@functools.cache
def _offered() -> dict[str, str]:
    """Return the places of the transforms that installed packages offer, by name."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


@functools.cache
def _loaded(place: str) -> tuple[Transform, str]:
    """Return the function of a place, and a hash of the files of its code."""
    remedy = "correct the module on all workers, start them again, then retry"
    if place in _hanging:
        msg = f"{_hanging[place]}; {remedy}"
        raise ReplayFailed(msg)
    try:
        function = imported(SETTING, place)
    except InvalidSettings as error:
        msg = f"{error}; {remedy}"
        raise ReplayFailed(msg) from error
    hashes = (_hash_of(importlib.import_module(place.partition(":")[0])), _hash_of(_code(function)))
    found = "".join(dict.fromkeys(one for one in hashes if one))
    return function, f" sha256:{found}" if found else ""


def _code(function: Any) -> Any:
    """Return the module of a function's code, also if the function is wrapped."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.getmodule(inspect.unwrap(function))


@functools.cache
def _hash_of(module: Any) -> str:
    """Return a hash of a module's file, as the file was when the module was first asked for."""
    path = Path(getattr(module, "__file__", None) or "")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
