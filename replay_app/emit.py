"""One slice of one shard: publish from the checkpoint's cursor until a limit is reached.

A slice ends at a number of events, bytes or seconds, when the session changes, when the worker
leaves, or when a rate, or the pace of the events, allows no more for now. The store sends the next
page while a page is encoded, and the broker takes the page before.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from replay_app import crashpoints
from replay_app.checkpoints import progress_of
from replay_app.commands import LETTERS
from replay_app.consumption import allowance as session_allowance
from replay_app.destinations import batch_limits, grown_topics
from replay_app.encoders import encode_spec, make_encoder
from replay_app.exceptions import ReplayFailed, Unavailable
from replay_app.handover import require_allowed
from replay_app.pacing import Pace, allowance, charge, due
from replay_app.pages import count_documents, event_times, people_json, split_page
from replay_app.parking import MAX_PARKED, Parking, is_full
from replay_app.publisher import PRODUCER_ERRORS, TRANSACTION_TIMEOUT_MS, BatchesRefused
from replay_app.queries import advance
from replay_app.refusals import refused_page
from replay_app.reports import MAX_SHOWN_ID, NEXT_EVENT, shorten
from replay_app.tally import Tally
from replay_app.ties import tie_begin, tie_end
from replay_app.transforms import run_in_thread
from replay_app.waits import WaitClock

if TYPE_CHECKING:
    from replay_app.budgets import ByteBudget
    from replay_app.checkpoints import Checkpoint, Token
    from replay_app.context import WorkerContext
    from replay_app.pages import EncodedPage, EncodeSpec, FailedEvent, PageEncoder
    from replay_app.parking import Parked
    from replay_app.publisher import FencedProducer
    from replay_app.readers import PageReader, Readers
    from replay_app.refusals import Refusals
    from replay_app.reports import ShardProgress
    from replay_app.sessions import Session

PAGE_WAIT_SECONDS = 0.25
"""How long a slice waits for a page before other shards of the partition may work."""
GIVE_UP_SECONDS = TRANSACTION_TIMEOUT_MS / 1000 * 2 / 3
"""How long a transaction may be open until the broker has acked all its pages. A later commit might
come after the transaction's time limit."""
FIRST_PART = 4
"""Events of a replay with transforms that are encoded together at first: these may be slow."""
PART_GROWTH = 4
"""How many times more events the next part may have."""
PART_LIMIT = 40.0
"""How long the events of a part may take. If it is more, the slice starts again, with few events at
once: a transaction must stay shorter than a minute."""
PART_SECONDS = 0.5
"""How long the events of a part should take. The slice can end between two parts."""
PACE_SECONDS = 0.05
"""Least time between two slices of a replay that keeps the pace of its events."""
NOTICED_SECONDS = 5.0
"""A longer wait for the next event has a reason."""
LAST_SECOND = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""The last due time that can be shown."""
IDLE_SECONDS = 60.0
"""A wait for the next event that is longer than this closes the reader."""
AWAITS_READER = "waiting for its turn at the store"
AWAITS_STORE = "waiting for the store's first events"


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a slice did. The partition makes the checkpoint from it."""

    progress: ShardProgress
    """The progress of the whole shard, former slices included."""
    cursor: str | None
    due_at: float
    """Seconds since 1970. A throttled shard publishes nothing before this time."""
    paced_at: float
    """Seconds since 1970: when the last event read was due at the pace of the events."""
    event_due_at: float
    """When the next event is due, if the slice has ended because it is not due yet."""
    read: int
    """Events of this slice."""
    warnings: tuple[str, ...]
    parked: Parked


