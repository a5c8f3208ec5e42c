"""Commands: what a client asks for, on ``replay.requests`` and over HTTP (docs/protocol.md)."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self, TypeVar

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
from pydantic_core import from_json

from replay_app.conditions import INTEGERS, FieldCondition
from replay_app.exceptions import InvalidCommand

Verb = Literal["pause", "resume", "step", "cancel", "retry", "release", "set-rate"]
"""A command that changes a replay which exists."""
VERBS: dict[Verb, str] = {
    "pause": "Stop publishing until the replay is resumed",
    "resume": "Continue a paused replay from its checkpoints",
    "step": "Publish some more events of a paused replay, then pause it again",
    "cancel": "Stop publishing; a cancelled replay cannot continue",
    "retry": "Continue a failed replay from its checkpoints",
    "release": "Let a waiting replay begin, whatever the replays do that it waits for",
    "set-rate": "Change the rate of a replay, also while the replay runs",
}
"""What each verb does, for the command line's help and the API's description."""
POSTED_VERBS: tuple[Verb, ...] = tuple(verb for verb in VERBS if verb != "set-rate")
"""The verbs with a path of their own in the HTTP API."""
PLAIN_VERBS: tuple[Verb, ...] = tuple(verb for verb in POSTED_VERBS if verb != "step")
"""The verbs that need only a replay_id."""
COMMAND_NAMES = ("start", *VERBS, "note-verification")

REPLAY_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
REPLAY_ID_RULE = (
    "1 to 128 letters, digits, dots, dashes or underscores, the first a letter or digit"
)
_TOPIC = r"[A-Za-z0-9._-]{1,249}"
TOPIC_NAME = re.compile(rf"(?!\.{{1,2}}\Z){_TOPIC}\Z")
TOPIC_RULE = "1 to 249 letters, digits, dots, underscores or dashes, and not '.' or '..'"
WRITTEN_TIME = re.compile(r"\d{4}-\d\d-\d\d.")
_OTHER_YEAR = re.compile(r"(?:[+-]\d+|\d{5,}|0000)-\d\d-\d\d")
OTHER_YEAR = "the time lies outside the years 1 to 9999 in UTC; for no limit, leave the member out"
MAX_COMMAND_BYTES = 700_000  # every session record contains the whole start command
MAX_AFTER = 100
"""Replays that one replay can wait for."""
MAX_CONSUMERS = 20
"""Consumer groups that one replay can name."""
GROUP_RULE = "1 to 249 characters, without control characters and without spaces at its ends"
MAX_REDACTED = 100
"""Fields that one replay can redact."""
MAX_TRANSFORMS = 20
"""Transforms of one replay."""
MAX_STEP = 1_000_000
"""Events of one step."""
MAX_SKIPPED = 100
"""Events that the retries of one replay can skip by their ids."""
NOT_TO_ORIGINAL = (
    "no replay may publish to the original topics of events (REPLAY_ALLOW_ORIGINAL=false): name "
    "target.prefix or target.topic"
)
"""Why a start is refused where the setting forbids the original topics."""
CHOICE_RULE = 'name at least one condition, or ask for every event with {"all": true}'
"""What a start's filter must do. A body that has lost its filter must not replay everything."""
MAX_SENTENCES = 20
"""Sentences in one refusal; each wrong member has a sentence."""


def _check_replay_id(value: str) -> str:
    if not REPLAY_ID.match(value):
        msg = f"a replay_id is {REPLAY_ID_RULE}"
        raise ValueError(msg)
    return value


def _check_written_time(value: object) -> object:
    if isinstance(value, str) and _OTHER_YEAR.match(value):
        raise ValueError(OTHER_YEAR)
    # Pydantic would read 2026, with or without quotation marks, as seconds after 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and WRITTEN_TIME.match(value)):
        return value
    msg = "a time is written as 2026-01-31T00:00:00Z"
    raise ValueError(msg)


