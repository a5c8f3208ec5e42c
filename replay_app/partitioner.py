"""Kafka's default partitioner: the partition of a key."""

from __future__ import annotations

from aiokafka.partitioner import murmur2

MAX_CACHED_HASHES = 100_000
"""Keys whose hashes are kept. Keys repeat, and aiokafka's murmur2 is written in Python."""

_hashes: dict[bytes, int] = {}


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner (Java's, murmur2) gives to a key."""
    found = _hashes.get(key)
    if found is None:
        found = int(murmur2(key) & 0x7FFFFFFF)
        if len(_hashes) >= MAX_CACHED_HASHES:
            _hashes.clear()
        _hashes[key] = found
    return found % partitions
