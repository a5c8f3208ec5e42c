"""Settings: where they come from, and how a wrong one is refused."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
from secret_values import SECRET_WORD

from replay_app.exceptions import InvalidSettings
from replay_app.settings import OTHER_VARIABLES, Settings, load_settings, masked_uri, uri_secrets

SECRET = SECRET_WORD


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use an empty folder and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"REPLAY_{name.upper()}", raising=False)


def refusal(**overrides: Any) -> str:
    with pytest.raises(InvalidSettings) as refused:
        load_settings(**overrides)
    return str(refused.value)


def test_every_setting_has_a_default_and_a_description() -> None:
    settings = load_settings()
    assert (settings.kafka, settings.partitions) == ("localhost:9092", 8)
    assert settings.mongo.get_secret_value() == "mongodb://localhost:27017"
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name


def test_the_environment_goes_before_the_file_and_overrides_before_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ["REPLAY_PARTITIONS=1", "REPLAY_APP_ID=file", "REPLAY_PAGE_EVENTS=11", "OTHER=x"]
    (tmp_path / ".env").write_text("\n".join(lines))
    monkeypatch.setenv("REPLAY_PARTITIONS", "2")
    monkeypatch.setenv("REPLAY_APP_ID", "environment")
    settings = load_settings(partitions=3)
    assert (settings.partitions, settings.app_id, settings.page_events) == (3, "environment", 11)


def test_lists_and_maps_are_read_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_EXCLUDE_FIELDS", "_id, internal.note ,,")
    monkeypatch.setenv("REPLAY_TOPICS", '{"order_placed": "orders"}')
    settings = load_settings()
    assert settings.exclude_fields == ("_id", "internal.note")
    assert settings.topics == {"order_placed": "orders"}


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PARTITIONS", "many", "REPLAY_PARTITIONS: Input should be a valid integer"),
        ("PARTITIONS", "0", "REPLAY_PARTITIONS: Input should be greater than or equal to 1"),
        ("SLICE_SECONDS", "-1", "REPLAY_SLICE_SECONDS: Input should be greater than 0"),
        ("SLICE_SECONDS", "nan", "REPLAY_SLICE_SECONDS: Input should be"),
        ("DELIVERY", "at_least_once", "REPLAY_DELIVERY is no longer a setting: every replay is"),
        ("TIMESTAMP_TYPE", "unix", "REPLAY_TIMESTAMP_TYPE: Input should be 'date', 'iso' or"),
        ("COMPRESSION", "lzo", "REPLAY_COMPRESSION: Input should be 'auto', 'none', 'gzip'"),
        ("APP_ID", "a b", "REPLAY_APP_ID: String should match pattern"),
        ("APP_ID", "", "REPLAY_APP_ID: String should match pattern"),
        ("KAFKA", "", "REPLAY_KAFKA: String should have at least 1 character"),
        ("TOPIC_PREFIX", "a/", "REPLAY_TOPIC_PREFIX: String should match pattern"),
        ("WEB_PORT", "70000", "REPLAY_WEB_PORT: Input should be less than or equal to 65535"),
        ("CUT_SECONDS", "0", "REPLAY_CUT_SECONDS: Input should be greater than 0"),
        ("CUT_SECONDS", "601", "REPLAY_CUT_SECONDS: Input should be less than or equal to 600"),
        ("RETENTION_DAYS", "7", "REPLAY_RETENTION_DAYS: Input should be greater than 7"),
        ("TOPICS", "{orders", "REPLAY_TOPICS: not JSON; write an object such as"),
        ("TOPICS", "[]", "REPLAY_TOPICS: Input should be a valid dictionary"),
        ("TOPICS", '{"a": 1}', "REPLAY_TOPICS: a Input should be a valid string"),
        ("TOPICS", '{"a": "b c"}', "REPLAY_TOPICS: 'b c', for type 'a', is not a topic name"),
        (
            "TOPIC_TEMPLATE",
            "events.{aggregate}",
            "REPLAY_TOPIC_TEMPLATE: 'events.{aggregate}' gives",
        ),
        ("TOPIC_TEMPLATE", "{event_type", "REPLAY_TOPIC_TEMPLATE: '{event_type' gives no topic"),
        ("TOPIC_TEMPLATE", "{}", "REPLAY_TOPIC_TEMPLATE: '{}' gives no topic names"),
        ("TOPIC_TEMPLATE", "a b", "REPLAY_TOPIC_TEMPLATE: 'a b' gives no topic names"),
        ("TOPIC_TEMPLATE", "", "REPLAY_TOPIC_TEMPLATE: String should have at least 1 character"),
        ("FIELD_TIMESTAMP", "", "REPLAY_FIELD_TIMESTAMP: String should have at least 1"),
    ],
)
def test_a_wrong_variable_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"REPLAY_{variable}", value)
    assert refusal().startswith(message)


def test_every_wrong_variable_is_named() -> None:
    message = refusal(partitions=0, web_port=0, topic_template="{x}")
    for name in ("REPLAY_PARTITIONS", "REPLAY_WEB_PORT", "REPLAY_TOPIC_TEMPLATE"):
        assert name in message


@pytest.mark.parametrize(
    "template", ["{event_type}", "events", "shop.{event_type}.v1", "{event_type}.{event_type}"]
)
def test_a_template_may_hold_the_type_and_nothing_else(template: str) -> None:
    assert load_settings(topic_template=template).mapping.topic_template == template


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil"])  # noqa: S104 - refused
def test_without_a_token_only_loopback_may_be_bound(host: str) -> None:
    message = refusal(web_host=host)
    assert message.startswith(f"REPLAY_WEB_HOST={host} would let anybody start replays")
    assert "REPLAY_API_TOKEN" in message
    assert load_settings(web_host=host, api_token=SECRET).bind_host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_may_be_bound_without_a_token(host: str) -> None:
    assert load_settings(web_host=host).bind_host == host


@pytest.mark.parametrize("token", [None, "", "  "])
def test_no_token_and_an_empty_token_bind_to_loopback(token: str | None) -> None:
    settings = load_settings(api_token=token)
    assert settings.api_token is None
    assert settings.bind_host == "127.0.0.1"


def test_a_token_binds_everywhere() -> None:
    assert load_settings(api_token=SECRET).bind_host == "0.0.0.0"  # noqa: S104 - the default


def test_a_file_of_tokens_counts_as_tokens() -> None:
    settings = load_settings(tokens_file="/etc/replay/tokens.json")
    assert settings.has_tokens
    assert settings.bind_host == "0.0.0.0"  # noqa: S104 - the default
    assert load_settings(tokens_file="/t", web_host="10.0.0.1").bind_host == "10.0.0.1"
    assert not load_settings(tokens_file=" ").has_tokens


@pytest.mark.parametrize(("name", "shown"), [(" prod ", "prod"), ("", None), ("a" * 40, "a" * 40)])
def test_the_environment_is_a_short_name(name: str, shown: str | None) -> None:
    assert load_settings(environment=name).environment == shown


def test_an_environment_that_no_badge_can_show_is_refused() -> None:
    assert refusal(environment="a" * 41).startswith("REPLAY_ENVIRONMENT: String should have at mo")
    assert refusal(environment="a\nb").startswith("REPLAY_ENVIRONMENT: has a line break")


def test_original_topics_are_allowed_unless_a_setting_forbids_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_settings().allow_original
    monkeypatch.setenv("REPLAY_ALLOW_ORIGINAL", "false")
    assert not load_settings().allow_original
    monkeypatch.setenv("REPLAY_ALLOW_ORIGINAL", "never")
    assert refusal().startswith("REPLAY_ALLOW_ORIGINAL: Input should be a valid boolean")


def test_an_empty_token_does_not_open_every_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_API_TOKEN", "")
    assert "REPLAY_API_TOKEN" in refusal(web_host="0.0.0.0")  # noqa: S104 - refused


SECRETS = {
    "mongo": f"mongodb://ana:{SECRET}@db",
    "api_token": SECRET,
    "kafka_sasl_plain_password": SECRET,
}


def test_secrets_are_not_shown() -> None:
    settings = load_settings(**SECRETS)
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET not in shown
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == SECRET


def test_a_refusal_shows_no_secret() -> None:
    assert SECRET not in refusal(**SECRETS, partitions=0)
    assert SECRET not in refusal(mongo=[SECRET], api_token=[SECRET])
    with pytest.raises(InvalidSettings) as refused:
        load_settings(
            mongo=[SECRET], api_token=f"{SECRET}\n", kafka_sasl_plain_password={SECRET: 1}
        )
    assert SECRET not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    ("uri", "masked"),
    [
        ("mongodb://db:27017", "mongodb://db:27017"),
        ("mongodb://ana@db:27017/x", "mongodb://ana@db:27017/x"),
        ("mongodb+srv://ana:p:w@db/x", "mongodb+srv://ana:***@db/x"),
        ("mongodb://ana:p@w@db,db2:1/x", "mongodb://ana:***@db,db2:1/x"),
        ("mongodb://ana:p/w?d#@db/x", "mongodb://ana:***@db/x"),
        ("mongodb://ana@home:pw@db", "mongodb://ana@home:***@db"),
        ("mongodb//ana:pw@db", "mongodb//ana:***@db"),
        ("mongodb:/ana:pw@db", "mongodb:***@db"),
        ("ana:pw@db", "ana:***@db"),
        (
            "mongodb://db/?tlsCertificateKeyFilePassword=pw&a=b",
            "mongodb://db/?tlsCertificateKeyFilePassword=***&a=b",
        ),
        (
            "mongodb://db/?authMechanismProperties=AWS_SESSION_TOKEN:t",
            "mongodb://db/?authMechanismProperties=***",
        ),
    ],
)
def test_a_store_address_is_shown_without_passwords(uri: str, masked: str) -> None:
    assert masked_uri(uri) == masked


def test_all_secrets_are_known_as_written_and_as_meant() -> None:
    settings = load_settings(
        mongo="mongodb://ana:p%40w@db/?tlsCertificateKeyFilePassword=key%2Bword",
        api_token="the token",  # noqa: S106 - opens nothing
        kafka_sasl_plain_password="sasl",  # noqa: S106
    )
    assert set(settings.secrets()) == {
        *("the token", "sasl", "p%40w", "p@w", "key%2Bword", "key+word"),
    }
    assert load_settings().secrets() == ()
    assert uri_secrets("mongodb://ana@db:27017") == []


@pytest.mark.parametrize("token", ["a\nb", "a\n", "a\0", "\x7f"])
def test_a_token_that_no_header_can_carry_is_refused_without_its_text(token: str) -> None:
    message = refusal(api_token=token)
    assert message == ("REPLAY_API_TOKEN: has a line break or another control character; remove it")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().partitions = 9  # type: ignore[misc]


def test_the_worker_has_a_stable_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    assert load_settings(web_port=6067).worker_name == "node-7-6067"
    assert load_settings(worker_id="replay-0").worker_name == "replay-0"


def test_the_target_is_the_same_cluster_unless_another_is_named() -> None:
    assert load_settings(kafka="a:1").target_bootstrap == "a:1"
    assert load_settings(kafka="a:1", target_kafka="b:2").target_bootstrap == "b:2"


def test_empty_fields_mean_the_mappings_own_rules() -> None:
    mapping = load_settings(field_replayed="").mapping
    assert mapping.field_id is None
    assert mapping.field_key is None
    assert mapping.field_value is None
    assert mapping.field_replayed is None
    mapping = load_settings(field_id="id", field_key="k", field_value="v").mapping
    assert (mapping.field_id, mapping.field_key, mapping.field_value) == ("id", "k", "v")


def test_tombstones_need_the_field_of_the_value() -> None:
    mapping = load_settings(field_value="v", null_values="tombstone").mapping
    assert mapping.null_values == "tombstone"
    with pytest.raises(InvalidSettings, match="REPLAY_NULL_VALUES=tombstone needs REPLAY_FIELD_VA"):
        load_settings(null_values="tombstone")


# Names


@pytest.mark.parametrize(
    ("variable", "advice"),
    [
        ("REPLAY_KAFKAS", "did you mean REPLAY_KAFKA?"),
        ("REPLAY_MONGO_URI", "did you mean REPLAY_MONGO?"),
        ("REPLAY_MONGODB_DATABASE", "did you mean REPLAY_MONGO_DATABASE?"),
        ("REPLAY_LOGLEVEL", "did you mean REPLAY_LOG_LEVEL?"),
        ("REPLAY_TOKEN", "did you mean REPLAY_API_TOKEN?"),
        ("replay_partition", "did you mean REPLAY_PARTITIONS?"),
        ("REPLAY_WEBPORT", "did you mean REPLAY_WEB_PORT?"),
        ("REPLAY_HTTP_PORT", "`replay-app settings` shows all"),
        ("REPLAY_", "`replay-app settings` shows all"),
        ("REPLAY_XYZZY", "`replay-app settings` shows all"),
    ],
)
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_a_misspelt_variable_is_refused_with_the_one_that_may_be_meant(
    variable: str, advice: str, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if place == "environment":
        monkeypatch.setenv(variable, "1")
    else:
        (tmp_path / ".env").write_text(f"{variable}=1\n")
    assert refusal() == f"{variable.upper()} is not a setting: {advice}"


def test_every_misspelt_variable_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_KAFK", "kafka:9092")
    monkeypatch.setenv("REPLAY_MONGOO", "mongodb://db")
    assert refusal() == (
        "REPLAY_KAFK is not a setting: did you mean REPLAY_KAFKA?; "
        "REPLAY_MONGOO is not a setting: did you mean REPLAY_MONGO?"
    )


@pytest.mark.parametrize("variable", [*OTHER_VARIABLES, "REPLAYED", "OTHER_REPLAY_X"])
def test_variables_of_other_commands_and_other_programs_are_accepted(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://x")
    load_settings()


@pytest.mark.parametrize("service", ["REPLAY", "REPLAY_APP", "REPLAY_WEB", "REPLAY_KAFKA"])
def test_the_variables_that_kubernetes_makes_for_a_service_never_stop_a_worker(
    service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {
        "SERVICE_HOST": "10.0.0.11",
        "SERVICE_PORT": "6066",
        "SERVICE_PORT_HTTP": "6066",
        "PORT": "tcp://10.0.0.11:6066",
        "PORT_6066_TCP": "tcp://10.0.0.11:6066",
        "PORT_6066_TCP_PROTO": "tcp",
        "PORT_6066_TCP_PORT": "6066",
        "PORT_6066_TCP_ADDR": "10.0.0.11",
        "PORT_53_UDP": "udp://10.0.0.11:53",
        "PORT_53_UDP_ADDR": "10.0.0.11",
    }
    for name, value in links.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    assert load_settings() == Settings(web_port=6066)