def in_utc(value: datetime) -> datetime:
    """Return a time in UTC. Raises ValueError if UTC's calendar does not have the time."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(OTHER_YEAR) from None


def _either(what: str) -> WrapValidator:
    """Return a validator that refuses with one sentence, not with a sentence for each type."""

    def validate(value: object, validator: Callable[[object], object]) -> object:
        try:
            return validator(value)
        except ValidationError:
            msg = f"must be {what}"
            raise ValueError(msg) from None

    return WrapValidator(validate)


def _as_whole(value: object) -> object:
    """Return 5 for 5.0. To JSON both are one number, and some programs write the second."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_as_whole)
ReplayId = Annotated[str, AfterValidator(_check_replay_id)]
ShortText = Annotated[str, Field(min_length=1, max_length=1000)]
TopicName = Annotated[str, Field(pattern=f"^{_TOPIC}$")]
Time = Annotated[
    AwareDatetime,
    Field(strict=False),
    BeforeValidator(_check_written_time),
    AfterValidator(in_utc),
]
"""Converted to UTC: a body that gives the same instant with another offset is an equal body."""
StoredInt = Annotated[int, Field(ge=INTEGERS[0], le=INTEGERS[-1])]
StoredId = Annotated[str | StoredInt, _either("a string or a whole number of at most 64 bits")]
TransformName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
Redact = Literal["drop", "null", "mask", "hash"]
"""What becomes of a field that a replay redacts."""
LeavesOut = Literal["skip", "dead-letter", "park"]
"""What to do about an event that cannot be replayed, where the replay goes on without the event."""
LETTERS = ("dead-letter", "park")
"""Values of ``on_error`` that write dead letters."""
Rate = Annotated[float, Field(ge=0.001, le=1e9, allow_inf_nan=False)]
"""Events per second. The least rate is one event in 1,000 seconds."""
Speed = Annotated[float, Field(ge=0.001, le=1e6, allow_inf_nan=False)]
"""1: as fast as the events have happened; 2: twice as fast."""
Gap = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
"""Seconds."""


Item = TypeVar("Item")
Items = Annotated[tuple[Item, ...], Field(strict=False)]
"""A JSON array; strict, pydantic would want a tuple where JSON gives a list."""


class _Body(BaseModel):
    # Unknown members are refused: a misspelt condition must not widen a replay.
    # NaN is refused: pydantic would write NaN as null, and null asks for other events.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _check_group(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        msg = f"a consumer group's name is {GROUP_RULE}"
        raise ValueError(msg)
    return value


GroupName = Annotated[str, Field(min_length=1, max_length=249), AfterValidator(_check_group)]


def _check_paths(paths: Iterable[str]) -> None:
    """Raise ValueError if a dotted path could be an operator of the store."""
    for path in paths:
        parts = path.split(".")
        if "\0" in path or not all(parts) or any(part.startswith("$") for part in parts):
            msg = f"{path!r} is not a dotted field path; operators are not allowed"
            raise ValueError(msg)


def _check_collection(value: str) -> str:
    if value.startswith("system."):
        msg = f"{value!r} belongs to the store itself, and has no events"
        raise ValueError(msg)
    return value


class Filter(_Body):
    """Which events. An event must meet every condition."""

    all: bool = False
    """Every event. A start without a condition needs this, see `parse_command`."""
    start: Time | None = None
    """Inclusive."""
    end: Time | None = None
    """Exclusive; None: the store's clock when the replay is planned."""
    event_types: Items[ShortText] = ()
    exclude_event_types: Items[ShortText] = ()
    aggregate_ids: Items[StoredId] = ()
    event_ids: Items[StoredId] = ()
    fields: dict[str, FieldCondition] = Field(default_factory=dict)
    """Dotted path of a field to the condition that the field must meet."""

    @field_validator("fields")
    @classmethod
    def _no_operators(cls, fields: dict[str, FieldCondition]) -> dict[str, FieldCondition]:
        _check_paths(fields)
        return fields

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.all and (named := self.model_dump(exclude={"all"}, exclude_defaults=True)):
            msg = f"all events are asked for, and a condition: {', '.join(named)}; leave out one"
            raise ValueError(msg)
        if self.start and self.end and self.start >= self.end:
            msg = f"start {self.start.isoformat()} is not before end {self.end.isoformat()}"
            raise ValueError(msg)
        both = set(self.event_types) & set(self.exclude_event_types)
        if both:
            msg = f"event types both included and excluded: {', '.join(sorted(both))}"
            raise ValueError(msg)
        return self


