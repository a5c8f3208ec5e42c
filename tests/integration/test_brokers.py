"""The wait for the brokers at the start, and the reasons why a broker cannot be used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from secret_values import SECRET_WORD
from support import forwarding, topic_names, unique_name

from replay_app.brokers import prepare_topics
from replay_app.demo.stack import Stack, free_port
from replay_app.exceptions import InvalidSettings, Unavailable
from replay_app.settings import Settings, load_settings

DEADLINE_SECONDS = 60.0
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def settings(stack: Stack) -> Settings:
    name = unique_name("brokers")
    return load_settings(kafka=stack.kafka, app_id=name, topic_prefix=f"{name}.", partitions=2)


@contextlib.asynccontextmanager
async def listening(port: int, answer: Answer) -> AsyncIterator[None]:
    """Answer each connection to the port; close all of them at the end."""
    answering: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.add(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)


async def closing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


async def speaking_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


async def test_a_broker_that_comes_late_is_waited_for(
    stack: Stack, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    late = settings.model_copy(update={"kafka": f"127.0.0.1:{port}"})
    waiting = asyncio.create_task(prepare_topics(late, DEADLINE_SECONDS))
    async with asyncio.timeout(DEADLINE_SECONDS):
        while "waiting for up to" not in caplog.text:
            assert not waiting.done()
            await asyncio.sleep(0.05)
        assert f"Kafka at 127.0.0.1:{port} (REPLAY_KAFKA) cannot be reached: " in caplog.text
        with forwarding(port, stack.kafka):
            await waiting
    assert f"{settings.topic_prefix}requests" in topic_names(stack.kafka)
    assert not [one for one in caplog.records if not one.name.startswith("replay_app")]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "Connect call failed"),
        (closing, "the connection is closed at once; does REPLAY_KAFKA_SECURITY_PROTOCOL fit?"),
        (speaking_http, "the connection is closed at once"),
        (silent, "no answer within 0.5 s"),
    ],
    ids=["nobody", "closing", "http", "silent"],
)
async def test_a_broker_that_never_comes_is_given_up_with_the_reason(
    answer: Answer | None,
    why: str,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("replay_app.brokers.ANSWER_SECONDS", 0.5)
    port = free_port()
    away = settings.model_copy(update={"kafka": f"127.0.0.1:{port}"})
    async with contextlib.AsyncExitStack() as running:
        if answer is not None:
            await running.enter_async_context(listening(port, answer))
        with pytest.raises(Unavailable) as given_up:
            await prepare_topics(away, patience_seconds=1.5)
    message = str(given_up.value)
    assert message.startswith(f"Kafka at 127.0.0.1:{port} (REPLAY_KAFKA) cannot be reached: ")
    assert why in message
    assert message.endswith("; gave up after 1.5 s")
    ours = [one for one in caplog.records if one.name == "replay_app.brokers"]
    assert len(ours) == 1, "said again too soon"


LOGIN = {"kafka_sasl_plain_username": "ana", "kafka_sasl_plain_password": SECRET_WORD}


@pytest.mark.parametrize(
    ("wrong", "answer", "message"),
    [
        (
            {"kafka_security_protocol": "SASL_PLAINTEXT", **LOGIN},
            None,
            r"refuses the login: .*; check REPLAY_KAFKA_SECURITY_PROTOCOL and REPLAY_KAFKA_SASL_\*",
        ),
        (
            {"kafka_security_protocol": "SSL"},
            speaking_http,
            r"cannot be used with TLS: .*; check .*_SECURITY_PROTOCOL and REPLAY_KAFKA_SSL_\*",
        ),
        ({"kafka": "localhost:port"}, None, "is not a list of HOST:PORT"),
        ({"target_kafka": "localhost:"}, None, "REPLAY_TARGET_KAFKA.* is not a list of HOST:PORT"),
    ],
    ids=["login", "tls", "port", "target"],
)
async def test_a_wrong_setting_is_refused_without_waiting(
    wrong: dict[str, str],
    answer: Answer | None,
    message: str,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"kafka": settings.kafka, "app_id": settings.app_id, **wrong}
    async with contextlib.AsyncExitStack() as running:
        if answer is not None:
            given["kafka"] = f"127.0.0.1:{(port := free_port())}"
            await running.enter_async_context(listening(port, answer))
        with pytest.raises(InvalidSettings, match=message) as refused:
            await prepare_topics(load_settings(**given))
    assert SECRET_WORD not in str(refused.value)
    assert "waiting" not in caplog.text


async def test_a_broker_that_does_not_speak_tls_is_not_told_from_one_that_starts(
    settings: Settings,
) -> None:
    tls = settings.model_copy(update={"kafka_security_protocol": "SSL"})
    with pytest.raises(Unavailable, match="does REPLAY_KAFKA_SECURITY_PROTOCOL fit"):
        await prepare_topics(tls, patience_seconds=0)


async def test_the_first_start_on_a_new_group_logs_nothing_of_other_libraries(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await prepare_topics(settings)
    theirs = [one for one in caplog.records if not one.name.startswith("replay_app")]
    assert [one.getMessage() for one in theirs if one.levelno >= logging.WARNING] == []
