"""How clients log in to the two clusters, and the tokens for OAUTHBEARER."""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from secret_values import SECRET_WORD as SECRET

from replay_app import kafka_security as module
from replay_app.exceptions import InvalidSettings
from replay_app.kafka_security import NoToken, kafka_security
from replay_app.settings import load_settings

SOURCE, TARGET = "source:9092", "target:9092"
OAUTH: dict[str, Any] = {
    "kafka_security_protocol": "SASL_PLAINTEXT",
    "kafka_sasl_mechanism": "OAUTHBEARER",
}


def security(bootstrap: str = SOURCE, **settings: Any) -> dict[str, Any]:
    return kafka_security(load_settings(kafka=SOURCE, **settings), bootstrap)


def test_plaintext_needs_no_options() -> None:
    assert security() == {"security_protocol": "PLAINTEXT"}


def test_sasl_gives_the_user_and_password() -> None:
    assert security(
        kafka_security_protocol="SASL_PLAINTEXT",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_plain_username="ana",
        kafka_sasl_plain_password=SECRET,
    ) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ana",
        "sasl_plain_password": SECRET,
    }


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
@pytest.mark.parametrize(
    "given", [{}, {"kafka_sasl_plain_username": "a"}, {"kafka_sasl_plain_password": "b"}]
)
def test_sasl_without_a_user_or_password_is_refused(protocol: str, given: dict[str, str]) -> None:
    with pytest.raises(
        InvalidSettings, match="REPLAY_KAFKA_SASL_PLAIN_USERNAME and REPLAY_KAFKA_S"
    ):
        security(kafka_security_protocol=protocol, **given)


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_tls_checks_the_brokers_certificate_and_name(protocol: str) -> None:
    options = security(
        kafka_security_protocol=protocol,
        kafka_sasl_plain_username="ana",
        kafka_sasl_plain_password=SECRET,
    )
    context = options["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidSettings, match=f"REPLAY_KAFKA_SSL_CAFILE={path}"):
        security(kafka_security_protocol="SSL", kafka_ssl_cafile=path)


# The other cluster


def test_the_other_cluster_is_logged_in_to_as_the_first_unless_it_has_settings_of_its_own() -> None:
    first: dict[str, Any] = {
        "target_kafka": TARGET,
        "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_sasl_plain_username": "ana",
        "kafka_sasl_plain_password": SECRET,
    }
    assert security(TARGET, **first) == security(SOURCE, **first)
    plain = first | {"target_kafka_security_protocol": "PLAINTEXT"}
    assert security(TARGET, **plain) == {"security_protocol": "PLAINTEXT"}
    assert security(SOURCE, **plain) == security(SOURCE, **first)
    other = first | {
        "target_kafka_security_protocol": "SASL_PLAINTEXT",
        "target_kafka_sasl_mechanism": "SCRAM-SHA-256",
        "target_kafka_sasl_plain_username": "eve",
        "target_kafka_sasl_plain_password": f"{SECRET}2",
    }
    assert security(TARGET, **other)["sasl_plain_username"] == "eve"
    assert security(TARGET, **other)["sasl_mechanism"] == "SCRAM-SHA-256"
    assert security(SOURCE, **other) == security(SOURCE, **first)
    assert f"{SECRET}2" in load_settings(**other).secrets()


def test_an_error_names_the_settings_of_the_cluster() -> None:
    with pytest.raises(InvalidSettings, match="REPLAY_TARGET_KAFKA_SASL_PLAIN_USERNAME and"):
        security(TARGET, target_kafka=TARGET, target_kafka_security_protocol="SASL_SSL")
    with pytest.raises(
        InvalidSettings, match="REPLAY_TARGET_KAFKA_SASL_MECHANISM=OAUTHBEARER need"
    ):
        security(
            TARGET,
            target_kafka=TARGET,
            target_kafka_security_protocol="SASL_SSL",
            target_kafka_sasl_mechanism="OAUTHBEARER",
        )


def test_a_variable_without_a_value_means_the_default() -> None:
    names = ("target_kafka", "target_kafka_security_protocol", "target_kafka_ssl_cafile")
    more = ("kafka_sasl_oauth_command", "kafka_sasl_oauth_function", "kafka_ssl_keyfile")
    assert security(TARGET, **dict.fromkeys((*names, *more, "mappings"), "")) == security()
    with pytest.raises(InvalidSettings, match=r"needs REPLAY_TARGET_KAFKA$"):
        load_settings(target_kafka="", target_kafka_security_protocol="SSL")
    with pytest.raises(InvalidSettings, match="has no effect: REPLAY_TARGET_KAFKA is the same"):
        load_settings(kafka=SOURCE, target_kafka=SOURCE, target_kafka_security_protocol="SSL")


@pytest.mark.parametrize(
    ("given", "needed"),
    [
        ({"target_kafka_security_protocol": "SSL"}, "REPLAY_TARGET_KAFKA"),
        (
            {"target_kafka": TARGET, "target_kafka_sasl_plain_username": "ana"},
            "REPLAY_TARGET_KAFKA_SECURITY_PROTOCOL",
        ),
    ],
)
def test_settings_of_the_other_cluster_that_would_have_no_effect_are_refused(
    given: dict[str, str], needed: str
) -> None:
    with pytest.raises(InvalidSettings, match=f"REPLAY_TARGET_KAFKA_S.* needs {needed}$"):
        load_settings(**given)


# Tokens

calls: list[int] = []


def made_token() -> str:
    """Return a token; `kafka_security` finds this function by its name."""
    calls.append(0)
    return f"token-{len(calls)}"


async def expiring_token() -> tuple[str, float]:
    """Return a token that expires in 31 seconds."""
    calls.append(0)
    return f"token-{len(calls)}", (time.time() + 31) * 1000


def failing_token() -> str:
    """Fail."""
    raise RuntimeError("no such role")


def no_text() -> int:
    """Return something else."""
    return 7


def no_time() -> tuple[str, str]:
    """Return a token with a time that is no number."""
    return "token", "2026-01-01"


def slow_token() -> str:
    """Return too late."""
    time.sleep(0.5)
    return "late"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    module._token_provider.cache_clear()
    monkeypatch.setitem(sys.modules, "tokens_of_the_test", sys.modules[__name__])


def provider(**given: str) -> Any:
    return security(**OAUTH, **given)["sasl_oauth_token_provider"]


def function(name: str) -> dict[str, str]:
    return {"kafka_sasl_oauth_function": f"tokens_of_the_test:{name}"}


async def test_all_clients_share_a_token_until_it_is_about_to_expire(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = provider(**function("made_token")), provider(**function("made_token"))
    assert [await one.token(), await other.token(), await one.token()] == ["token-1"] * 3
    monkeypatch.setattr(one, "_until", 0)
    assert await other.token() == "token-2"


async def test_a_function_may_be_async_and_may_tell_when_the_token_expires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = provider(**function("expiring_token"))
    assert [await one.token(), await one.token()] == ["token-1", "token-1"]
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 1.5)
    assert await one.token() == "token-2"


async def test_a_command_prints_a_token() -> None:
    one = provider(kafka_sasl_oauth_command=f"{sys.executable} -c 'print(\"a.b.c\")'")
    assert await one.token() == "a.b.c"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"kafka_sasl_oauth_command": "/no/such/command"},
            "COMMAND gives no token: .*No such file",
        ),
        ({"kafka_sasl_oauth_command": "sh -c 'echo no role >&2; exit 3'"}, "exit code 3: no role"),
        ({"kafka_sasl_oauth_command": "true"}, "COMMAND gives no token: it is empty"),
        (function("failing_token"), "FUNCTION gives no token: no such role"),
        ({"kafka_sasl_oauth_command": "''"}, "COMMAND gives no token: "),
        (function("no_time"), "FUNCTION gives no token: it is neither a text, nor"),
        (function("no_text"), "FUNCTION gives no token: it is neither a text, nor"),
    ],
)
async def test_a_token_that_cannot_be_got_is_an_error_with_the_setting(
    given: dict[str, str], told: str
) -> None:
    with pytest.raises(NoToken, match=told):
        await provider(**given).token()


async def test_a_token_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKEN_SECONDS", 0.1)
    # The shell starts another process, which keeps the output open.
    command = {"kafka_sasl_oauth_command": "sh -c 'sleep 60; echo x'"}
    for given in (command, function("slow_token")):
        began = asyncio.get_running_loop().time()
        with pytest.raises(NoToken, match=r"no answer within 0.1 s"):
            await provider(**given).token()
        assert asyncio.get_running_loop().time() - began < 30


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "needs one of REPLAY_KAFKA_SASL_OAUTH_COMMAND and REPLAY_KAFKA_SASL_OAUTH_FUNCTION"),
        ({"kafka_sasl_oauth_command": "true", **function("no_text")}, "needs one of"),
        ({"kafka_sasl_oauth_function": "no_such_module:f"}, "write module:function"),
        ({"kafka_sasl_oauth_function": "time"}, "write module:function"),
        ({"kafka_sasl_oauth_function": ":f"}, "write module:function"),
        ({"kafka_sasl_oauth_function": ".x:f"}, "write module:function"),
        ({"kafka_sasl_oauth_function": "sys:path"}, "=sys:path is no function"),
    ],
)
def test_a_wrong_source_of_tokens_is_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(InvalidSettings, match=told):
        security(**OAUTH, **given)
