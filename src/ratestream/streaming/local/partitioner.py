"""Which partition a key belongs to: the same one as for every other Kafka client.

The hash is MurmurHash2 (32 bits, seed 0x9747b28c) as in Kafka's
`org.apache.kafka.common.utils.Utils.murmur2`; the partition is `toPositive(hash) % partitions`
as in its `BuiltInPartitioner.partitionForKey`. librdkafka calls it `murmur2_random`.
"""

from __future__ import annotations

from functools import lru_cache

_SEED = 0x9747B28C
_MULTIPLIER = 0x5BD1E995
_MASK = 0xFFFFFFFF
_CACHED_KEYS = 16_384
_CACHED_KEY_BYTES = 128


def partition_for(key: bytes, partitions: int) -> int:
    """The partition, from 0 to `partitions` - 1, of a record with this key."""
    hashed = _cached_murmur2(key) if len(key) <= _CACHED_KEY_BYTES else _murmur2(key)
    return (hashed & 0x7FFFFFFF) % partitions


def _murmur2(key: bytes) -> int:
    mixed = _SEED ^ len(key)
    whole = len(key) & ~3
    for start in range(0, whole, 4):
        word = int.from_bytes(key[start : start + 4], "little") * _MULTIPLIER & _MASK
        word = (word ^ word >> 24) * _MULTIPLIER & _MASK
        mixed = mixed * _MULTIPLIER & _MASK ^ word
    if whole < len(key):
        mixed = (mixed ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _MASK
    mixed = (mixed ^ mixed >> 13) * _MULTIPLIER & _MASK
    return mixed ^ mixed >> 15


_cached_murmur2 = lru_cache(maxsize=_CACHED_KEYS)(_murmur2)
