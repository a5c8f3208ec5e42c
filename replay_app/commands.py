"""Commands: what a client asks for, on ``replay.requests`` and over HTTP (design section 4)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    TypeAdapter,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)

from replay_app.exceptions import InvalidCommand

REPLAY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
REPLAY_ID_RULE = (
    "1 to 128 letters, digits, dots, dashes or underscores, the first a letter or digit"
)
WRITTEN_TIME = re.compile(r"\d{4}-\d\d-\d\d.")
MAX_COMMAND_BYTES = 700_000  # the frozen command travels in every session record
MAX_SENTENCES = 20
"""Of a refusal: a list of many wrong members has one for each."""


def _check_replay_id(value: str) -> str:
    if not REPLAY_ID.match(value):
        msg = f"a replay_id is {REPLAY_ID_RULE}"
        raise ValueError(msg)
    return value


def _check_written_time(value: object) -> object:
    # Else 2026, with or without quotation marks, would pass for seconds after 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and WRITTEN_TIME.match(value)):
        return value
    msg = "a time is written as 2026-01-31T00:00:00Z"
    raise ValueError(msg)


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        msg = "the time lies outside the years 1 to 9999"
        raise ValueError(msg) from None


def _either(what: str) -> WrapValidator:
    """Say in one sentence what a union allows, instead of one for each of its types."""

    def validate(value: object, validator: Callable[[object], object]) -> object:
        try:
            return validator(value)
        except ValidationError:
            msg = f"must be {what}"
            raise ValueError(msg) from None

    return WrapValidator(validate)


ReplayId = Annotated[str, AfterValidator(_check_replay_id)]
ShortText = Annotated[str, Field(min_length=1, max_length=1000)]
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Time = Annotated[
    AwareDatetime,
    Field(strict=False),
    BeforeValidator(_check_written_time),
    AfterValidator(_in_utc),
]
"""Kept in UTC: the same instant written with another offset is the same body."""
StoredInt = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
"""BSON has no larger integers."""
StoredId = Annotated[str | StoredInt, _either("a string or a whole number of at most 64 bits")]
FieldValue = Annotated[
    str | StoredInt | float | bool | None, _either("a string, a number, true, false or null")
]
Rate = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class _Body(BaseModel):
    # A typo in a filter must never widen a replay: unknown fields are refused.
    # JSON has no NaN: it would come back as null, which asks for other events.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Filter(_Body):
    """Which events; all conditions hold together, an empty one matches everything."""

    start: Time | None = None
    """Inclusive."""
    end: Time | None = None
    """Exclusive; none: the store's clock when the replay is planned."""
    event_types: tuple[ShortText, ...] = ()
    exclude_event_types: tuple[ShortText, ...] = ()
    aggregate_ids: tuple[StoredId, ...] = ()
    event_ids: tuple[StoredId, ...] = ()
    fields: dict[str, FieldValue] = Field(default_factory=dict)
    """Dotted path in the document to the one value it must have."""

    @field_validator("fields")
    @classmethod
    def _no_operators(cls, fields: dict[str, FieldValue]) -> dict[str, FieldValue]:
        for path in fields:
            parts = path.split(".")
            if "\0" in path or not all(parts) or any(part.startswith("$") for part in parts):
                msg = f"{path!r} is no dotted field path; operators are not allowed"
                raise ValueError(msg)
        return fields

    @model_validator(mode="after")
    def _in_time_order(self) -> Self:
        if self.start and self.end and self.start >= self.end:
            msg = f"start {self.start.isoformat()} is not before end {self.end.isoformat()}"
            raise ValueError(msg)
        both = set(self.event_types) & set(self.exclude_event_types)
        if both:
            msg = f"event types both wanted and excluded: {', '.join(sorted(both))}"
            raise ValueError(msg)
        return self


