"""What the API answers, as models: the views fill them, the API's description shows them."""

from __future__ import annotations

from pydantic import BaseModel

from replay_app.board import Rejection
from replay_app.history import Change
from replay_app.members import Member
from replay_app.series import SeriesPoint
from replay_app.sessions import Session
from replay_app.tokens import Role


class ReplayList(BaseModel):
    """Replays and rejections, the newest first."""

    replays: tuple[Session, ...]
    rejections: tuple[Rejection, ...]
    """Commands that the sessions agent refused."""
    next: str | None
    """The ``cursor`` of the next page; null on the last one."""
    total: int
    """All replays that the filters let through, on all pages."""


class History(BaseModel):
    """What has changed a replay, the oldest first."""

    replay_id: str
    changes: tuple[Change, ...]
    dropped: int
    """Changes that are lost: a session keeps the first ones and the last ones."""


class ReplaySeries(BaseModel):
    """Counters and waits over time, the oldest point first. All values count from the begin."""

    replay_id: str
    points: tuple[SeriesPoint, ...]


class StoredDocument(BaseModel):
    """An event as the store has it."""

    replay_id: str
    event_id: str
    document: str
    """Extended JSON. What the replay redacts is masked, dropped or null."""
    is_cut: bool
    """Whether the document is longer."""


class You(BaseModel):
    """Who asks, by the token."""

    name: str | None
    """Null: a token without a name, or no token."""
    role: Role
    target_prefixes: tuple[str, ...] | None
    """With what the destinations of your replays begin. Null: with anything."""


class Installation(BaseModel):
    """The workers that work together, and what they work on."""

    workers: tuple[Member, ...]
    """Empty if the broker does not tell."""
    trouble: str | None
    """Why the broker does not tell of the workers."""
    store: str
    """Database and collection of the settings."""
    cluster: str
    """Addresses of the Kafka cluster of the commands."""
    target_cluster: str
    """Addresses of the cluster to which replays publish."""
    version: str
    environment: str | None
    """The name of the environment (``REPLAY_ENVIRONMENT``)."""
    allow_original: bool
    """Whether replays may publish to the original topics of their events."""
    you: You
