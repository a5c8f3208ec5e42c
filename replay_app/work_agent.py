"""The work agent: what a worker does with a token of ``replay.work`` (docs/protocol.md, "A slice").

Faust delivers a token at least once. Exactly once comes from Kafka: each owned partition of
``replay.work`` has one fenced transactional producer, and a slice publishes its events and its
checkpoint in one transaction. The steps of a slice:

1. compare the token with the checkpoint; 2. begin; 3. publish from the checkpoint's cursor;
4. write the checkpoint; 5. commit; 6. send the report and await its ack; 7. send the continuation
and await its ack; 8. let the Faust event end, which acks the token.

A crash before step 5 leaves nothing behind. After a crash behind step 5, steps 6 and 7 are done
again: by the redelivered token, or by the worker that opens the partition next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from replay_app.broker_errors import explain
from replay_app.checkpoints import Origin, decode_token
from replay_app.faults import Faults
from replay_app.publisher import PRODUCER_ERRORS, REOPEN_SECONDS
from replay_app.work_partition import WorkPartition

if TYPE_CHECKING:
    from replay_app.checkpoints import Token
    from replay_app.context import WorkerContext
    from replay_app.sessions import Session

logger = logging.getLogger(__name__)

OPEN_WAIT_SECONDS = 20.0
"""How long a token waits for its partition to open, before the token is requeued. A longer wait
would hold up rebalances and the end of the worker."""


class WorkPartitions:
    """All partitions of ``replay.work`` that this worker owns now."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._owned: dict[int, WorkPartition] = {}
        self._faults: dict[int, Faults] = {}
        """By partition: they outlive a partition that is opened again."""
        context.board.on_session(self._on_session)
        context.unreadable = self.unreadable
        context.metrics.show_unreadable(lambda: sum(map(len, self.unreadable().values())))

    def _on_session(self, session: Session) -> None:
        if session.state != "running" or session.finishing:
            self._context.watch.forget(session.replay_id)
        for owned in self._owned.values():
            owned.on_session(session)

    def count(self) -> int:
        """Return the number of owned partitions."""
        return len(self._owned)

    def unreadable(self) -> dict[int, tuple[str, ...]]:
        """Return the keys of unreadable checkpoints by owned partition, where there are any."""
        return {
            number: tuple(owned.checkpoints.unreadable)
            for number, owned in self._owned.items()
            if owned.checkpoints.unreadable
        }

    async def assign(self, partitions: Iterable[int]) -> None:
        """Own exactly these partitions from now on. They open in the background.

        A partition that the worker keeps is opened again: another worker may have owned the
        partition in between.
        """
        await self.revoke()
        for partition in partitions:
            self._open(partition)

    async def revoke(self) -> None:
        """Close every partition."""
        self._context.watch.forget()
        owned, self._owned = self._owned, {}
        await asyncio.gather(*(partition.close() for partition in owned.values()))

    def _open(self, partition: int, delay_seconds: float = 0.0) -> WorkPartition:
        own = [topic.name for topic in self._context.topics.all()]
        faults = self._faults.setdefault(partition, Faults(own))
        opening = self._owned[partition] = WorkPartition(self._context, partition, faults)
        opening.open(delay_seconds)
        return opening

    async def handle(self, partition: int, offset: int, value: bytes | None) -> None:
        """Do what one record of ``replay.work`` asks for. The record may be acked afterwards."""
        token = decode_token(value)
        if token is None:
            topic = self._context.topics.work.name
            self._context.ignored.add(topic, partition, offset, "not a token")
            return
        if token.kind == "noop":
            return
        origin = token.origin or Origin(partition, offset)
        # A record may come before Faust's listener has assigned the partition.
        owned = self._owned.get(partition) or self._open(partition)
        try:
            if not await owned.is_open_within(OPEN_WAIT_SECONDS):
                await owned.requeue(token, origin, token.requeues)
                return
            await owned.run(token, origin)
        except (asyncio.CancelledError, *PRODUCER_ERRORS) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            logger.warning("partition %d gives a token back: %s", partition, explain(error))
            if not await owned.give_up(token, origin):
                await self._note(owned, token, error)
                self._context.metrics.requeued_tokens.inc()
                await owned.requeue(token, origin)
            if self._owned.get(partition) is owned:
                self._open(partition, delay_seconds=REOPEN_SECONDS)
            await owned.close()

    async def _note(self, owned: WorkPartition, token: Token, error: BaseException) -> None:
        session = self._context.board.sessions.get(token.replay_id)
        if session is None or isinstance(error, asyncio.CancelledError):
            return
        owned.faults.note(token, session.attempt, error, time.monotonic())
        why = owned.faults.error(token, session.attempt)
        # A stop is tried as long as the worker lives: the pause, or the cancel, says why it waits.
        if token.kind == "stop" and why is not None and session.wants(token):
            await owned.tell(session, f"shard {token.shard} cannot be stopped, trying again: {why}")