class Target(_Body):
    """Where to; nothing set: each event's original topic."""

    topic: TopicName | None = None
    topics: dict[str, TopicName] = Field(default_factory=dict)
    """Event type to topic; goes before ``topic``."""
    prefix: TopicName | None = None
    """Put before the original topic's name."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.topic and self.prefix:
            msg = "a target has either a topic or a prefix"
            raise ValueError(msg)
        return self


class _Command(_Body):
    replay_id: ReplayId
    requested_by: ShortText | None = None


class Start(_Command):
    """Start a replay."""

    command: Literal["start"] = "start"
    name: ShortText | None = None
    """A title for people; travels as the header ``replay-name``."""
    reason: ShortText | None = None
    filter: Filter = Filter()
    target: Target = Target()
    ordering: Literal["global", "aggregate"] = "global"
    shards: Annotated[int, Field(ge=1, le=256)] | None = None
    """Only for ``aggregate``; none: one for each partition of ``replay.work``."""
    dry_run: bool = False
    rate: Rate | None = None
    """Events per second over all shards."""
    speed: None = None
    max_events: Annotated[int, Field(ge=1)] | None = None
    """Read no more than the first so many matching events."""
    on_error: Literal["fail", "skip", "dead-letter"] = "fail"
    control_records: bool = False
    include_replayed: bool = False
    """Also events that are themselves marked as replayed (see the loop guard)."""
    after: tuple[ReplayId, ...] = ()
    """Wait until these replays have completed."""

    @field_validator("speed", mode="before")
    @classmethod
    def _no_speed_yet(cls, value: object) -> None:
        if value is not None:
            msg = "speed (the original pace) is not supported yet; set a rate in events per second"
            raise ValueError(msg)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.shards is not None and self.ordering == "global":
            msg = "shards needs ordering 'aggregate'; a global order is one shard"
            raise ValueError(msg)
        if self.max_events is not None and self.ordering == "aggregate":
            msg = "max_events needs ordering 'global': shards have no common first events"
            raise ValueError(msg)
        if self.replay_id in self.after:
            msg = "a replay cannot wait for itself"
            raise ValueError(msg)
        return self

    def canonical(self) -> str:
        """Return the body in one fixed form: equal bodies, however written, are equal here.

        Order of members, white space, defaults written out, and a time's offset do not matter;
        the order of a list's items does.
        """
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


class Pause(_Command):
    """Stop publishing until resumed."""

    command: Literal["pause"] = "pause"


class Resume(_Command):
    """Go on from the checkpoint of a paused replay."""

    command: Literal["resume"] = "resume"


class Cancel(_Command):
    """Stop publishing for ever."""

    command: Literal["cancel"] = "cancel"


class Retry(_Command):
    """Go on from the checkpoint of a failed replay."""

    command: Literal["retry"] = "retry"


class SetRate(_Command):
    """Change the rate, also of a running replay; null lifts it."""

    command: Literal["set-rate"] = "set-rate"
    rate: Rate | None


Command = Start | Pause | Resume | Cancel | Retry | SetRate
COMMAND_NAMES = ("start", "pause", "resume", "cancel", "retry", "set-rate")
_COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Discriminator("command")])


def parse_command(body: bytes | str) -> Command:
    """Read one command.

    Raises
    ------
    InvalidCommand
        With one sentence for each wrong field, fit to be sent back to the client.

    """
    if not body or not body.strip():
        msg = "the command is empty; send a JSON object"
        raise InvalidCommand(msg)
    if len(body) > MAX_COMMAND_BYTES:
        msg = f"the command has {len(body)} bytes, at most {MAX_COMMAND_BYTES} are allowed"
        raise InvalidCommand(msg)
    try:
        command = _COMMANDS.validate_json(body)
    except ValidationError as error:
        sentences = [_sentence(one) for one in error.errors()[:MAX_SENTENCES]]
        if error.error_count() > MAX_SENTENCES:
            sentences.append(f"and {error.error_count() - MAX_SENTENCES} more")
        raise InvalidCommand("; ".join(sentences)) from error
    try:
        json.loads(body, object_pairs_hook=_refuse_repeated_members)
    except ValueError as error:
        raise InvalidCommand(str(error)) from error
    return command


def _refuse_repeated_members(members: list[tuple[str, Any]]) -> None:
    # Parsers take the last one; a second "filter" must not undo the first unseen.
    seen: set[str] = set()
    for name, _ in members:
        if name in seen:
            msg = f"{name}: given more than once"
            raise ValueError(msg)
        seen.add(name)


def _sentence(error: Any) -> str:
    """Say one validation error in words: where, and what is allowed there."""
    where = ".".join(map(str, error["loc"][1:]))  # the first is the command's name
    what = error["msg"]
    match error["type"]:
        case "json_invalid":
            what = f"not JSON: {error['ctx']['error']}"
        case "union_tag_not_found":
            where, what = "command", f"missing; one of {', '.join(COMMAND_NAMES)}"
        case "union_tag_invalid":
            where = "command"
            what = f"{error['ctx']['tag']!r:.100} is none of {', '.join(COMMAND_NAMES)}"
        case "model_attributes_type" | "model_type" | "dict_type" if not where:
            what = "the command is not a JSON object"
        case "extra_forbidden":
            what = "unknown field"
        case "missing":
            what = "missing"
        case "timezone_aware":
            what = "a time needs a timezone, such as a final Z"
        case "value_error":
            what = str(error["ctx"]["error"])
    return f"{where}: {what}" if where else what


def usable_replay_id(body: bytes | None) -> str | None:
    """Return the replay_id of a command that may be malformed otherwise, if it has a valid one."""
    try:
        replay_id = json.loads(body or b"")["replay_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return replay_id if isinstance(replay_id, str) and REPLAY_ID.match(replay_id) else None