class Target(_Body):
    """Where to publish. An empty target means each event's original topic."""

    topic: TopicName | None = None
    topics: dict[str, TopicName] = Field(default_factory=dict)
    """Event type to topic; an entry here overrides ``topic``."""
    prefix: TopicName | None = None
    """Prepended to the name of the original topic."""

    @field_validator("topic", "topics")
    @classmethod
    def _may_exist(cls, named: str | dict[str, str] | None) -> str | dict[str, str] | None:
        for topic in named.values() if isinstance(named, dict) else (named,):
            if topic in {".", ".."}:  # JSON Schema's patterns cannot say this simply
                msg = f"{topic!r} is not a topic name: {TOPIC_RULE}"
                raise ValueError(msg)
        return named

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.topic and self.prefix:
            msg = "a target has either a topic or a prefix"
            raise ValueError(msg)
        return self


DatabaseName = Annotated[str, Field(pattern=r"^[^/\\. \"$*<>:|?\x00]{1,63}$")]
CollectionName = Annotated[
    str,
    Field(min_length=1, max_length=255, pattern=r"^[^$\x00]*$"),
    AfterValidator(_check_collection),
]


class Source(_Body):
    """Where the events are. An empty source means what the settings say."""

    database: DatabaseName | None = None
    collection: CollectionName | None = None
    mapping: ShortText | None = None
    """The name of a mapping in the file of ``REPLAY_MAPPINGS``."""


class _Command(_Body):
    replay_id: ReplayId
    requested_by: ShortText | None = None


class Parent(_Body):
    """A replay that another one waits for, with more conditions than its id alone."""

    replay: ReplayId
    consumed: bool = False
    """Wait also until the replay's ``consumers`` have read all of its records."""


def _plain_parent(parent: str | Parent) -> str | Parent:
    """Return the short form of a parent that has one, so that equal bodies are equal."""
    return parent if isinstance(parent, str) or parent.consumed else parent.replay


def _check_parent(value: object, validator: Callable[[object], str | Parent]) -> str | Parent:
    """Refuse with one sentence, not with a sentence for each form."""
    if isinstance(value, str):
        return _check_replay_id(value)
    try:
        return validator(value)
    except ValidationError:
        msg = 'must be a replay_id, or an object such as {"replay": "orders", "consumed": true}'
        raise ValueError(msg) from None


After = Annotated[ReplayId | Parent, AfterValidator(_plain_parent), WrapValidator(_check_parent)]


