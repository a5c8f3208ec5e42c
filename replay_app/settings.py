"""Settings, read from variables ``REPLAY_*`` of the environment or of a ``.env`` file."""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import socket
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote_plus

import pydantic
from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)

from replay_app.commands import TOPIC_NAME, TOPIC_RULE
from replay_app.events import EventMapping
from replay_app.exceptions import InvalidSettings
from replay_app.logs import LogFormat

REMOVED_SETTINGS = {
    "REPLAY_DELIVERY": "every replay is published exactly once; remove the variable"
}
OTHER_VARIABLES = (
    "REPLAY_URL",
    "REPLAY_STACK_CACHE",
    "REPLAY_STACK_STORE_COMMAND",
    "REPLAY_TEST_CRASH_AT",
)
"""Variables of the command line, of the development stack and of tests."""
_SERVICE_LINK = re.compile(
    r"replay_(.+_)?(service_host|service_port(_.+)?|port_\d+_(tcp|udp|sctp)(_(proto|port|addr))?)"
)
_LINK_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
"""How the value of a Service's ``REPLAY_..._PORT`` begins."""
INTERNAL: dict[str, Any] = {"internal": True}
"""Marks a setting that only tests and benchmarks change. docs/settings.md does not list it."""
FIRST_PRINTABLE, DELETE = 0x20, 0x7F
MAX_RECORD_BYTES = 1_000_000  # below the broker's default message.max.bytes of 1,048,588


Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]


