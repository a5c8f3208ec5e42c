"""The course of a replay: what has changed the replay, and its counters and waits over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay_app.history import changes_of
from replay_app.series import points_of
from replay_app.web.answers import History, ReplaySeries
from replay_app.web.shared import ApiView, json_answer, require_session, require_usable, shared_of

if TYPE_CHECKING:
    from aiohttp import web


class HistoryView(ApiView):
    """The changes of a replay."""

    async def get(self, request: web.Request, replay_id: str) -> web.Response:
        """Answer with the commands and changes of a replay, from any worker."""
        require_usable(replay_id)
        session = await require_session(shared_of(request), replay_id)
        answer = History(
            replay_id=replay_id,
            changes=changes_of(session.history),
            dropped=session.history_dropped,
        )
        return json_answer(answer.model_dump_json())


class SeriesView(ApiView):
    """The counters and waits of a replay over time."""

    async def get(self, request: web.Request, replay_id: str) -> web.Response:
        """Answer with the points of a replay, from any worker."""
        require_usable(replay_id)
        session = await require_session(shared_of(request), replay_id)
        answer = ReplaySeries(replay_id=replay_id, points=tuple(points_of(session.series)))
        return json_answer(answer.model_dump_json())
