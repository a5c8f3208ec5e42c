"""Random sequences of commands, reports, crashes and losses, with an honest worker.

`World` keeps what Kafka keeps: logs of commands, reports and tokens, which are read at least once,
and checkpoints, which are written with the events. Its worker decides by `judge` and sees a session
late, as a real worker does.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, event, example, given, settings

from replay_app.checkpoints import Checkpoint, Origin, Token, Verdict, judge
from replay_app.commands import Cancel, Command, Pause, Resume, Retry, Start, StepOn
from replay_app.consumption import allowance
from replay_app.delays import MAX_REQUEUES
from replay_app.exceptions import CommandConflict
from replay_app.reports import Counters, Plan, Report, ShardPlan, ShardProgress
from replay_app.sessions import Session
from replay_app.states import SETTLED, TERMINAL
from replay_app.transitions import on_command, on_nudge, on_report

REPLAY = "r"
STALL = timedelta(seconds=30)
RETENTION = timedelta(days=3650)
T0 = datetime(2026, 1, 1, tzinfo=UTC)
Counted = Literal["before", "running"]
QUIET = frozenset({"paused", "cancelled", "completed", "completed_with_errors"})
"""States in which nothing may be published."""


class World:
    """One replay, its logs, and the worker that serves it."""

    def __init__(
        self, events: list[int], *, control_records: bool, counted: Counted = "before"
    ) -> None:
        self.now = T0
        self.events = events
        """The number of events of each shard."""
        self.counted = counted
        self.published = [0] * len(events)
        self.announced: list[str] = []
        self.session: Session | None = None
        self.history: list[Session] = []
        self.commands: list[Command] = [Start(replay_id=REPLAY, control_records=control_records)]
        self.reports: list[Report] = []
        self.tokens: dict[str, list[tuple[Origin, Token]]] = {}
        self.read: dict[str, int] = {"commands": 0, "reports": 0}
        """How far each log, or the tokens of each key, are read."""
        self.seen: dict[str, int] = {}
        """For each token key, the index in the history of the session that the worker sees."""
        self.checkpoints: dict[str, Checkpoint] = {}
        self.offsets = 0

    # The sessions agent

    def take_command(self, *, crash: bool = False) -> None:
        if self.read["commands"] < len(self.commands):
            command = self.commands[self.read["commands"]]
            try:
                step = on_command(self.session, command, self.now)
            except CommandConflict:
                self.read["commands"] += 1
                return
            self._store("commands", step, crash=crash)

    def take_report(self, *, crash: bool = False) -> None:
        if self.read["reports"] < len(self.reports):
            report = self.reports[self.read["reports"]]
            if report.kind == "nudge":
                step = on_nudge(self.session, self.now, STALL, RETENTION)
            else:
                step = on_report(self.session, report, self.now)
            self._store("reports", step, crash=crash)

    def ask(self, command: type[Pause | Resume | Cancel | Retry]) -> None:
        self.commands.append(command(replay_id=REPLAY))

    def step(self, events: int, behind: int) -> None:
        """Ask for a step, as a client that has seen ``behind`` events less."""
        seen = self.session.counters.published if self.session else 0
        published = max(0, seen - behind)
        self.commands.append(StepOn(replay_id=REPLAY, events=events, published=published))

    def nudge(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        self.reports.append(Report(replay_id=REPLAY, kind="nudge"))

    def _store(self, log: str, step: Any, *, crash: bool) -> None:
        """Send the tokens, then publish the session; a crash in between loses the session."""
        for token in step.tokens:
            self._send(token)
        if crash:
            return
        self.read[log] += 1
        if step.changed:
            self._check(self.session, step.session)
            self.session = step.session
            self.history.append(step.session)

    def _check(self, before: Session | None, now: Session) -> None:
        if before is None:
            return
        assert before.state not in TERMINAL, f"{before.state} became {now.state}"
        assert now.epoch >= before.epoch
        assert now.attempt >= before.attempt
        for name in Counters.model_fields:
            assert getattr(now.counters, name) >= getattr(before.counters, name)

    # The worker

    def _send(self, token: Token, origin: Origin | None = None) -> None:
        self.offsets += 1
        where = origin or Origin(0, self.offsets)
        self.tokens.setdefault(token.key, []).append((where, token))

    def _put_back(self, token: Token, origin: Origin) -> None:
        if token.requeues < MAX_REQUEUES:
            self._send(token.model_copy(update={"requeues": token.requeues + 1}), origin)

    def lose_token(self, key: str) -> None:
        if self._waiting(key):
            self.read[key] = self.read.get(key, 0) + 1

    def redeliver(self, log: str, records: int) -> None:
        self.read[log] = max(0, self.read.get(log, 0) - records)

    def see(self, key: str, sessions: int) -> None:
        """Let the worker of a shard see the next sessions."""
        if self.history:
            self.seen[key] = min(self.seen.get(key, 0) + sessions, len(self.history) - 1)

    def _waiting(self, key: str) -> bool:
        return self.read.get(key, 0) < len(self.tokens.get(key, []))

    def work(self, key: str, most: int, *, crash: str = "", fail: bool = False) -> None:
        """Run one token."""
        if not self._waiting(key) or not self.history:
            return
        origin, token = self.tokens[key][self.read.get(key, 0)]
        old = self.checkpoints.get(key)
        verdict = judge(token, origin, old)
        if verdict is Verdict.RUN:
            session = self.history[self.seen.get(key, 0)]
            if not session.has_sent(token):  # the session is not published yet, or was lost
                self._put_back(token, origin)
                self.read[key] = self.read.get(key, 0) + 1
                return
            if session.wants(token):
                if crash == "before the commit":
                    return
                self.checkpoints[key] = self._slice(session, token, origin, old, most, fail=fail)
                if crash == "after the commit":
                    return
                verdict = Verdict.RESEND
        if verdict is Verdict.RESEND:
            checkpoint = self.checkpoints[key]
            self.reports.append(checkpoint.report)
            if crash == "after the report":
                return
            if checkpoint.continuation is not None:
                self._send(checkpoint.continuation)
        self.read[key] = self.read.get(key, 0) + 1

    def _slice(
        self,
        session: Session,
        token: Token,
        origin: Origin,
        old: Checkpoint | None,
        most: int,
        *,
        fail: bool,
    ) -> Checkpoint:
        report: dict[str, Any] = {
            "replay_id": REPLAY,
            "kind": token.kind if isinstance(token.shard, str) else "shard",
            "epoch": token.epoch,
            "slice": token.slice,
            "shard": token.shard,
        }
        if isinstance(token.shard, int):
            progress = (old and old.report.progress) or ShardProgress()
            if token.kind == "stop":
                state = "done" if progress.state == "done" else "stopped"
                progress = progress.model_copy(update={"state": state})
            else:
                left = allowance(session, token.shard, progress.counters.published)
                most = most if left is None else min(most, left)
                progress = self._emit(token.shard, progress, most, fail=fail)
            report["progress"] = progress
        elif fail:
            report |= {"state": "failed", "error": "told to"}
        elif token.kind == "plan":
            shards = [ShardPlan(match={}, sort=("timestamp", "_id")) for _ in self.events]
            made = Plan(end=T0, matched=None, counted=self.counted, shards=tuple(shards))
            report |= {"state": "done", "plan": made}
        elif token.kind == "count":
            total = sum(self.events)
            report |= {"state": "done", "plan": Plan(end=T0, matched=total, counted="beside")}
        else:
            report["state"] = "done"
            if session.start.control_records:
                self.announced.append("begin" if token.kind == "gate" else token.outcome)
        return Checkpoint(token=token, src=origin, report=Report(**report))

    def _emit(self, shard: int, progress: ShardProgress, most: int, *, fail: bool) -> ShardProgress:
        read = progress.counters.read
        more = min(most, self.events[shard] - read)
        assert read == self.published[shard]  # the checkpoint is written with the events
        if more:
            assert self.session is not None
            assert self.session.state not in QUIET, f"published while {self.session.state}"
            # A replay in global order has one shard that publishes.
            if self.session.step_to is not None and len(self.events) == 1:
                assert read + more <= self.session.step_to, "published more than the step"
        self.published[shard] += more
        read += more
        done = read == self.events[shard]
        return ShardProgress(
            state="failed" if fail else "done" if done else "live",
            counters=Counters(read=read, published=read),
            error="told to" if fail else None,
        )

    # To the end

    def go_on(self, *, sessions: int, most: int) -> None:
        """Deliver the next record of each log."""
        self.take_command()
        self.take_report()
        for key in list(self.tokens):
            self.see(key, sessions)
            self.work(key, most)

    def drain(self) -> None:
        """Deliver everything; send a nudge when nothing is left to deliver."""
        for _ in range(500):
            self.now += timedelta(seconds=1)
            self.go_on(sessions=len(self.history), most=2)
            pending = self.read["commands"] < len(self.commands) or any(
                map(self._waiting, self.tokens)
            )
            if pending or self.read["reports"] < len(self.reports):
                continue
            if self.session is not None and self.session.state in SETTLED:
                return
            self.nudge(300)
        assert self.session is not None
        raise AssertionError(f"never settles: {self.session.state}, {self.session.shards}")


KEYS = ["r/plan", "r/count", "r/gate", "r/finish", "r/0", "r/1", "r/2"]
CRASHES = ["", "", "", "before the commit", "after the commit", "after the report"]


def action(name: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(st.just(name), st.fixed_dictionaries(arguments))


ACTIONS = st.one_of(
    action("ask", command=st.sampled_from([Pause, Resume, Cancel, Retry])),
    action("step", events=st.integers(1, 3), behind=st.sampled_from([0, 0, 0, 1])),
    action("take_command", crash=st.booleans()),
    action("take_report", crash=st.booleans()),
    action(
        "work",
        key=st.sampled_from(KEYS),
        most=st.integers(0, 2),
        crash=st.sampled_from(CRASHES),
        fail=st.sampled_from([False, False, False, True]),
    ),
    action("see", key=st.sampled_from(KEYS), sessions=st.integers(1, 3)),
    action("lose_token", key=st.sampled_from(KEYS)),
    action(
        "redeliver", log=st.sampled_from(["commands", "reports", *KEYS]), records=st.integers(1, 3)
    ),
    action("nudge", seconds=st.sampled_from([0, 40, 300])),
    action("go_on", sessions=st.just(2), most=st.just(1)),
)


@example(
    events=[0],
    control_records=True,
    counted="before",
    actions=[
        ("ask", {"command": Resume}),
        ("ask", {"command": Resume}),
        ("ask", {"command": Pause}),
        ("go_on", {"sessions": 2, "most": 1}),
        ("go_on", {"sessions": 2, "most": 1}),
        ("go_on", {"sessions": 2, "most": 1}),
        ("take_command", {"crash": True}),
        ("take_report", {"crash": False}),
    ],
)
@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    events=st.lists(st.integers(0, 6), max_size=3),
    control_records=st.booleans(),
    counted=st.sampled_from(["before", "running"]),
    actions=st.lists(ACTIONS, max_size=60),
)
def test_whatever_happens_it_settles_and_publishes_each_event_once(
    events: list[int],
    control_records: bool,
    counted: Counted,
    actions: list[tuple[str, Any]],
) -> None:
    world = World(events, control_records=control_records, counted=counted)
    for name, arguments in actions:
        world.now += timedelta(seconds=1)
        getattr(world, name)(**arguments)
    world.drain()
    assert world.session is not None
    for state, command in (("paused", Resume), ("failed", Retry)):
        if world.session.state == state:
            world.ask(command)
            world.drain()
    event(world.session.state)
    assert world.session.state in {"completed", "cancelled"}
    if world.session.state == "completed":
        assert world.session.matched in {None, sum(world.events)}
        assert counted == "before" or world.session.matched is not None
    assert world.session.counters.published == sum(world.published)
    assert not ("end" in world.announced and "cancelled" in world.announced)
    if world.session.state == "completed":
        assert world.published == events
        assert ("end" in world.announced) == control_records
    elif "begin" in world.announced:
        assert "cancelled" in world.announced


@pytest.mark.parametrize(("command", "state"), [(Pause, "paused"), (Cancel, "cancelled")])
def test_a_stop_ends_a_chain_of_the_same_epoch_that_a_crash_has_left(
    command: type[Pause | Cancel], state: str
) -> None:
    world = World([50], control_records=False)
    while world.published == [0]:
        world.go_on(sessions=9, most=1)
    while world.read["reports"] < len(world.reports):
        world.take_report()
    world.nudge(40)
    world.take_report(
        crash=True
    )  # an emit chain of the next epoch is sent, and the session is lost
    world.ask(command)
    world.take_command()  # the pause or cancel gets the same epoch
    world.drain()
    assert world.session is not None
    assert world.session.state == state
    assert world.published[0] < 10


def test_a_crash_after_a_late_gate_does_not_publish_while_paused() -> None:
    world = World([4], control_records=True)
    world.take_command()
    world.work("r/plan", 1)
    world.take_report()  # waiting, epoch 1
    world.see("r/gate", 9)
    world.work("r/gate", 1)  # the gate has passed; its report waits in the log
    late = world.reports.pop()
    world.nudge(60)
    world.take_report()  # no worker was heard: epoch 2
    world.reports.append(late)
    world.take_report(crash=True)  # the emit tokens of epoch 3 are sent, the session is lost
    world.ask(Pause)
    world.take_command()
    assert world.session is not None
    assert world.session.state == "paused"
    world.see("r/0", 9)
    assert [token.kind for _, token in world.tokens["r/0"]][:1] == ["emit"]
    for _ in range(4):
        world.work("r/0", 1)
    assert not world._waiting("r/0")
    assert world.published == [0]