class EmitSlice:
    """One slice of one shard."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a slice works with
        self,
        context: WorkerContext,
        producer: FencedProducer,
        readers: Readers,
        session: Session,
        token: Token,
        old: Checkpoint | None,
        budget: ByteBudget,
        refusals: Refusals,
    ) -> None:
        self._context = context
        self._refusals = refusals
        self._is_searching = refusals.is_searching
        """Whether the slice ends after its first page."""
        self._producer = producer
        self._readers = readers
        self._session = session
        self._on_error = session.rules.on_error
        self._token = token
        if session.plan is None or not isinstance(token.shard, int):
            msg = f"replay {session.replay_id!r} has no plan"
            raise ReplayFailed(msg)
        self._settings, _ = context.reads(session.start)
        self._shard = session.plan.shards[token.shard]
        self._source = session.plan.source
        self._planned = session.plan.partitions
        """Partition counts of the topics that the plan knows."""
        self._warnings: tuple[str, ...] = ()
        self._cursor = self._started_at = old.cursor if old else None
        self._due_at = old.due_at if old else 0.0
        start = session.start
        self._pace = None if start.speed is None else Pace(start.speed, start.max_gap_seconds)
        self._paced_at = old.paced_at if old else 0.0
        self._awaited_at = old.event_due_at if old and self._pace else 0.0
        """When the next event is due, if a slice has ended because it was not due yet."""
        self._parking = Parking(old.parked if old else {})
        self._dues: list[float] = []
        """When the events of the present page are due, at their pace."""
        self._tally = Tally(progress_of(old))
        self._clock = WaitClock(context.metrics)
        self._budget = budget
        self._sending: asyncio.Task[None] | None = None
        self._give_up_at = 0.0
        """Monotonic time. Set when the transaction begins."""
        self._events = 0
        self._bytes = 0
        self._part_events = FIRST_PART if session.start.transforms else None
        """The most events that are encoded together. None: a page."""
        self._undo: tuple[PageReader, bytes] | None = None
        """Of a slice of one page: the reader, and what it serves again after a refusal."""

    async def run(self) -> Emitted:
        """Publish, and leave the transaction open for the checkpoint.

        Raises
        ------
        ReplayFailed
            When nothing can be published.
        BatchesRefused
            When the broker refuses events. The transaction must be aborted. ``refusals`` has
            learnt from the answer, so another slice gets further.
        Exception
            One of PRODUCER_ERRORS, when the producer must be discarded.

        """
        state, error, reason = "live", None, None
        self._budget.start()
        try:
            if self._awaited_at > time.time():  # nothing can make the event due sooner
                reason = await self._await_event(self._awaited_at)
            else:
                self._awaited_at = 0.0
                state, error, reason = await self._publish_pages()
        except Unavailable as away:
            await self._readers.drop(self._token.key)
            reason = str(away)
        except ReplayFailed as failure:
            state, error = "failed", str(failure)
        except BaseException:
            await self._drop_sending()
            raise
        try:
            await self._await_acks()
        except BatchesRefused:
            self._rewind()
            raise
        if state != "live":
            await self._readers.drop(self._token.key)
        self._tally.waits += self._clock.waits
        progress = self._tally.progress(state=state, error=error, reason=reason)
        return Emitted(
            progress,
            self._cursor,
            self._due_at,
            self._paced_at,
            self._awaited_at,
            self._events,
            self._warnings,
            self._parking.behind,
        )

    async def _publish_pages(self) -> tuple[str, str | None, str | None]:
        """Publish page after page. Return the shard's state, its error, and why it waits."""
        reader: PageReader | None = None
        error: str | None = None
        encoder = await self._make_encoder()
        deadline = time.monotonic() + self._settings.slice_seconds
        while True:
            limit = self._event_limit()
            if limit == 0:
                return ("done", None, None) if self._is_at_max() else ("live", None, None)
            # Only now: a shard that may not read yet must not take another shard's reader.
            reader = reader or self._readers.take(
                self._token.key, self._session.start, self._shard, self._cursor, self._source
            )
            if reader is None:
                return "live", None, AWAITS_READER
            try:
                with self._clock.waiting("read"):
                    page = await reader.next(PAGE_WAIT_SECONDS)
            except TimeoutError:
                return "live", None, None if self._events else AWAITS_STORE
            if page is None:
                return "done", None, None
            page, rest = self._cut(page, limit, reader)
            page, early = self._cut_early(page, reader)
            rest = early + rest
            if not page:
                reader.put_back(rest)
                return "live", None, await self._await_event(self._dues[-1])
            page, more, refused = self._cut_refused(page, reader)
            rest = more + rest
            encoder, encoded = await self._encode_part(encoder, page, refused)
            reader.put_back(rest)
            self._undo = (reader, page + rest) if self._is_searching else None
            await self._await_acks()
            if self._budget.is_late:  # commit what the broker has
                reader.put_back(page + rest)
                break
            error = self._fatal_error(encoded)
            if error is not None:
                encoded = await self._without_torn_tie(page, encoded, reader)
            await self._publish(page, encoded, reader)
            self._budget.spend(len(page))
            if error is not None or self._is_over(deadline):
                break
        return "live" if error is None else "failed", error, None

    def _rewind(self) -> None:
        """Let the reader serve the refused page again: a new query would take the store longer."""
        if self._undo is not None:
            reader, page = self._undo
            reader.put_back(page)
            reader.position = self._started_at

    # Limits

    def _cut(self, page: bytes, limit: int, reader: PageReader) -> tuple[bytes, bytes]:
        """Return the part of a page that may be published now, and the rest."""
        rest = b""
        # Where events cannot tie, a page has at most page_events documents: counting takes time.
        if limit < reader.page_events or reader.may_tie:
            page, rest = split_page(page, self._whole(page, limit, reader))
        most = self._settings.slice_bytes
        if not self._session.start.dry_run:
            most = min(most, self._budget.left)
        if len(page) > most:  # keep the transaction small
            share = count_documents(page) * most // len(page)
            page, more = split_page(page, self._whole(page, max(1, share), reader))
            rest = more + rest
        return page, rest

    def _cut_early(self, page: bytes, reader: PageReader) -> tuple[bytes, bytes]:
        """Return the part of a page that is due at the pace of the events, and the rest."""
        if self._pace is None or self._shard.is_untimed:
            return page, b""
        times = event_times(page, self._settings.mapping)
        now = time.time()
        self._dues = self._pace.due_times(self._paced_at, self._tally.last_time, times, now)
        due = sum(one <= now for one in self._dues)
        return (b"", page) if due == 0 else split_page(page, self._whole(page, due, reader))

    async def _await_event(self, due: float) -> str | None:
        """Put the next slice off until its first event is due.

        Return the reason of a wait that people notice.
        """
        self._awaited_at, now = due, time.time()
        if due - now > IDLE_SECONDS:  # a store closes a cursor that nobody uses
            await self._readers.drop(self._token.key)
        self._due_at = max(self._due_at, due, now + PACE_SECONDS)
        if due - now < NOTICED_SECONDS:
            return None
        when = datetime.fromtimestamp(min(due, LAST_SECOND), UTC)
        return f"{NEXT_EVENT} {when:%Y-%m-%dT%H:%M:%SZ}, at the speed of the replay"

    def _whole(self, page: bytes, documents: int, reader: PageReader) -> int:
        """Return after how many documents a page may be cut, if no tie may be torn.

        Only the end by ``max_events`` may tear a tie: nothing is read after it.
        """
        if not reader.may_tie:
            return documents
        documents = tie_end(page, documents, self._shard.sort)
        most = self._session.start.max_events
        return documents if most is None else min(documents, most - self._tally.read)

    def _cut_refused(self, page: bytes, reader: PageReader) -> tuple[bytes, bytes, str | None]:
        """Return what `Refusals.cut` cuts, but without tearing a tie.

        Raises
        ------
        ReplayFailed
            When the broker refuses an event of a tie: no slice can end before or behind this event.

        """
        part, more, refused = self._refusals.cut(page)
        if not more or not reader.may_tie:
            return part, more, refused
        count = count_documents(part)
        whole = tie_end(page, count, self._shard.sort)
        if whole == count:
            return part, more, refused
        if self._refusals.has_found:
            msg = (
                "the broker refuses an event that has the same sort values as others, so that it "
                "cannot be left out alone: give each row of the view, or of the time series, its "
                "own _id, or correct the event; then retry"
            )
            raise ReplayFailed(msg)
        part, more = split_page(page, whole)
        return part, more, None

    def _event_limit(self) -> int:
        """Return how many events the slice may read now."""
        settings, session = self._settings, self._session
        limit = settings.slice_events - self._events
        if session.start.max_events is not None:
            limit = min(limit, session.start.max_events - self._tally.read)
        if isinstance(self._token.shard, int):
            ahead = session_allowance(self._newest(), self._token.shard, self._tally.published)
            limit = limit if ahead is None else min(limit, ahead)
        if self._part_events is not None:
            limit = min(limit, self._part_events)
        rate, now = self._shard_rate(), time.time()
        self._due_at = due(rate, self._due_at, now)
        allowed = allowance(rate, self._due_at, now)
        return max(0, limit if allowed is None else min(limit, allowed))

    def _newest(self) -> Session:
        return self._context.board.sessions.get(self._session.replay_id, self._session)

    def _shard_rate(self) -> float | None:
        """Return this shard's part of the replay's rate, in events per second."""
        session = self._newest()
        if session.rate is None:
            return None
        unfinished = sum(
            shard.progress.state != "done" and not session.awaits_count(number)
            for number, shard in enumerate(session.shards)
        )
        return session.rate / max(1, unfinished)

    def _is_at_max(self) -> bool:
        most = self._session.start.max_events
        return most is not None and self._tally.read >= most

    def _is_over(self, deadline: float) -> bool:
        """Whether the slice ends here: time, size, a changed session, or a leaving worker."""
        settings = self._settings
        newest = self._context.board.sessions.get(self._session.replay_id)
        return (
            time.monotonic() >= deadline
            or self._events >= settings.slice_events
            or self._bytes >= settings.slice_bytes
            or (self._budget.is_spent and not self._session.start.dry_run)
            or newest is None
            or newest.epoch != self._token.epoch
            or self._is_searching
            or self._context.is_leaving()
        )

    # Encoding

    async def _make_encoder(self) -> PageEncoder:
        session, settings = self._session, self._settings
        known = set(self._planned) | set(self._tally.by_topic)
        # For each slice again: a topic may have more partitions now, or another limit.
        topics = await self._context.destinations(known)
        if not session.start.dry_run:
            self._warnings = grown_topics(self._planned, topics)
        self._spec = encode_spec(
            settings,
            session,
            self._shard.sort,
            {name: one.partitions for name, one in topics.items() if one.partitions},
            batch_limits(topics, settings.max_record_bytes),
        )
        if self._on_error == "park" and not session.start.dry_run:
            self._spec = replace(self._spec, parking=self._parking)
        return make_encoder(self._spec, settings.encoder)

    async def _encode_part(
        self, encoder: PageEncoder, page: bytes, refused: str | None
    ) -> tuple[PageEncoder, EncodedPage]:
        """Encode a part that `Refusals.cut` has cut. Return the encoder of the next part, too."""
        if refused is not None:
            encoded = refused_page(page, refused, self._spec)
            if self._is_skipped(encoded.failures[-1]):
                encoded = refused_page(page, refused, self._never_stops())
            return encoder, encoded
        encoded = await self._encode(encoder, page)
        if any(failure.missing_topic for failure in encoded.failures):
            encoder, encoded = await self._encode_again(page)
        if encoded.failures and self._is_skipped(encoded.failures[-1]):
            encoded = await self._encode_past(page)
            # Perhaps a topic that nobody has asked for yet.
            if encoded.failures and encoded.failures[-1].missing_topic:
                encoder, _ = await self._encode_again(page)
                encoded = await self._encode_past(page)
        return encoder, encoded

    def _never_stops(self) -> EncodeSpec:
        """Return the spec of an encoder that passes over every failed event."""
        return replace(self._spec, stop_at_failure=False)

    def _is_skipped(self, failure: FailedEvent) -> bool:
        """Whether a retry has asked to skip the event, while other failures end the replay."""
        if (
            self._on_error != "fail"
            or self._session.start.dry_run  # passes over every failed event
            or failure.missing_topic
            or failure.event_id is None
        ):
            return False
        shown = shorten(failure.event_id, MAX_SHOWN_ID)
        names = {failure.event_id, shown, repr(shown)[1:-1]}  # the last as the error has it
        return not names.isdisjoint(self._session.skipped_events)

    async def _encode_past(self, page: bytes) -> EncodedPage:
        """Encode a page past its failed events that are skipped, up to another failed event."""
        encoder = make_encoder(self._never_stops(), self._settings.encoder)
        encoded = await self._encode(encoder, page)
        fatal = next((one for one in encoded.failures if not self._is_skipped(one)), None)
        if fatal is None:
            return encoded
        before, _ = split_page(page, fatal.index)
        encoded = await self._encode(encoder, before)
        self._require_pure(encoded)
        encoded.failures.append(fatal)
        return encoded

    def _require_pure(self, encoded: EncodedPage) -> None:
        """Raise `ReplayFailed` if an event fails that has not failed when it was encoded before."""
        for failure in encoded.failures:
            if not self._is_skipped(failure):
                msg = (
                    f"event {failure.event_id!r}: {failure.reason}; but it was good a moment "
                    "before: a transform must do the same each time; correct it, start the workers "
                    "again, then retry"
                )
                raise ReplayFailed(msg)

    async def _encode(self, encoder: PageEncoder, page: bytes) -> EncodedPage:
        """Encode a page in a thread. The loop sends the page before and reads the next page."""
        began = time.monotonic()
        with self._clock.waiting("encode"):
            transforms = self._spec.transforms
            encode = functools.partial(encoder.encode, page, _now_ms())
            try:
                encoded = await run_in_thread(transforms, encode, PART_LIMIT)
            except TimeoutError as error:
                # Once more from the checkpoint, and never so many events at once again.
                self._refusals.part_events = max(1, count_documents(page) // 16)
                raise BatchesRefused([]) from error
        if self._part_events is not None:
            wanted = self._part_events * PART_SECONDS / max(1e-9, time.monotonic() - began)
            most = min(self._part_events * PART_GROWTH, self._refusals.part_events)
            self._part_events = max(1, min(most, round(wanted)))
        return encoded

    async def _encode_again(self, page: bytes) -> tuple[PageEncoder, EncodedPage]:
        """Ask the broker for topics that the plan did not know, and encode the page again.

        If a topic does not exist, the page ends before the first event for the topic.

        Raises
        ------
        ReplayFailed
            When such a topic is a live topic, such as one that a transform names, and live topics
            are forbidden.

        """
        # An encoder that stops at the first failure names one topic only.
        settings = self._settings
        names_all = make_encoder(self._never_stops(), settings.encoder)
        encoded = await self._encode(names_all, page)
        wanted = {f.missing_topic for f in encoded.failures if f.missing_topic}
        plan, start = self._session.plan, self._session.start
        require_allowed(settings, start, wanted, plan.handover if plan else ())
        found = await self._context.destinations(wanted)
        self._tally.by_topic |= dict.fromkeys(set(found) - set(self._tally.by_topic), 0)
        encoder = await self._make_encoder()
        encoded = await self._encode(encoder, page)
        missing = next((f for f in encoded.failures if f.missing_topic), None)
        if missing is None or start.dry_run:
            return encoder, encoded
        before, _ = split_page(page, missing.index)
        encoded = await self._encode(encoder, before)
        encoded.failures.append(missing)
        return encoder, encoded

    async def _without_torn_tie(
        self, page: bytes, encoded: EncodedPage, reader: PageReader
    ) -> EncodedPage:
        """Return a page that ended before a failed event, without the events that tie with it.

        A retry reads after the cursor: it would leave out the failed event, and those tied to it.
        """
        index = encoded.failures[-1].index
        begin = tie_begin(page, index, self._shard.sort) if reader.may_tie else index
        if begin == index:
            return encoded
        before, _ = split_page(page, begin)
        encoder = make_encoder(self._never_stops(), self._settings.encoder)
        encoded = await self._encode(encoder, before)
        if self._on_error == "fail":
            self._require_pure(encoded)
        return encoded

    def _fatal_error(self, encoded: EncodedPage) -> str | None:
        """Return the error of the event that ended the page, if the error fails the replay."""
        start = self._session.start
        if not encoded.failures or start.dry_run:
            return None
        failure = encoded.failures[-1]
        event_id = failure.event_id and shorten(failure.event_id, MAX_SHOWN_ID)
        if failure.missing_topic:
            # The replay fails whatever on_error says: the event is good, and must not be left out.
            return f"event {event_id!r}: {failure.reason}; create the topic, then retry"
        if self._on_error != "fail" or self._is_skipped(failure):
            return None
        by_id = "" if event_id is None else "skip_events, or with "
        return (
            f"event {event_id!r}: {failure.reason}; correct it and retry, or go on without it: "
            f"retry with {by_id}on_error skip, dead-letter or park"
        )

    # Publishing

    async def _publish(self, page: bytes, encoded: EncodedPage, reader: PageReader) -> None:
        """Give a page's batches to the producer, and move the cursor behind the page."""
        start = self._session.start
        if encoded.parked is not None and is_full(encoded.parked):
            msg = (
                f"more than {MAX_PARKED:,} aggregates, or too long ids, would be parked behind "
                "failed events: mend what makes them fail, then retry. A retry with on_error skip "
                "or dead-letter goes on, and does not keep the later events of the parked "
                "aggregates back any more"
            )
            raise ReplayFailed(msg)
        cursor = advance(self._cursor, encoded.cursor, encoded.unplaced)
        if not start.dry_run:
            if not self._producer.in_transaction:
                await self._producer.begin()
                self._give_up_at = time.monotonic() + GIVE_UP_SECONDS
            self._sending = asyncio.create_task(self._send(page, encoded))
        reader.position = self._cursor = cursor
        if encoded.parked is not None:
            self._parking.behind = encoded.parked
        if encoded.read and self._dues:  # a tie may have more events than are due
            self._paced_at = self._dues[min(encoded.read, len(self._dues)) - 1]
        self._tally.add(encoded, dry_run=start.dry_run, on_error=self._on_error)
        self._events += encoded.read
        self._bytes += encoded.bytes
        self._due_at = charge(self._shard_rate(), self._due_at, time.time(), encoded.read)

    async def _send(self, page: bytes, encoded: EncodedPage) -> None:
        try:
            await self._producer.send_batches(encoded.batches, self._tally.offsets)
        except BatchesRefused as error:
            self._refusals.learn(page, encoded, error.refusals, self._spec)
            raise
        self._refusals.taken(encoded)
        if self._on_error in LETTERS:
            for failure in encoded.failures:
                if failure.missing_topic is None:  # else the replay fails, and keeps the event
                    await self._send_dead_letter(failure)

    async def _send_dead_letter(self, failure: FailedEvent) -> None:
        topic = self._context.topics.dead_letters
        key = shorten(failure.event_id or "", MAX_SHOWN_ID)
        value = people_json(failure.document, self._spec.redaction)
        reason = failure.reason
        if value is None:
            reason += " (the document cannot be decoded, and so not be redacted, to be kept here)"
        size = len(value or b"") + len(key.encode())
        if size > self._settings.max_record_bytes:
            value = None
            reason += " (the document is too large to be kept here: find it in the store by its id)"
        await self._producer.send(
            topic.name,
            partition=topic.partition(key),
            key=key.encode(),
            value=value,
            headers=[
                ("replay-id", self._session.replay_id.encode()),
                ("replay-error", reason.encode()),
            ],
        )

    async def _await_acks(self) -> None:
        """Await the acks of the page that is being sent.

        Raises
        ------
        TimeoutError
            When the transaction is open for too long. It is one of PRODUCER_ERRORS.

        """
        if self._sending is None:
            return
        sending, self._sending = self._sending, None
        began = time.monotonic()
        try:
            with self._clock.waiting("send"):
                await asyncio.wait_for(sending, self._give_up_at - began)
        except TimeoutError as error:
            if time.monotonic() < self._give_up_at:  # the producer's own limit
                raise
            msg = f"the broker has not acked {self._bytes:,} bytes within {GIVE_UP_SECONDS:.0f} s"
            raise TimeoutError(msg) from error
        finally:
            self._budget.wait(time.monotonic() - began)
        crashpoints.reach("after-acks")

    async def _drop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, BatchesRefused, *PRODUCER_ERRORS):
                await self._sending


def _now_ms() -> int:
    """Return the time in milliseconds since 1970, as in Kafka's record timestamps."""
    return time.time_ns() // 1_000_000