class Start(_Command):
    """Start a replay."""

    command: Literal["start"] = "start"
    name: ShortText | None = None
    """A title for people; each record has the name in the header ``replay-name``."""
    reason: ShortText | None = None
    source: Source = Source()
    filter: Filter = Filter()
    target: Target = Target()
    to_original: bool = False
    """Consent to publish to the events' own topics, which live consumers read. A client of the HTTP
    API must give the consent where `reaches_originals`."""
    redact: dict[ShortText, Redact] = Field(default_factory=dict, max_length=MAX_REDACTED)
    """Dotted path of a field to what becomes of the field in each record."""
    transforms: Annotated[Items[TransformName], Field(max_length=MAX_TRANSFORMS)] = ()
    """Names of the functions that change each event, in order (docs/transforms.md)."""
    check_schemas: bool = False
    """Fail each event that does not fit its JSON Schema (``REPLAY_SCHEMAS``). A dry run always
    checks, if there are schemas."""
    ordering: Literal["global", "aggregate"] = "global"
    shards: Annotated[int, Field(ge=1, le=256), Whole] | None = None
    """Only with ``aggregate``; None: one shard for each partition of ``replay.work``."""
    dry_run: bool = False
    speed: Speed | None = None
    """Keep the gaps between the events' times, this many times shorter; None: no pace."""
    max_gap_seconds: Gap | None = None
    """With ``speed``: the longest wait between two events; None: no limit."""
    rate: Rate | None = None
    """Events per second, all shards together; None: no limit."""
    max_events: Annotated[int, Field(ge=1), Whole] | None = None
    """Stop after this number of matching events."""
    until_event_id: StoredId | None = None
    """Stop after this event, which must be in the store."""
    on_error: Literal["fail", "skip", "dead-letter", "park"] = "fail"
    """``park``: dead-letter the event, and the later events of its aggregate behind it."""
    control_records: bool = False
    include_replayed: bool = False
    """Also publish stored events that are marked as replayed (docs/mapping.md, the loop guard)."""
    after: Annotated[Items[After], Field(max_length=MAX_AFTER)] = ()
    """Wait until these replays have completed, and, if asked for, until they are consumed."""
    consumers: Annotated[Items[GroupName], Field(max_length=MAX_CONSUMERS)] = ()
    """Consumer groups that read what the replay publishes."""
    max_lag: Annotated[int, Field(ge=1), Whole] | None = None
    """Publish no faster than the ``consumers`` read: at most this number of records ahead."""
    chain: ReplayId | None = None
    """The name of the chain that the replay belongs to."""
    paused: bool = False
    """Begin in the state ``paused``: nothing is planned before a resume or a step."""
    preflight: Literal["quick", "full"] = "quick"
    """``full``: publish nothing before every event is counted and every topic is known to exist."""

    @field_validator("redact")
    @classmethod
    def _one_rule_each(cls, redact: dict[str, Redact]) -> dict[str, Redact]:
        _check_paths(redact)
        for path in redact:
            parts = path.split(".")
            if any(part.isdecimal() for part in parts[1:]):
                msg = (
                    f"{path!r} has the number of an array's element: a path leads to all elements "
                    "by itself, so leave the number out"
                )
                raise ValueError(msg)
            outer = (".".join(parts[:size]) for size in range(1, len(parts)))
            if within := next((one for one in outer if one in redact), None):
                msg = f"{path!r} lies within {within!r}, which is redacted as a whole; name one"
                raise ValueError(msg)
        return redact

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.shards is not None and self.ordering == "global":
            msg = "shards needs ordering 'aggregate'; a global order has one shard"
            raise ValueError(msg)
        if self.speed is not None and self.ordering == "aggregate":
            msg = "speed needs ordering 'global': shards have no common time"
            raise ValueError(msg)
        if self.max_gap_seconds is not None and self.speed is None:
            msg = "max_gap_seconds needs a speed: without one there are no gaps"
            raise ValueError(msg)
        if self.max_events is not None and self.ordering == "aggregate":
            msg = "max_events needs ordering 'global': shards have no common order"
            raise ValueError(msg)
        if self.replay_id in {parent.replay for parent in self.parents}:
            msg = "a replay cannot wait for itself"
            raise ValueError(msg)
        if len(set(self.consumers)) < len(self.consumers):
            msg = "consumers: a group is named twice"
            raise ValueError(msg)
        if self.consumers and self.dry_run:
            msg = "consumers: a dry run publishes nothing that a group could read"
            raise ValueError(msg)
        if self.control_records and self.transforms:
            msg = (
                "control_records do not go with transforms: a transform may send an event to a "
                "topic that nobody knows beforehand; leave the control records out"
            )
            raise ValueError(msg)
        if self.max_lag is not None and not self.consumers:
            msg = "max_lag needs consumers: name the groups that must keep up"
            raise ValueError(msg)
        return self

    @property
    def parents(self) -> tuple[Parent, ...]:
        """The replays of ``after``, each in its long form."""
        return tuple(Parent(replay=one) if isinstance(one, str) else one for one in self.after)

    @property
    def reaches_originals(self) -> bool:
        """Whether some type of events may go to its own original topic.

        A topic that a target names may be an original topic, too: only a plan can tell.
        """
        return not self.dry_run and self.target.topic is None and self.target.prefix is None

    def canonical(self) -> str:
        """Return the body in a fixed form, the same for equal bodies.

        Two bodies are equal whatever the order of the members, the white space and the offsets of
        times, and whether defaults are written out. The order of a list's items matters. The
        consent ``to_original`` is left out, as it changes nothing that a replay does: a replay may
        have been started without the consent, on ``replay.requests``.
        """
        body = self.model_dump(mode="json", exclude={"to_original"})
        return json.dumps(body, sort_keys=True, separators=(",", ":"))


class Pause(_Command):
    """The verb ``pause``; see `VERBS`."""

    command: Literal["pause"] = "pause"


