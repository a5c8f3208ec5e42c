"""Records of the internal topics that are passed over: counted, and logged without flooding."""

from __future__ import annotations

import logging
from collections import Counter

from replay_app.logs import RateLimit

logger = logging.getLogger(__name__)
logger.addFilter(RateLimit())  # a stranger may write thousands

MAX_REASON = 300
"""Characters of a logged reason."""


class IgnoredRecords:
    """The records that one worker has passed over."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """By topic."""

    def add(self, topic: str, partition: int, offset: int, why: object) -> None:
        """Count and log a record that is passed over."""
        self.counts[topic] += 1
        reason = " ".join(str(why).split())[:MAX_REASON]
        logger.error("%s %d:%d is ignored: %s", topic, partition, offset, reason)
