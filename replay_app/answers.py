"""The answers of the API as a client reads them: typed, and with what only the worker knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

import pydantic

from replay_app.board import Rejection
from replay_app.exceptions import ReplayError
from replay_app.reports import OfferedPlan
from replay_app.sessions import Session
from replay_app.states import State
from replay_app.web.answers import History, Installation, ReplaySeries

SessionJson = dict[str, Any]
"""A session as the API returns it: `replay_app.sessions.Session` in JSON."""


class Answer(pydantic.BaseModel):
    """What every answer of the API has beside its own members."""

    _members: dict[str, Any] = pydantic.PrivateAttr(default_factory=dict)

    @property
    def members(self) -> dict[str, Any]:
        """The answer's JSON as the worker has sent it, with members that only the worker knows."""
        return self._members

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Self:
        """Return the answer that has these members.

        Raises
        ------
        ReplayError
            What the worker has sent is no such answer.

        """
        try:
            answer = cls.model_validate(members)
        except pydantic.ValidationError as error:
            try:
                answer = cls.model_validate(_without_unknown(members, error))
            except pydantic.ValidationError as other:
                places = ", ".join(".".join(map(str, one["loc"])) for one in other.errors()[:3])
                msg = f"the worker's answer is not understood ({places}): use its own version"
                raise ReplayError(msg) from other
        return answer.with_members(members)

    def with_members(self, members: Mapping[str, Any]) -> Self:
        """Keep the answer's JSON; return this answer."""
        self._members = dict(members)
        return self


def _without_unknown(members: Mapping[str, Any], error: pydantic.ValidationError) -> Any:
    """Return a copy without the members that a model forbids because it does not know them."""
    known = json.loads(json.dumps(members))
    for one in error.errors():
        if one["type"] != "extra_forbidden":
            continue
        holder: Any = known
        *path, name = one["loc"]
        for step in path:
            # A place may name the kinds of a union, too, which are no members.
            with suppress(KeyError, IndexError, TypeError):
                holder = holder[step]
        if isinstance(holder, dict):
            holder.pop(name, None)
    return known


class Replay(Session, Answer):
    """A replay as a worker knows it now."""


class PlannedReplay(OfferedPlan, Answer):
    """What a replay would do."""


class ReplayHistory(History, Answer):
    """What has changed a replay, the oldest first."""


class ReplayCourse(ReplaySeries, Answer):
    """Counters and waits of a replay over time, the oldest point first."""


class Workers(Installation, Answer):
    """The workers that work together, and what they work on."""


class Accepted(Answer):
    """A command is on its way to the sessions agent, which decides."""

    replay_id: str
    revision: int | None = None
    """Revision of a started replay; None if the agent has not answered yet."""


class AppliedReplay(Answer):
    """What became of one replay of a chain."""

    replay_id: str
    outcome: str
    """``started`` or ``existed``."""
    state: State | None = None


class AppliedChain(Answer):
    """What is done with a chain, parents first."""

    chain: str
    replays: tuple[AppliedReplay, ...] = ()


class ReplayPage(Answer):
    """Some replays and rejections, the newest first."""

    replays: tuple[Replay, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    next: str | None = None
    """The cursor of the next page; None on the last page."""
    total: int | None = None
    """How many replays match; None if the worker is too old to say so."""

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Self:
        """Return the page; each replay on it keeps its own members."""
        others = {name: value for name, value in members.items() if name != "replays"}
        page = super().of(others)
        page = page.model_copy(
            update={"replays": tuple(map(Replay.of, members.get("replays", ())))}
        )
        return page.with_members(members)
