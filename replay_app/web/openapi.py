"""The API's description, OpenAPI 3.1, made from the models that the program itself uses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from replay_app import __version__
from replay_app.chains import MADE, MAX_REPLAYS
from replay_app.commands import (
    CHOICE_RULE,
    MAX_SKIPPED,
    MAX_STEP,
    POSTED_VERBS,
    REPLAY_ID,
    REPLAY_ID_RULE,
    VERBS,
    WRITTEN_TIME,
    LeavesOut,
    Rate,
    ShortText,
    Source,
    Start,
    Verification,
)
from replay_app.event_types import StoredTypes
from replay_app.reports import OfferedPlan
from replay_app.sessions import ASIDE, MAX_LISTED, Session
from replay_app.states import State
from replay_app.web.access import OPEN_PATHS, is_guarded
from replay_app.web.answers import (
    History,
    Installation,
    ReplayList,
    ReplaySeries,
    StoredDocument,
)
from replay_app.web.console import PAGES
from replay_app.web.documents import MAX_EVENT_ID
from replay_app.web.installation import SOURCE_MEMBERS
from replay_app.web.lists import CURSOR, MAX_TEXT
from replay_app.web.problems import CONTENT_TYPE

EXCLUDABLE = ("store",)
"""What ``/readyz?exclude=`` may leave out."""
JSON = "application/json"

Schema = dict[str, Any]


class Requested(BaseModel):
    """The body of a command that needs only a replay_id; the body may be empty."""

    model_config = ConfigDict(extra="forbid")

    requested_by: ShortText | None = Field(
        None, description="Who gives the command. The name of a token replaces it."
    )


class Retried(Requested):
    """The body of a retry; the body may be empty."""

    on_error: LeavesOut | None = Field(
        None, description="From here on, in place of the `on_error` of the start."
    )
    skip_events: Annotated[tuple[ShortText, ...], Field(max_length=MAX_SKIPPED)] = Field(
        (), description="Ids of events that are skipped if they fail."
    )
    accept_changes: bool = Field(
        default=False,
        description="Go on with another mapping to records, other transforms or another key of "
        "hashes than those of the plan.",
    )


class NewStep(Requested):
    """Events to publish before the replay pauses again."""

    events: int = Field(ge=1, le=MAX_STEP)
    published: int = Field(
        ge=0,
        le=2**53,
        description="How many events the replay has published, as you have seen it "
        "(`counters.published`): so a body that is sent twice is carried out once.",
    )


class NewRate(Requested):
    """Events per second, all shards together; null removes the limit."""

    rate: Rate | None


class NewVerification(Requested):
    """The verdict of a verification; a newer one replaces an older one."""

    verification: Verification


class Accepted(BaseModel):
    """The command is on its way to the sessions agent, which decides."""

    replay_id: str
    revision: int | None = None
    """Revision of a started replay; null if the agent has not answered yet."""


class AppliedReplay(BaseModel):
    """One replay of a chain, parents first."""

    replay_id: str
    outcome: Literal["started", "existed"]
    state: State | None
    """The replay's state; null if the sessions agent has not answered yet."""


class AppliedChain(BaseModel):
    """What is done with a chain; the sessions agent decides."""

    chain: str
    replays: tuple[AppliedReplay, ...]


class Health(BaseModel):
    """The worker is alive."""

    status: str
    encoder: str
    version: str


class Readiness(BaseModel):
    """Whether the worker is ready to work."""

    status: str
    missing: tuple[str, ...]
    """What the worker waits for, in words."""
    warnings: tuple[str, ...] = ()
    """What a replay would fail for, though the worker is ready."""