class Settings(BaseSettings):
    """One worker's settings. Every field is read from ``REPLAY_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix="REPLAY_",
        env_file=".env",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # also in a traceback
    )

    # Kafka
    kafka: str = Field(
        "localhost:9092", min_length=1, description="Bootstrap servers, comma-separated."
    )
    kafka_security_protocol: Protocol = Field(
        "PLAINTEXT", description="How to connect to Kafka (aiokafka's security_protocol)."
    )
    kafka_sasl_mechanism: Mechanism = Field(
        "PLAIN", description="How to log in to Kafka (aiokafka's sasl_mechanism)."
    )
    kafka_sasl_plain_username: str | None = Field(None, description="The SASL user.")
    kafka_sasl_plain_password: pydantic.SecretStr | None = Field(
        None, description="The SASL password."
    )
    kafka_ssl_cafile: Path | None = Field(
        None, description="PEM file of the CA certificates to trust."
    )
    kafka_ssl_certfile: Path | None = Field(None, description="PEM file of the client certificate.")
    kafka_ssl_keyfile: Path | None = Field(None, description="PEM file of the client key.")
    kafka_sasl_oauth_command: pydantic.SecretStr | None = Field(
        None, description="For `OAUTHBEARER`: a command that prints a token."
    )
    kafka_sasl_oauth_function: str | None = Field(
        None,
        description="For `OAUTHBEARER`: `module:function` of a function that returns a token, or a "
        "token and its expiry in milliseconds since 1970.",
    )
    target_kafka: str | None = Field(
        None,
        description="Servers of another cluster to publish to; the checkpoints are there too.",
    )
    target_kafka_security_protocol: Protocol | None = Field(
        None,
        description="How to connect to the other cluster; empty: as `REPLAY_KAFKA_*` say.",
    )
    target_kafka_sasl_mechanism: Mechanism = Field(
        "PLAIN", description="How to log in to the other cluster."
    )
    target_kafka_sasl_plain_username: str | None = Field(
        None, description="The SASL user of the other cluster."
    )
    target_kafka_sasl_plain_password: pydantic.SecretStr | None = Field(
        None, description="The SASL password of the other cluster."
    )
    target_kafka_ssl_cafile: Path | None = Field(
        None, description="PEM file of the CA certificates to trust for the other cluster."
    )
    target_kafka_ssl_certfile: Path | None = Field(
        None, description="PEM file of the client certificate for the other cluster."
    )
    target_kafka_ssl_keyfile: Path | None = Field(
        None, description="PEM file of the client key for the other cluster."
    )
    target_kafka_sasl_oauth_command: pydantic.SecretStr | None = Field(
        None, description="A command that prints a token for the other cluster."
    )
    target_kafka_sasl_oauth_function: str | None = Field(
        None,
        description="`module:function` of a function that returns a token for the other cluster.",
    )

    # The event store
    mongo: pydantic.SecretStr = Field(
        pydantic.SecretStr("mongodb://localhost:27017"), description="URI of the event store."
    )
    mongo_database: str = Field("events", min_length=1, description="Database of the events.")
    mongo_collection: str = Field("events", min_length=1, description="Collection of the events.")
    sources: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Other collections that a command may read, as `DATABASE.COLLECTION`, "
        "comma-separated; `*` stands for any text.",
    )
    mappings: Path | None = Field(
        None, description="JSON file of the mappings that a command may name for such a collection."
    )

    # Names and topics
    app_id: str = Field(
        "replay",
        pattern=r"^[A-Za-z0-9._-]+$",
        description="Consumer group, and prefix of the transactional ids.",
    )
    topic_prefix: str = Field(
        "replay.", pattern=r"^[A-Za-z0-9._-]*$", description="Prefix of this program's topics."
    )
    partitions: int = Field(8, ge=1, le=1000, description="Partitions of each of these topics.")
    replication: int = Field(1, ge=1, description="Replication factor of these topics.")

    # The mapping of documents to events
    field_id: str = Field("", description="Field of the event id; empty: event_id, else _id.")
    field_timestamp: str = Field(
        "timestamp", min_length=1, description="Field of the event's time."
    )
    field_type: str = Field("event_type", min_length=1, description="Field of the event type.")
    field_aggregate: str = Field(
        "aggregate_id", min_length=1, description="Field of the aggregate id."
    )
    field_topic: str = Field("topic", min_length=1, description="Field of the original topic.")
    field_key: str = Field(
        "", description="Field of the record's key; empty: aggregate id, else event id."
    )
    field_value: str = Field(
        "", description="Field that becomes the value unchanged; empty: the document becomes JSON."
    )
    null_values: Literal["fail", "tombstone"] = Field(
        "fail",
        description="What a null in the field of `REPLAY_FIELD_VALUE` becomes: an event that "
        "fails, or a record without a value.",
    )
    field_headers: str = Field(
        "",
        description="Field of the original headers, an object or an array of keys and values; "
        "empty: none are published again.",
    )
    field_replayed: str = Field(
        "headers.replay-id",
        description="A stored event with this field is itself a replayed event.",
    )
    timestamp_type: Literal["date", "iso", "epoch_ms"] = Field(
        "date",
        description="How the store keeps times: BSON date, ISO text, or milliseconds since 1970.",
    )
    exclude_fields: Annotated[tuple[str, ...], NoDecode] = Field(
        ("_id",), description="Fields to leave out of the value, comma-separated."
    )
    topics: dict[str, str] = Field(
        default_factory=dict, description="JSON object: topics by event type."
    )
    topic_template: str = Field(
        "{event_type}", min_length=1, description="Topic if no other rule gives one."
    )
    schemas: Path | None = Field(
        None,
        description="Folder of JSON Schemas, `TYPE.json` or `TYPE.VERSION.json`, which dry runs "
        "check, and replays with `check_schemas`.",
    )
    field_version: str = Field(
        "version", min_length=1, description="Field of the version that chooses the JSON Schema."
    )
    transforms: dict[str, str] = Field(
        default_factory=dict,
        description="JSON object: `module:function` by the name of a transform that a command may "
        "name.",
    )
    redact_key: pydantic.SecretStr | None = Field(
        None,
        description="Secret key of the hashes that a command asks for in `redact`.",
    )
    record_timestamp: Literal["append", "original"] = Field(
        "append",
        description="Timestamp of replayed records: time of the replay, or time of the event.",
    )

    # The worker
    worker_id: str = Field(
        "", description="Worker's name, kept over restarts; empty: host name and port."
    )
    encoder: Literal["auto", "native", "python"] = Field(
        "auto", description="The page encoder; auto: native if it is installed, else python."
    )
    data_dir: Path = Field(Path("data"), description="Folder for RocksDB, not shared by workers.")
    web_host: str = Field(
        "",
        description="Address of the HTTP API; empty: 0.0.0.0 with tokens, else 127.0.0.1.",
    )
    web_port: int = Field(6066, ge=1, le=65535, description="Port of the HTTP API.")
    canonical_url: str = Field("", description="URL at which other workers reach this worker.")
    api_token: pydantic.SecretStr | None = Field(
        None,
        description="Bearer token of the HTTP API; without tokens the API binds to loopback only.",
    )
    tokens_file: Path | None = Field(
        None,
        description="JSON file of further tokens, each with a name and a role; it is read again "
        "when it changes.",
    )
    public_reads: bool = Field(
        default=False, description="Allow reads of the HTTP API without a token."
    )
    environment: str | None = Field(
        None,
        max_length=40,
        description="Name of the environment that the page shows, such as `prod`.",
    )
    allow_original: bool = Field(
        default=True,
        description="Allow replays to the original topics of their events, which live consumers "
        "read.",
    )

    # Speed and survival
    slice_events: int = Field(
        100_000,
        ge=1,
        description="Most events of one slice (one transaction).",
        json_schema_extra=INTERNAL,
    )
    slice_seconds: float = Field(2.0, gt=0, le=30, description="Longest time of one slice.")
    slice_bytes: int = Field(
        64 << 20,
        ge=1 << 20,
        description="Most encoded bytes of one slice.",
        json_schema_extra=INTERNAL,
    )
    page_events: int = Field(
        5_000, ge=1, le=100_000, description="Most events of one page.", json_schema_extra=INTERNAL
    )
    compression: Literal["auto", "none", "gzip", "snappy", "lz4", "zstd"] = Field(
        "auto",
        description="Compression of the published batches. `auto`: `lz4` with the native encoder, "
        "`snappy` with the Python one, each the fastest of its encoder.",
    )
    plan_seconds: float = Field(
        60.0, gt=0, description="Longest time to count the matching events."
    )
    handover_overlap_seconds: float = Field(
        60.0,
        ge=0,
        le=2_592_000,
        description="How long before the bound a hand-over to the live topics begins.",
    )
    cut_seconds: float = Field(
        0.25,
        gt=0,
        le=600,
        description="Longest time of a sample of aggregate ids, by which shards are cut.",
    )
    stall_seconds: float = Field(
        30.0, gt=0, description="Time without progress until a replay is stalled."
    )
    max_lag_patience_seconds: float = Field(
        300.0,
        gt=0,
        description="Time for which max_lag waits for a consumer group that reads nothing.",
    )
    retention_days: float = Field(
        30.0, gt=7, description="Time until an ended session is forgotten."
    )
    session_timeout_seconds: float = Field(
        10.0, ge=1, description="Time until Kafka gives up a silent worker."
    )
    max_record_bytes: int = Field(
        MAX_RECORD_BYTES, ge=1024, description="Most bytes of a published record."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe level that is logged."
    )
    log_format: LogFormat = Field(
        "text", description="Form of the log: lines for people, or a JSON object in each line."
    )

    @field_validator("web_port", mode="before")
    @classmethod
    def _ignore_service_link(cls, value: object) -> object:
        # Kubernetes sets REPLAY_WEB_PORT=tcp://... in the pods beside a Service "replay-web".
        is_link = isinstance(value, str) and _LINK_ADDRESS.match(value)
        return cls.model_fields["web_port"].default if is_link else value

    @field_validator(
        *("target_kafka", "target_kafka_security_protocol", "mappings", "schemas"),
        *("tokens_file", "environment"),
        *(
            f"{cluster}_{name}"
            for cluster in ("kafka", "target_kafka")
            for name in (
                *("sasl_plain_username", "sasl_plain_password"),
                *("sasl_oauth_command", "sasl_oauth_function"),
                *("ssl_cafile", "ssl_certfile", "ssl_keyfile"),
            )
        ),
        mode="before",
    )
    @classmethod
    def _drop_empty(cls, value: object) -> object:
        # A variable without a value, such as ${UNSET}, means the default.
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("exclude_fields", "sources", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_token", "redact_key", mode="before")
    @classmethod
    def _drop_empty_secret(cls, value: object) -> object:
        # REPLAY_API_TOKEN= must not open the API to everybody who sends an empty token.
        return None if isinstance(value, str) and not value.strip() else value

    @field_validator("api_token")
    @classmethod
    def _require_sendable_token(cls, token: pydantic.SecretStr | None) -> pydantic.SecretStr | None:
        if token is not None:
            check_token(token.get_secret_value())
        return token

    @field_validator("environment")
    @classmethod
    def _require_printable(cls, name: str | None) -> str | None:
        if name is not None and not name.isprintable():
            msg = "has a line break or another control character; remove it"
            raise ValueError(msg)
        return name and name.strip()

    @field_validator("topics")
    @classmethod
    def _require_topic_names(cls, topics: dict[str, str]) -> dict[str, str]:
        for event_type, topic in topics.items():
            if not TOPIC_NAME.match(topic):
                msg = f"{topic!r}, for type {event_type!r}, is not a topic name: {TOPIC_RULE}"
                raise ValueError(msg)
        return topics

    @field_validator("topic_template")
    @classmethod
    def _require_topic_template(cls, template: str) -> str:
        if not TOPIC_NAME.match(template.replace("{event_type}", "x")):
            msg = (
                f"{template!r} gives no topic names: {{event_type}} is the only placeholder, "
                f"and a topic name is {TOPIC_RULE}"
            )
            raise ValueError(msg)
        return template

    @model_validator(mode="after")
    def _require_field_of_nulls(self) -> Settings:
        if self.null_values == "tombstone" and not self.field_value:
            msg = (
                "REPLAY_NULL_VALUES=tombstone needs REPLAY_FIELD_VALUE: a whole document is never "
                "null"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _require_loopback_without_token(self) -> Settings:
        if not self.has_tokens and self.web_host and not _is_loopback(self.web_host):
            msg = (
                f"REPLAY_WEB_HOST={self.web_host} would let anybody start replays: set "
                "REPLAY_TOKENS_FILE or REPLAY_API_TOKEN, or bind to 127.0.0.1"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _require_target(self) -> Settings:
        others = {
            name: field.default
            for name, field in type(self).model_fields.items()
            if name.startswith("target_kafka_")
        }
        given = [name for name, default in others.items() if getattr(self, name) != default]
        if given and self.target_kafka == self.kafka:
            msg = (
                f"REPLAY_{given[0].upper()} has no effect: REPLAY_TARGET_KAFKA is the same cluster "
                "as REPLAY_KAFKA"
            )
            raise ValueError(msg)
        for needed in ("target_kafka_security_protocol", "target_kafka"):
            if given and getattr(self, needed) is None:
                msg = f"REPLAY_{given[0].upper()} needs REPLAY_{needed.upper()}"
                raise ValueError(msg)
        return self

    @property
    def has_tokens(self) -> bool:
        """Whether a request to the HTTP API needs a token."""
        return self.api_token is not None or self.tokens_file is not None

    @cached_property
    def bind_host(self) -> str:
        """The address that the HTTP API binds to. Without tokens only this machine reaches it."""
        everywhere = "0.0.0.0"  # noqa: S104 - only with tokens
        return self.web_host or (everywhere if self.has_tokens else "127.0.0.1")

    @cached_property
    def worker_name(self) -> str:
        """The name of this worker, which stays the same over restarts."""
        return self.worker_id or f"{socket.gethostname()}-{self.web_port}"

    @cached_property
    def target_bootstrap(self) -> str:
        """Bootstrap servers of the cluster that receives the replayed records."""
        return self.target_kafka or self.kafka

    @cached_property
    def mapping(self) -> EventMapping:
        """The rules by which stored documents become records (docs/mapping.md)."""
        return EventMapping(
            field_id=self.field_id or None,
            field_timestamp=self.field_timestamp,
            field_type=self.field_type,
            field_aggregate=self.field_aggregate,
            field_topic=self.field_topic,
            field_key=self.field_key or None,
            field_value=self.field_value or None,
            null_values=self.null_values,
            field_headers=self.field_headers or None,
            field_replayed=self.field_replayed or None,
            timestamp_type=self.timestamp_type,
            exclude_fields=self.exclude_fields,
            topics=self.topics,
            topic_template=self.topic_template,
        )

    @cached_property
    def named_mappings(self) -> dict[str, dict[str, Any]]:
        """The settings of each mapping of the file ``REPLAY_MAPPINGS``, by the mapping's name.

        The names of the settings are those of the fields of this class.

        Raises
        ------
        InvalidSettings
            When the file cannot be read, or has other settings than those of a mapping.

        """
        return {} if self.mappings is None else _read_mappings(self.mappings)

    def replaced(self, members: Mapping[str, Any]) -> Settings:
        """Return these settings with other values for some.

        Raises
        ------
        InvalidSettings
            When a value is wrong. The message names each wrong variable.

        """
        try:
            return Settings(**{**self.model_dump(), **members})
        except pydantic.ValidationError as error:
            raise InvalidSettings("; ".join(map(_sentence, error.errors()))) from error

    def secrets(self) -> tuple[str, ...]:
        """Return all secrets, each as it is written and as it is meant."""
        own = (
            self.api_token,
            self.kafka_sasl_plain_password,
            self.target_kafka_sasl_plain_password,
            self.kafka_sasl_oauth_command,
            self.target_kafka_sasl_oauth_command,
            self.redact_key,
        )
        words = [one for one in own if one]
        in_uri = uri_secrets(self.mongo.get_secret_value())
        return (*(word.get_secret_value() for word in words), *in_uri, *map(unquote_plus, in_uri))


def load_settings(**overrides: Any) -> Settings:
    """Read the settings: ``overrides`` first, then the environment, then the ``.env`` file.

    Raises
    ------
    InvalidSettings
        When a variable is wrong. The message names each wrong variable.

    """
    check_names()
    try:
        settings = Settings(**overrides)
    except pydantic.ValidationError as error:
        raise InvalidSettings("; ".join(map(_sentence, error.errors()))) from error
    except SettingsError as error:  # a value is not JSON, but should be
        named = re.search(r'field "(\w+)"', str(error))
        variable = f"REPLAY_{named[1].upper()}" if named else "a REPLAY_ variable"
        msg = f'{variable}: not JSON; write an object such as {{"order_placed": "orders"}}'
        raise InvalidSettings(msg) from error
    for name, members in settings.named_mappings.items():
        try:
            settings.replaced(members)
        except InvalidSettings as error:
            msg = f"REPLAY_MAPPINGS={settings.mappings}: mapping {name!r}: {error}"
            raise InvalidSettings(msg) from error
    return settings


def mapping_settings() -> set[str]:
    """Return the names of the settings that a mapping has, as fields of `Settings`."""
    others = {"timestamp_type", "null_values", "exclude_fields", "topics", "topic_template"}
    return others | {name for name in Settings.model_fields if name.startswith("field_")}


def _read_mappings(path: Path) -> dict[str, dict[str, Any]]:
    beginning = f"REPLAY_MAPPINGS={path}"
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidSettings(f"{beginning} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidSettings(f"{beginning} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        msg = f'{beginning}: write an object such as {{"orders": {{"REPLAY_FIELD_ID": "uuid"}}}}'
        raise InvalidSettings(msg)
    known = {f"REPLAY_{name.upper()}": name for name in mapping_settings()}
    for name, members in found.items():
        unknown = sorted(members.keys() - known.keys())
        if unknown:
            msg = (
                f"{beginning}: mapping {name!r}: {unknown[0]} is not a setting of a mapping; "
                f"these are {', '.join(sorted(known))}"
            )
            raise InvalidSettings(msg)
    return {
        name: {known[variable]: value for variable, value in members.items()}
        for name, members in found.items()
    }


def check_names() -> None:
    """Refuse variables ``REPLAY_*`` that nothing reads: an ignored one would surprise its operator.

    Variables that Kubernetes and Docker make for a Service named ``replay-...`` are accepted.

    Raises
    ------
    InvalidSettings
        The message names each such variable, and the variable that may be meant.

    """
    given = {**DotEnvSettingsSource(Settings).env_vars, **EnvSettingsSource(Settings).env_vars}
    for variable, remedy in REMOVED_SETTINGS.items():
        if variable.lower() in given:
            raise InvalidSettings(f"{variable} is no longer a setting: {remedy}")
    known = {*(f"REPLAY_{name.upper()}" for name in Settings.model_fields), *OTHER_VARIABLES}
    unknown = [
        name.upper()
        for name, value in sorted(given.items())
        if name.startswith("replay_")
        and name.upper() not in known
        and not _is_service_link(name, value or "")
    ]
    if unknown:
        raise InvalidSettings("; ".join(_unknown(variable, known) for variable in unknown))


def _is_service_link(name: str, value: str) -> bool:
    """Tell whether Kubernetes or Docker made a variable for a Service named ``replay-...``."""
    is_port = name.endswith("_port") and _LINK_ADDRESS.match(value)
    return bool(is_port or _SERVICE_LINK.fullmatch(name))


def _unknown(variable: str, known: Iterable[str]) -> str:
    # Without the common beginning, which would make all names alike.
    ends = [name.removeprefix("REPLAY_") for name in known]
    meant = difflib.get_close_matches(variable.removeprefix("REPLAY_"), ends, n=1)
    advice = f"did you mean REPLAY_{meant[0]}?" if meant else "`replay-app settings` shows all"
    return f"{variable} is not a setting: {advice}"


def _sentence(error: Any) -> str:
    """Return one validation error in words, without the value: the value may be a secret."""
    what = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    if not error["loc"]:
        return what
    field, *inside = map(str, error["loc"])
    return f"REPLAY_{field.upper()}: {' '.join([*inside, what])}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def settings_rows() -> list[tuple[str, str, str]]:
    """Return a row for each setting: the variable, the value as text, the source of the value.

    Secrets are masked. The source is ``environment``, ``.env`` or ``default``.
    """
    settings = load_settings()
    environment = EnvSettingsSource(Settings).env_vars
    dotenv = DotEnvSettingsSource(Settings).env_vars
    rows = []
    for name in Settings.model_fields:
        variable = f"replay_{name}"
        if variable in environment:
            source = "environment"
        else:
            source = ".env" if variable in dotenv else "default"
        rows.append((variable.upper(), _text(name, getattr(settings, name)), source))
    return rows


def _text(name: str, value: Any) -> str:
    """Return a setting's value in the form of the environment, with secrets masked."""
    if isinstance(value, pydantic.SecretStr):
        return masked_uri(value.get_secret_value()) if name == "mongo" else "***"
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    return json.dumps(value) if isinstance(value, dict) else str(value)


# In a malformed URI, nobody knows where the password ends: up to the last @, it may be everything.
_PASSWORD = re.compile(r"(?P<before>^(?>(?:[^:@]*://)?)[^:]*:)(?P<secret>.*)(?=@)", re.DOTALL)
_SECRET_OPTION = re.compile(
    r"(?i)(?P<before>(?:password|authMechanismProperties)=)(?P<secret>[^&]*)"
)


def masked_uri(uri: str) -> str:
    """Return a URI with *** for each password, also in the options of a MongoDB URI."""
    for pattern in (_PASSWORD, _SECRET_OPTION):
        uri = pattern.sub(r"\g<before>***", uri)
    return uri


def uri_secrets(uri: str) -> list[str]:
    """Return what `masked_uri` hides."""
    found = (match["secret"] for p in (_PASSWORD, _SECRET_OPTION) for match in p.finditer(uri))
    return [secret for secret in found if secret]


def check_token(token: str) -> None:
    """Raise ValueError for a token that no HTTP header can carry."""
    if any(ord(character) < FIRST_PRINTABLE or ord(character) == DELETE for character in token):
        msg = "has a line break or another control character; remove it"
        raise ValueError(msg)
