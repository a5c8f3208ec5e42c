"""The file of tokens: what it may hold, how it changes, and what a caller may do."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from secret_values import MARK

from replay_app.commands import Pause, Start
from replay_app.exceptions import InvalidSettings
from replay_app.logs import Writer
from replay_app.settings import Settings
from replay_app.tokens import LOOK_SECONDS, MAX_FILE_BYTES, MAX_TOKENS, Caller, Tokens

ANA, WALL, EVA = (f"{MARK}-token-of-{name}" for name in ("ana", "wall", "eva"))
REBUILD = Caller("ana", "operate", ("rebuild.", "test-"))


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entry(name: str, token: str, role: str = "operate", **more: Any) -> dict[str, Any]:
    return {"name": name, "token": token, "role": role, **more}


def body(*tokens: dict[str, Any]) -> str:
    return json.dumps({"tokens": tokens})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with the tokens of ana and of the wall."""
    path = tmp_path / "tokens.json"
    ana = entry("ana", ANA, target_prefixes=["rebuild.", "test-"])
    path.write_text(body(ana, entry("wall", WALL, "read")))
    return path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(file: Path, clock: Clock) -> Tokens:
    return Tokens(Settings(tokens_file=file), clock)


def refusal(path: Path, text: str | bytes, **settings: Any) -> str:
    """Return why a worker does not start with such a file."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InvalidSettings) as refused:
        Tokens(Settings(tokens_file=path, **settings))
    message = str(refused.value)
    assert message.startswith(f"REPLAY_TOKENS_FILE={path}: ")
    return message.removeprefix(f"REPLAY_TOKENS_FILE={path}: ")


def test_each_token_tells_its_caller(tokens: Tokens) -> None:
    assert tokens.find(ANA) == REBUILD
    assert tokens.find(WALL) == Caller("wall", "read")
    for unknown in ("", ANA[:-1], f"{ANA}x", "\udce4"):
        assert tokens.find(unknown) is None
    assert tokens.trouble() is None


def test_the_token_of_the_settings_works_beside_the_file(file: Path) -> None:
    tokens = Tokens(Settings(tokens_file=file, api_token=EVA))
    assert tokens.find(EVA) == Caller()
    assert tokens.find(ANA) == REBUILD


def test_without_tokens_none_is_required_and_none_is_known() -> None:
    assert not Tokens(Settings()).are_required
    assert Tokens(Settings()).find("") is None
    assert Tokens(Settings(api_token=EVA)).are_required


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON: Expecting value: line 1 column 1"),
        (b"\xff", "is not UTF-8"),
        ("[", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
        ("[]", "the file: Input should be an object"),
        ("{}", "tokens: missing"),
        ('{"tokens": []}', "tokens: Tuple should have at least 1 item"),
        ('{"tokens": {}}', "tokens: Input should be a valid array"),
        ('{"tokens": [], "tokens": []}', "an object has a member twice"),
        (f'{{"tokens": [{{"{ANA}": 1}}]}}', "tokens.0.(a member): unknown field"),
        (f'{{"{ANA}": []}}', "(a member): unknown field"),
        (body({"name": "ana", "role": "read"}), "tokens.0.token: missing"),
        (body(entry("ana", ANA, "admin")), "tokens.0.role: Input should be 'read' or 'operate'"),
        (body(entry("", ANA)), "tokens.0.name: String should have at least 1 character"),
        (body(entry("a\n", ANA)), "tokens.0.name: has a control character"),
        (body(entry("a" * 101, ANA)), "tokens.0.name: String should have at most 100"),
        (body(entry("ana", MARK)), "tokens.0.token: has fewer than 16 characters"),
        (body(entry("ana", f"{ANA}\n")), "tokens.0.token: has a line break or another control"),
        (body(entry("ana", f"{ANA} ")), "tokens.0.token: has a space at its beginning or end"),
        (body(entry("ana", f"{ANA}\ud800")), "tokens.0.token: has half of a surrogate pair"),
        (body(entry("ana", 5)), "tokens.0.token: "),  # type: ignore[arg-type]
        (body(entry("ana", ANA, target_prefixes=[])), "tokens.0.target_prefixes: Tuple should"),
        (body(entry("ana", ANA, target_prefixes=["a/"])), "tokens.0.target_prefixes.0: String"),
        (body(entry("ana", ANA, "read", target_prefixes=["a"])), "tokens.0: target_prefixes limit"),
        (body(entry("ana", ANA), entry("ana", EVA)), "tokens.1: another token has the same name"),
        (body(entry("ana", ANA), entry("eva", ANA)), "tokens.1: this token has another name"),
        (body(*(entry(f"t{n}", f"{ANA}{n}") for n in range(MAX_TOKENS + 1))), "tokens: Tuple sho"),
        (b" " * (MAX_FILE_BYTES + 1), "has more than 1,048,576 bytes"),
    ],
)
def test_a_wrong_file_is_refused_in_words_that_show_nothing_of_it(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    said = refusal(tmp_path / "tokens.json", text)
    assert message in said
    assert MARK not in said


def test_a_token_with_two_owners_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path / "tokens.json", body(entry("ana", ANA)), api_token=ANA)
    assert "or is REPLAY_API_TOKEN" in said


def test_a_file_that_is_not_there_or_none_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, why in (("missing", "No such file"), (".", "is not a file"), ("pipe", "not a file")):
        with pytest.raises(InvalidSettings, match=why):
            Tokens(Settings(tokens_file=tmp_path / name))


# Changes


def rewrite(file: Path, text: str) -> None:
    file.write_text(text)


def replace(file: Path, text: str) -> None:
    """Put another file in the place, as editors do."""
    other = file.with_suffix(".new")
    other.write_text(text)
    other.replace(file)


@pytest.mark.parametrize("change", [rewrite, replace])
def test_a_changed_file_is_in_force_at_the_next_look(
    file: Path, clock: Clock, tokens: Tokens, change: Callable[[Path, str], None]
) -> None:
    change(file, body(entry("eva", EVA)))
    clock.now += LOOK_SECONDS / 2
    assert tokens.find(EVA) is None  # nobody has looked yet
    clock.now += LOOK_SECONDS / 2
    assert tokens.find(EVA) == Caller("eva")
    assert tokens.find(ANA) is None


def test_a_secret_that_kubernetes_swaps_is_read_again(tmp_path: Path, clock: Clock) -> None:
    for number, (name, token) in enumerate((("ana", ANA), ("eva", EVA))):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "tokens.json").write_text(body(entry(name, token)))
    data, file = tmp_path / "..data", tmp_path / "tokens.json"
    data.symlink_to("..0")
    file.symlink_to("..data/tokens.json")
    tokens = Tokens(Settings(tokens_file=file), clock)
    assert tokens.find(ANA) == Caller("ana")
    (tmp_path / "..new").symlink_to("..1")
    (tmp_path / "..new").replace(data)
    clock.now += LOOK_SECONDS
    assert tokens.find(ANA) is None
    assert tokens.find(EVA) == Caller("eva")


def test_a_broken_file_leaves_the_tokens_as_they_are_and_is_told_once(
    file: Path, clock: Clock, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file.write_text(body(entry("ana", ANA))[:-5])
    for _ in range(3):
        clock.now += LOOK_SECONDS
        assert tokens.find(ANA) == REBUILD
        assert "is not JSON" in (tokens.trouble() or "")
    file.unlink()
    for _ in range(3):
        clock.now += LOOK_SECONDS
        assert tokens.find(WALL) == Caller("wall", "read")
        assert "cannot be read: No such file" in (tokens.trouble() or "")
    file.write_text(body(entry("eva", EVA)))
    clock.now += LOOK_SECONDS
    assert tokens.trouble() is None
    assert tokens.find(EVA) == Caller("eva")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    assert "the tokens before stay in force" in said[0]
    assert said[2] == f"the tokens of {file} are read again: 1 are in force"
    assert MARK not in str(said)


def test_the_log_hides_the_tokens_of_the_file_old_and_new(
    file: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [writer])
    tokens = Tokens(Settings(tokens_file=file), clock)
    file.write_text(body(entry("eva", EVA)))
    clock.now += LOOK_SECONDS
    assert tokens.find(EVA)
    line = writer.format(logging.makeLogRecord({"msg": f"{ANA} {WALL} {EVA} other"}))
    assert line == "*** *** *** other"


# What a caller may do


def start(**members: Any) -> Start:
    return Start.model_validate({"replay_id": "r", "filter": {"all": True}, **members})


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"target": {"prefix": "rebuild."}}, None),
        ({"target": {"prefix": "rebuild.more."}}, None),
        ({"target": {"topic": "test-orders"}}, None),
        ({"target": {"topic": "test-orders", "topics": {"a": "rebuild.a"}}}, None),
        ({"dry_run": True, "target": {"topic": "orders"}, "transforms": ["any"]}, None),
        ({}, "original topics"),
        ({"to_original": True}, "original topics"),
        ({"target": {"topics": {"a": "rebuild.a"}}}, "original topics"),
        (
            {"target": {"topics": {"a": "rebuild.a"}}, "filter": {"event_types": ["a"]}},
            "original topics",
        ),
        ({"target": {"prefix": "rebuild"}}, "names 'rebuild'"),
        ({"target": {"prefix": "a.rebuild."}}, "names 'a.rebuild.'"),
        ({"target": {"prefix": "rebuild.", "topics": {"a": "orders"}}}, "names 'orders'"),
        ({"target": {"topic": "test-orders", "topics": {"a": "orders"}}}, "names 'orders'"),
        ({"target": {"prefix": "rebuild."}, "transforms": ["any"]}, "leave the transforms out"),
    ],
)
def test_a_caller_with_prefixes_starts_only_what_surely_stays_within(
    members: dict[str, Any], fault: str | None
) -> None:
    found = REBUILD.fault_of(start(**members))
    assert found is None if fault is None else fault in (found or "")
    assert Caller("eva").fault_of(start(**members)) is None


def test_the_name_of_the_token_replaces_who_requests() -> None:
    told = start(requested_by="somebody")
    assert REBUILD.sign(told).requested_by == "ana"
    assert Caller().sign(told).requested_by == "somebody"
    # The name is sent, too, though the body had none.
    pause = REBUILD.sign(Pause(replay_id="r"))
    assert pause.model_dump(exclude_unset=True) == {"replay_id": "r", "requested_by": "ana"}
    assert REBUILD.sign(told).canonical() == REBUILD.sign(start(requested_by="b")).canonical()
