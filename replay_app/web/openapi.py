"""The API's description, OpenAPI 3.1, made from the models that the program itself uses."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from replay_app import __version__
from replay_app.board import Rejection
from replay_app.commands import PLAIN_VERBS, REPLAY_ID_RULE, VERBS, Rate, ShortText, Start
from replay_app.reports import Plan
from replay_app.sessions import Session, State
from replay_app.web.problems import CONTENT_TYPE

JSON = "application/json"

Schema = dict[str, Any]


class Requested(BaseModel):
    """The body of a command that needs only a replay_id; the body may be empty."""

    model_config = ConfigDict(extra="forbid")

    requested_by: ShortText | None = None


class NewRate(Requested):
    """Events per second, all shards together; null removes the limit."""

    rate: Rate | None


class Accepted(BaseModel):
    """The command is on its way to the sessions agent, which decides."""

    replay_id: str
    revision: int | None = None
    """Revision of a started replay; null if the agent has not answered yet."""


class ReplayList(BaseModel):
    """Replays and rejections, the newest first."""

    replays: tuple[Session, ...]
    rejections: tuple[Rejection, ...]
    """Commands that the sessions agent refused."""


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
    400: "The body or a parameter is wrong; the detail has a sentence for each field.",
    401: "The bearer token is missing or wrong.",
    404: "The replay does not exist.",
    409: "The replay's state does not allow the command.",
    413: "The body is too large.",
    422: "The replay could not succeed; the detail says what is missing.",
    503: "The worker, the store or the broker is not ready; try again after Retry-After seconds.",
}


@cache
def openapi() -> Schema:
    """Return the OpenAPI document."""
    references, definitions = models_json_schema(
        [
            (Start, "validation"),
            (Requested, "validation"),
            (NewRate, "validation"),
            *(
                (model, "serialization")
                for model in (
                    Session,
                    ReplayList,
                    Plan,
                    Accepted,
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
    start["required"] = [name for name in start.get("required", ()) if name != "replay_id"]
    start["properties"]["replay_id"]["description"] = f"Default: a new id. {REPLAY_ID_RULE}."
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Event replay",
            "version": __version__,
            "description": "Starts, watches and controls replays of stored events to Kafka.",
        },
        "security": [{"bearer": []}, {}],
        "paths": _paths(schemas),
        "components": {
            "schemas": components,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths(schemas: dict[str, Schema]) -> Schema:
    def answers(description: str, name: str, *errors: int, status: int = 200) -> Schema:
        problems = {
            str(error): _answer(_ERRORS[error], schemas["ProblemBody"], CONTENT_TYPE)
            for error in sorted(errors)
        }
        return {str(status): _answer(description, schemas[name])} | problems

    def body(name: str, *, required: bool = True) -> Schema:
        return {"required": required, "content": {JSON: {"schema": schemas[name]}}}

    def accepted(*errors: int) -> Schema:
        return answers("The command is accepted.", "Accepted", *errors, 401, 409, 503, status=202)

    one = [_parameter("replay_id", "path", {"type": "string"})]
    listed = [
        _parameter(
            "state",
            "query",
            {"type": "array", "items": {"type": "string", "enum": list(get_args(State))}},
        ),
        _parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 1000}),
    ]
    paths: Schema = {
        "/": {"get": _plain("The status page", "The page.", "text/html")},
        "/replays": {
            "get": {
                "summary": "List the newest replays; the list may be a moment old",
                "parameters": listed,
                "responses": answers("The replays.", "ReplayList", 400, 401),
            },
            "post": {
                "summary": "Start a replay; a second start with the same body changes nothing",
                "requestBody": body("Start"),
                "responses": accepted(400, 413),
            },
        },
        "/replays/{replay_id}": {
            "parameters": one,
            "get": {
                "summary": "Get a replay",
                "responses": answers("The session.", "Session", 401, 404, 503),
            },
            "patch": {
                "summary": VERBS["set-rate"],
                "requestBody": body("NewRate"),
                "responses": accepted(400, 404, 413),
            },
        },
        "/replays/{replay_id}/events": {
            "parameters": one,
            "get": _plain(
                "Follow a replay until it has ended",
                "Server-sent events: each change sends the session as data, its revision as id.",
                "text/event-stream",
            ),
        },
        "/plans": {
            "post": {
                "summary": "Plan a replay without starting it",
                "requestBody": body("Start"),
                "responses": answers("The plan.", "Plan", 400, 401, 413, 422, 503),
            }
        },
        "/healthz": {
            "get": {
                "summary": "Liveness",
                "security": [{}],
                "responses": answers("The worker is alive.", "Health"),
            }
        },
        "/readyz": {
            "get": {
                "summary": "Readiness",
                "security": [{}],
                "parameters": [
                    _parameter("exclude", "query", {"type": "string", "enum": ["store"]})
                ],
                "responses": {
                    "200": _answer("Ready.", schemas["Readiness"]),
                    "503": _answer("Not ready.", schemas["Readiness"]),
                },
            }
        },
        "/openapi.json": {"get": _plain("This document", "The document.", JSON)},
    }
    for verb in PLAIN_VERBS:
        paths[f"/replays/{{replay_id}}/{verb}"] = {
            "parameters": one,
            "post": {
                "summary": VERBS[verb],
                "requestBody": body("Requested", required=False),
                "responses": accepted(400, 404, 413),
            },
        }
    return paths


def _answer(description: str, schema: Schema, content_type: str = JSON) -> Schema:
    return {"description": description, "content": {content_type: {"schema": schema}}}


def _plain(summary: str, description: str, content_type: str) -> Schema:
    return {
        "summary": summary,
        "responses": {"200": _answer(description, {}, content_type)},
    }


def _parameter(name: str, where: str, schema: Schema) -> Schema:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}