class Resume(_Command):
    """The verb ``resume``; see `VERBS`."""

    command: Literal["resume"] = "resume"


class Cancel(_Command):
    """The verb ``cancel``; see `VERBS`."""

    command: Literal["cancel"] = "cancel"


class Retry(_Command):
    """The verb ``retry``; see `VERBS`."""

    command: Literal["retry"] = "retry"
    on_error: LeavesOut | None = None
    """From here on, in place of the ``on_error`` of the start. None: as before."""
    skip_events: Annotated[Items[ShortText], Field(max_length=MAX_SKIPPED)] = ()
    """Ids of events that are skipped if they fail, as the error of the replay shows them."""
    accept_changes: bool = False
    """Go on with other transforms, another redaction key or another mapping to records than the
    plan has (`sources.require_same_source`)."""


class Release(_Command):
    """The verb ``release``; see `VERBS`."""

    command: Literal["release"] = "release"


class StepOn(_Command):
    """The verb ``step``; see `VERBS`."""

    command: Literal["step"] = "step"
    events: Annotated[int, Field(ge=1, le=MAX_STEP), Whole]
    published: Annotated[int, Field(ge=0, le=2**53), Whole]
    """How many events the replay had published when the step was asked for. So a command that is
    sent, or delivered, twice is carried out once."""


class SetRate(_Command):
    """The verb ``set-rate``; see `VERBS`. A null rate removes the limit."""

    command: Literal["set-rate"] = "set-rate"
    rate: Rate | None


Number = Annotated[int, Field(ge=0, le=2**53), Whole]


class Verification(_Body):
    """What `replay-app verify` has found."""

    verdict: Literal["equal", "store-changed", "different", "unverifiable"]
    """``store-changed``: the topics hold what the receipt says, and the store has changed since."""
    at: Time
    """When the comparison began."""
    seconds: Annotated[float, Field(ge=0, le=1e9)]
    reason: Annotated[str, Field(max_length=2000)] | None = None
    """Why nothing could be verified."""
    stored: Number = 0
    """Records that the store gives now."""
    records: Number = 0
    """Records of the replay in its topics, without control records."""
    equal: Number = 0
    """Records whose key, headers and value are those of their event."""
    missing: Number = 0
    """Records that the receipt counts and the topics do not hold."""
    repeated: Number = 0
    """Records of events that have a record already."""
    unknown: Number = 0
    """Further records that the receipt does not count."""
    unordered: Number = 0
    """Records behind a record that comes later in the store's order."""
    misplaced: Number = 0
    """Records in another partition than that of their key."""
    unmarked: Number = 0
    """Records whose headers are not those of the replay."""
    differing: Number = 0
    """Records with another key, value or time than the event, while the bytes of the values are not
    those of the receipt."""
    added: Number = 0
    """Matching events without a record, which the receipt does not count either."""
    deleted: Number = 0
    """Records whose event is not in the store any more."""
    changed: Number = 0
    """Records whose event has changed in the store since."""
    left_out: Number = 0
    """Events without a record that failed in the replay."""


class NoteVerification(_Command):
    """Keep the verdict of a verification with a completed replay. A newer one replaces it."""

    command: Literal["note-verification"] = "note-verification"
    verification: Verification


Command = Start | Pause | Resume | StepOn | Cancel | Retry | Release | SetRate | NoteVerification
_COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Discriminator("command")])