class ProblemBody(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    """What is wrong and what to do."""
    state: State | None = None
    """State of the replay that does not allow the command."""


_ERRORS = {
    400: "The request, its body or a parameter is wrong; the detail has a sentence for each fault.",
    401: "The bearer token is missing or wrong.",
    403: "The request comes from a foreign web page or uses a foreign host name; or the token's "
    "role, or its target prefixes, do not allow the command. The detail says which.",
    404: "The replay does not exist.",
    408: "The body did not come in time.",
    409: "The replay's state does not allow the command, or the id is used with another body.",
    413: "The body is too large.",
    414: "The first line of the request is too long.",
    422: "The replay could not succeed, or would publish to original topics without `to_original`, "
    "or where nothing may; the detail says what is missing.",
    431: "The headers are too large, or too many.",
    500: "A fault of the worker; its log says more.",
    503: "The worker, the store or the broker is not ready; try again after Retry-After seconds.",
}
_ANYWHERE = (400, 403, 414, 431, 500)
"""What any request may be answered with."""
_WITH_BODY = (408, 413)
TO_ORIGINAL_RULE = (
    "Consent to publish to the original topics of the events, which live consumers read. A start "
    "needs it unless it is a dry run, or its target has a `topic` or a `prefix`. A chain may have "
    "it in its `defaults`. With `REPLAY_ALLOW_ORIGINAL=false` such a start is refused all the same."
)
TIME_PATTERN = f"^(?!0000){WRITTEN_TIME.pattern}"
_PATH = r"[^.$\u0000][^.\u0000]*"
"""A part of the dotted path of a field, as a pattern of JSON Schema."""


def _pattern(expression: re.Pattern[str]) -> str:
    return f"^{expression.pattern.removesuffix(chr(92) + 'Z')}$"


@cache
def openapi(*, token: bool = False, public_reads: bool = False) -> Schema:
    """Return the OpenAPI document of a worker.

    ``token`` says whether the worker has a token, ``public_reads`` whether reads need none.
    """
    references, definitions = models_json_schema(
        [
            (Start, "validation"),
            (Requested, "validation"),
            (Retried, "validation"),
            (NewStep, "validation"),
            (NewRate, "validation"),
            (NewVerification, "validation"),
            *(
                (model, "serialization")
                for model in (
                    Session,
                    ReplayList,
                    History,
                    ReplaySeries,
                    Installation,
                    StoredDocument,
                    StoredTypes,
                    OfferedPlan,
                    Accepted,
                    AppliedChain,
                    Health,
                    Readiness,
                    ProblemBody,
                )
            ),
        ],
        ref_template="#/components/schemas/{model}",
    )
    schemas = {model.__name__: schema for (model, _), schema in references.items()}
    components: Schema = definitions["$defs"]
    start = components[schemas["Start"]["$ref"].rpartition("/")[2]]
    _tell_the_rules(start, components)
    _set_aside(components[schemas["Session"]["$ref"].rpartition("/")[2]])
    noted = components[schemas["NewVerification"]["$ref"].rpartition("/")[2]]["properties"]
    verdict = components[noted["verification"]["$ref"].rpartition("/")[2]]["properties"]
    verdict["at"]["pattern"] = TIME_PATTERN
    # Sessions of older versions have starts without a filter; a new one must say which events.
    components["NewStart"] = {
        "allOf": [schemas["Start"]],
        "required": ["filter"],
        "properties": {
            "filter": {"description": f"{CHOICE_RULE}.", "anyOf": _all_or_conditions(components)}
        },
    }
    components["NewChain"] = _chain_of(start)
    schemas |= {name: {"$ref": f"#/components/schemas/{name}"} for name in ("NewStart", "NewChain")}
    paths = _paths(schemas)
    for path, item in paths.items():
        for method, operation in item.items():
            if method not in {"get", "post", "patch"}:
                continue
            is_public = public_reads and method == "get" and not is_guarded(path)
            is_open = path in OPEN_PATHS or is_public
            operation["security"] = [{"bearer": []}] if token and not is_open else []
            also = [*_ANYWHERE, *([401] if token and not is_open else [])]
            also += _WITH_BODY if "requestBody" in operation else []
            for status in also:
                problem = _answer(_ERRORS[status], schemas["ProblemBody"], CONTENT_TYPE)
                operation["responses"].setdefault(str(status), problem)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Event replay",
            "version": __version__,
            "description": "Starts, watches and controls replays of stored events to Kafka.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _tell_the_rules(start: Schema, components: Schema) -> None:
    """Add what the models' validators check, as far as JSON Schema can say it."""
    members = start["properties"]
    start["required"] = [name for name in start.get("required", ()) if name != "replay_id"]
    members["replay_id"] |= {
        "pattern": _pattern(REPLAY_ID),
        "description": f"Default: a new id. {REPLAY_ID_RULE}.",
    }
    replay_id = {"type": "string", "pattern": _pattern(REPLAY_ID)}
    components["Parent"]["properties"]["replay"] |= replay_id
    members["after"]["items"] = {
        "anyOf": [replay_id, {"$ref": "#/components/schemas/Parent"}],
    }
    members["chain"]["anyOf"][0] |= replay_id
    members["to_original"]["description"] = TO_ORIGINAL_RULE
    start["allOf"] = [
        _unless_null("shards", {"ordering": {"const": "aggregate"}}, required=["ordering"]),
        _unless_null("max_events", {"ordering": {"const": "global"}}),
    ]
    chosen = components[members["filter"]["$ref"].rpartition("/")[2]]["properties"]
    for name in ("start", "end"):
        (time,) = [one for one in chosen[name]["anyOf"] if one["type"] == "string"]
        time["pattern"] = TIME_PATTERN
    chosen["fields"]["propertyNames"] = {"pattern": rf"^{_PATH}(\.{_PATH})*$"}
    target = components[members["target"]["$ref"].rpartition("/")[2]]
    target["allOf"] = [_unless_null("topic", {"prefix": {"const": None}})]


def _set_aside(session: Schema) -> None:
    """Remove the members that have paths of their own."""
    for name in ASIDE:
        del session["properties"][name]
    session["required"] = [name for name in session["required"] if name not in ASIDE]


def _chain_of(start: Schema) -> Schema:
    """Return the schema of a chain, whose replays are starts without the members that it makes."""
    members = {name: one for name, one in start["properties"].items() if name not in MADE}
    defaults = [name for name in members if name != "after"]
    replay = {"type": ["object", "null"], "properties": members, "additionalProperties": False}
    return {
        "type": "object",
        "description": "Replays that wait for each other; each one has the id CHAIN.NAME.",
        "required": ["chain", "replays"],
        "additionalProperties": False,
        "properties": {
            "chain": {"type": "string", "pattern": _pattern(REPLAY_ID)},
            "defaults": {
                "description": "Members for the replays that leave them out. The members of "
                "target are merged one by one.",
                "type": ["object", "null"],
                "propertyNames": {"enum": defaults},
            },
            "replays": {
                "description": "By short name. In after, replays have their short names.",
                "type": "object",
                "minProperties": 1,
                "maxProperties": MAX_REPLAYS,
                "propertyNames": {"pattern": _pattern(REPLAY_ID)},
                "additionalProperties": replay,
            },
        },
    }


NOT_NULL: Schema = {"type": ["array", "boolean", "number", "object", "string"]}
"""Any value but null."""


def _all_or_conditions(components: Schema) -> list[Schema]:
    """Return the two ways to choose events (CHOICE_RULE): all of them, or by conditions."""
    members = components["Filter"]["properties"]
    absent: dict[str, Schema] = {}
    present: dict[str, Schema] = {}
    for name in members.keys() - {"all"}:
        match members[name].get("type"):
            case "array":
                absent[name], present[name] = {"maxItems": 0}, {"minItems": 1}
            case "object":
                absent[name], present[name] = {"maxProperties": 0}, {"minProperties": 1}
            case _:  # a time, or null
                absent[name], present[name] = {"const": None}, NOT_NULL
    conditions = [
        {"properties": {name: rule}, "required": [name]} for name, rule in sorted(present.items())
    ]
    return [
        {"properties": {"all": {"const": True}, **absent}, "required": ["all"]},
        {"properties": {"all": {"const": False}}, "anyOf": conditions},
    ]


def _unless_null(name: str, then: Schema, required: Sequence[str] = ()) -> Schema:
    """Return the rule that a member which is not null asks for other members.

    Without ``if`` and ``not``, which Schemathesis does not resolve in every place.
    """
    absent = {"properties": {name: {"const": None}}}
    return {"anyOf": [absent, {"properties": then, "required": list(required)}]}


def _paths(schemas: dict[str, Schema]) -> Schema:
    def answers(description: str, name: str, *errors: int, status: int = 200) -> Schema:
        return {str(status): _answer(description, schemas[name])} | problems(*errors)

    def problems(*errors: int) -> Schema:
        return {
            str(error): _answer(_ERRORS[error], schemas["ProblemBody"], CONTENT_TYPE)
            for error in errors
        }

    def body(name: str, *, required: bool = True) -> Schema:
        return {"required": required, "content": {JSON: {"schema": schemas[name]}}}

    def accepted(*errors: int) -> Schema:
        return answers("The command is accepted.", "Accepted", *errors, 409, 503, status=202)

    one = [_parameter("replay_id", "path", {"type": "string", "pattern": _pattern(REPLAY_ID)})]
    listed = [
        _parameter(
            "state",
            "query",
            {"type": "array", "items": {"type": "string", "enum": list(get_args(State))}},
        ),
        _parameter("chain", "query", {"type": "string", "pattern": _pattern(REPLAY_ID)}),
        _parameter("text", "query", {"type": "string", "maxLength": MAX_TEXT}),
        _parameter("since", "query", {"type": "string", "format": "date-time"}),
        _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": MAX_LISTED}),
        _parameter("cursor", "query", {"type": "string", "pattern": _pattern(CURSOR)}),
    ]
    names = Source.model_json_schema()["properties"]
    source = [_parameter(name, "query", _not_null(names[name])) for name in SOURCE_MEMBERS]
    paths: Schema = {
        **{
            path: {"get": _plain("The console", "The frame of the console.", "text/html")}
            for path in PAGES
        },
        "/replays": {
            "get": {
                "summary": "List replays, the newest first; the first page has all that have not "
                "ended. The list may be a moment old",
                "parameters": listed,
                "responses": answers("The replays.", "ReplayList", 503)
                | {"304": {"description": "The list has the ETag of If-None-Match."}},
            },
            "post": {
                "summary": "Start a replay; a second start with the same body changes nothing",
                "requestBody": body("NewStart"),
                "responses": accepted(422),
            },
        },
        "/replays/{replay_id}": {
            "parameters": one,
            "get": {
                "summary": "Get a replay; as HTML, its page in the console",
                "responses": _also_html(answers("The session.", "Session", 404, 503)),
            },
            "patch": {
                "summary": VERBS["set-rate"],
                "requestBody": body("NewRate"),
                "responses": accepted(404),
            },
        },
        "/replays/{replay_id}/events": {
            "parameters": one,
            "get": {
                "summary": "Follow a replay until it has ended",
                "responses": {
                    "200": _answer(
                        "Server-sent events: each change sends the session as data, its revision "
                        "as id.",
                        _event(schemas["Session"]),
                        "text/event-stream",
                    ),
                    "204": {"description": "The replay has ended at the revision Last-Event-ID."},
                }
                | problems(404, 503),
            },
        },
        "/replays/{replay_id}/history": {
            "parameters": one,
            "get": {
                "summary": "Get what has changed a replay",
                "responses": answers("The changes.", "History", 404, 503),
            },
        },
        "/replays/{replay_id}/series": {
            "parameters": one,
            "get": {
                "summary": "Get a replay's counters and waits over time",
                "responses": answers("The points.", "ReplaySeries", 404, 503),
            },
        },
        "/replays/{replay_id}/document": {
            "parameters": one,
            "get": {
                "summary": "Get the stored document of an event, such as one that has failed",
                "parameters": [
                    _parameter(
                        "event_id",
                        "query",
                        {"type": "string", "minLength": 1, "maxLength": MAX_EVENT_ID},
                        required=True,
                    )
                ],
                "responses": answers("The document.", "StoredDocument", 404, 422, 503),
            },
        },
        "/replays/{replay_id}/verification": {
            "parameters": one,
            "post": {
                "summary": "Keep the verdict of a verification with a completed replay",
                "requestBody": body("NewVerification"),
                "responses": accepted(404),
            },
        },
        "/plans": {
            "post": {
                "summary": "Plan a replay without starting it",
                "requestBody": body("NewStart"),
                "responses": answers("The plan.", "OfferedPlan", 422, 503),
            }
        },
        "/chains": {
            "post": {
                "summary": "Start the replays of a chain that do not exist yet, or none of them",
                "requestBody": body("NewChain"),
                "responses": answers(
                    "The missing replays are started.", "AppliedChain", 409, 422, 503, status=202
                ),
            }
        },
        "/events": {
            "get": {
                "summary": "Follow every replay; a client that comes back gets everything again",
                "responses": {
                    "200": _answer(
                        "Server-sent events: hello, replay, ready, forgotten, rejection, workers.",
                        {"type": "string"},
                        "text/event-stream",
                    )
                }
                | problems(503),
            }
        },
        "/workers": {
            "get": {
                "summary": "List the workers, and what they work on",
                "responses": answers("The workers.", "Installation"),
            }
        },
        "/types": {
            "get": {
                "summary": "Look at some stored events: their types and fields",
                "parameters": source,
                "responses": answers("What the look has found.", "StoredTypes", 422, 503),
            }
        },
        "/healthz": {
            "get": {
                "summary": "Liveness",
                "responses": answers("The worker is alive.", "Health"),
            }
        },
        "/readyz": {
            "get": {
                "summary": "Readiness",
                "parameters": [
                    _parameter("exclude", "query", {"type": "string", "enum": list(EXCLUDABLE)})
                ],
                "responses": {
                    "200": _answer("Ready.", schemas["Readiness"]),
                    "503": _answer("Not ready.", schemas["Readiness"]),
                },
            }
        },
        "/metrics": {"get": _plain("Metrics in Prometheus' text format", "Metrics.", "text/plain")},
        "/openapi.json": {
            "get": {
                "summary": "This document",
                "responses": {"200": _answer("The document.", {"type": "object"})},
            }
        },
    }
    bodies = {"retry": "Retried", "step": "NewStep"}
    for verb in POSTED_VERBS:
        paths[f"/replays/{{replay_id}}/{verb}"] = {
            "parameters": one,
            "post": {
                "summary": VERBS[verb],
                "requestBody": body(bodies.get(verb, "Requested"), required=verb == "step"),
                "responses": accepted(404),
            },
        }
    return paths


def _answer(description: str, schema: Schema, content_type: str = JSON) -> Schema:
    return {"description": description, "content": {content_type: {"schema": schema}}}


def _also_html(answers: Schema) -> Schema:
    """Add the console's frame to the answers of a path that a browser may open."""
    answers["200"]["content"]["text/html"] = {"schema": {"type": "string"}}
    return answers


def _event(session: Schema) -> Schema:
    """Return the schema of one event of a stream."""
    data = {"type": "string", "contentMediaType": JSON, "contentSchema": session}
    return {"type": "object", "properties": {"id": {"type": "string"}, "data": data}}


def _plain(summary: str, description: str, content_type: str) -> Schema:
    return {
        "summary": summary,
        "responses": {"200": _answer(description, {"type": "string"}, content_type)},
    }


def _not_null(schema: Schema) -> Schema:
    """Return what a member may be apart from null."""
    (found,) = [one for one in schema["anyOf"] if one["type"] != "null"]
    return dict(found)


def _parameter(name: str, where: str, schema: Schema, *, required: bool = False) -> Schema:
    is_required = required or where == "path"
    return {"name": name, "in": where, "required": is_required, "schema": schema}