def parse_command(
    body: bytes,
    *,
    fixed: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Command:
    """Read a command from the bytes that a client has sent.

    ``fixed`` are members that are known from elsewhere, such as the path of a request: the body
    may repeat them, but not contradict them. ``defaults`` are members that the body may leave out.

    Raises
    ------
    InvalidCommand
        The message is for the client and has a sentence for each wrong member. A start that has
        no condition and does not ask for all events is refused; sessions of older versions have
        such starts, so `Filter` accepts them.

    """
    members = read_members(body)
    for name, value in (fixed or {}).items():
        if members.setdefault(name, value) != value:
            msg = f"{name}: must be {value!r} here; it may be left out"
            raise InvalidCommand(msg)
    command = command_of({**(defaults or {}), **members})
    if isinstance(command, Start) and command.filter == Filter():
        msg = f"filter: {CHOICE_RULE}"
        raise InvalidCommand(msg)
    return command


def read_members(
    body: bytes, max_bytes: int = MAX_COMMAND_BYTES, what: str = "the command"
) -> dict[str, Any]:
    """Read the JSON object that a command is written in, and check nothing but its form.

    ``what`` names the object in the message of an error.

    Raises
    ------
    InvalidCommand
        The body is empty, too large, nested too deeply, not JSON or not a JSON object, or an
        object in the body has a member twice.

    """
    if not body or not body.strip():
        msg = f"{what} is empty; send a JSON object"
        raise InvalidCommand(msg)
    if len(body) > max_bytes:
        msg = f"{what} has {len(body)} bytes, at most {max_bytes} are allowed"
        raise InvalidCommand(msg)
    try:
        # Python's parser accepts halves of surrogate pairs and deep nesting; pydantic's refuses
        # both, but takes the last of two members with one name.
        from_json(body)
        members = json.loads(body, object_pairs_hook=_object)
    except ValueError as error:
        msg = f"not JSON: {error}"
        if "hex escape" in msg:
            msg += "; half of a surrogate pair is not a character"
        raise InvalidCommand(msg) from error
    if not isinstance(members, dict):
        msg = f"{what} is not a JSON object"
        raise InvalidCommand(msg)
    return members


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        names = Counter(name for name, _ in members)
        msg = f"{names.most_common(1)[0][0]:.100}: given more than once"
        raise InvalidCommand(msg)
    return found


def command_of(members: Mapping[str, Any]) -> Command:
    """Return the command that has these members, as stored sessions have them too.

    Raises
    ------
    InvalidCommand
        The message is for the client and has a sentence for each wrong member.

    """
    try:
        return _COMMANDS.validate_python(members)
    except ValidationError as error:
        # The first part of a place is the command's name.
        faults = [str(Fault(fault.place[1:], fault.what)) for fault in faults_of(error)]
        raise InvalidCommand("; ".join(first_of(faults))) from error


def first_of(sentences: Sequence[str]) -> list[str]:
    """Return the first MAX_SENTENCES sentences, and how many more there are."""
    more = len(sentences) - MAX_SENTENCES
    return [*sentences[:MAX_SENTENCES], *([f"and {more} more"] if more > 0 else [])]


def new_replay_id(name: object = None) -> str:
    """Return an id for a new replay, made from the replay's name, the time and a random part."""
    readable = re.sub(r"[^a-z0-9]+", "-", str(name or "").lower()).strip("-")[:60] or "replay"
    return f"{readable}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong member: its place, from the outside to the inside, and what it may be."""

    place: tuple[str | int, ...]
    what: str

    def __str__(self) -> str:
        where = ".".join(map(str, self.place))
        return f"{where}: {self.what}" if where else self.what


def faults_of(error: ValidationError) -> list[Fault]:
    """Return the faults that pydantic has found, in plain words."""
    return [_fault(one) for one in error.errors()]


def _fault(error: Any) -> Fault:
    place, what = tuple(error["loc"]), error["msg"]
    match error["type"]:
        case "union_tag_not_found":
            place, what = ("", "command"), f"missing; one of {', '.join(COMMAND_NAMES)}"
        case "union_tag_invalid":
            place = ("", "command")
            what = f"{error['ctx']['tag']!r:.100} is not one of {', '.join(COMMAND_NAMES)}"
        case "extra_forbidden":
            what = "unknown field"
        case "missing":
            what = "missing"
        case "tuple_type":  # the words of JSON, not of Python
            what = "Input should be a valid array"
        case "model_type" | "dict_type":
            what = "Input should be an object"
        case "timezone_aware":
            what = "a time needs a timezone, such as a final Z"
        case "value_error":
            what = str(error["ctx"]["error"])
    return Fault(place, what)


def usable_replay_id(body: bytes | None) -> str | None:
    """Return the replay_id of a malformed command; None if the replay_id itself is not valid."""
    try:
        replay_id = json.loads(body or b"")["replay_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return replay_id if isinstance(replay_id, str) and REPLAY_ID.match(replay_id) else None
