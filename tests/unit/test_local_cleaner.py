"""Retention and compaction of the local broker."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace

import pytest

from ratestream.streaming.errors import BrokerError
from ratestream.streaming.local import LocalBroker, LocalBrokerConfig
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
    TopicSpec,
    Watermarks,
)
from tests.support.brokers import read, send

TOPIC = "quotes"
ONE = TopicPartition(TOPIC, 0)
HOUR_MS = 3_600_000
EAGER = LocalBrokerConfig(batch_bytes=2_000, compaction_min_bytes=0, maintenance_bytes=20_000)


def now() -> int:
    return time.time_ns() // 1_000_000


def write(broker: LocalBroker, *records: tuple[str, str | None], age_ms: int = 0) -> None:
    timestamp = now() - age_ms
    send(
        broker,
        *(
            OutgoingRecord(
                TOPIC, key.encode(), None if text is None else text.encode(), 0, timestamp
            )
            for key, text in records
        ),
    )


def contents(broker: LocalBroker) -> list[Record]:
    with closing(broker.consumer(ConsumerConfig(offset_reset="error"))) as consumer:
        low, high = consumer.watermarks(ONE)
        consumer.assign({ONE: low})
        records = []
        while consumer.position(ONE) != high:
            records += consumer.poll(1000, timeout=0)
        return records


def watermarks(broker: LocalBroker) -> Watermarks:
    with closing(broker.consumer(ConsumerConfig())) as consumer:
        return consumer.watermarks(ONE)


def clean(broker: LocalBroker) -> None:
    while broker.run_maintenance():
        pass


def test_what_is_older_than_the_retention_goes_and_the_low_watermark_rises():
    with closing(LocalBroker(None)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, retention_ms=HOUR_MS)])
        write(broker, ("a", "1"), ("b", "2"), age_ms=2 * HOUR_MS)
        write(broker, ("c", "3"))
        write(broker, ("d", "4"), age_ms=2 * HOUR_MS)  # behind a younger one: stays
        clean(broker)
        assert [record.key for record in contents(broker)] == [b"c", b"d"]
        assert watermarks(broker) == (2, 4)


def test_a_retention_of_minus_one_keeps_for_ever():
    with closing(LocalBroker(None)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, retention_ms=-1)])
        write(broker, ("a", "1"), age_ms=10_000 * HOUR_MS)
        clean(broker)
        assert watermarks(broker) == (0, 1)


def test_an_emptied_log_goes_on_where_it_was_after_a_restart(tmp_path):
    path = tmp_path / "log.sqlite"
    with closing(LocalBroker(path)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, retention_ms=HOUR_MS)])
        write(broker, ("a", "1"), ("b", "2"), age_ms=2 * HOUR_MS)
        clean(broker)
        assert watermarks(broker) == (2, 2)
    with closing(LocalBroker(path)) as broker:
        assert watermarks(broker) == (2, 2)
        write(broker, ("c", "3"))
        assert [record.offset for record in contents(broker)] == [2]


def test_a_reader_behind_the_low_watermark_is_set_to_it():
    with closing(LocalBroker(None)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, retention_ms=HOUR_MS)])
        write(broker, ("a", "1"), age_ms=2 * HOUR_MS)
        write(broker, ("b", "2"))
        consumer = broker.consumer(ConsumerConfig())
        consumer.assign({ONE: 0})
        clean(broker)
        assert [record.key for record in read(consumer, 1)] == [b"b"]


def test_a_topic_keeps_to_its_bytes_and_the_file_does_not_grow(tmp_path):
    path = tmp_path / "log.sqlite"
    config = LocalBrokerConfig(retention_bytes=400_000, batch_bytes=20_000)
    with closing(LocalBroker(path, config)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 2)])
        producer = broker.producer(ProducerConfig())
        for _ in range(60):
            producer.send([OutgoingRecord(TOPIC, b"%d" % n, b"x" * 900) for n in range(100)])
            producer.flush()
            clean(broker)
        kept = len(contents(broker)) * 900
    assert 100_000 < kept < 400_000
    assert path.stat().st_size < 1_000_000


def test_a_file_that_was_large_shrinks(tmp_path):
    path = tmp_path / "log.sqlite"
    with closing(LocalBroker(path)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, retention_ms=HOUR_MS)])
        write(broker, *[("key", "x" * 10_000)] * 500, age_ms=2 * HOUR_MS)
    assert path.stat().st_size > 5_000_000
    with closing(LocalBroker(path)) as broker:
        for _ in range(10):
            broker.run_maintenance()
    assert path.stat().st_size < 500_000


def test_compaction_keeps_the_newest_record_of_each_key_at_its_offset():
    with closing(LocalBroker(None, EAGER)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, cleanup_policy="compact")])
        for number in range(50):
            write(broker, *((f"key{n}", f"{number}-{n}") for n in range(number % 7, 20)))
        before = contents(broker)
        clean(broker)
        newest = {record.key: record for record in before}
        assert contents(broker) == sorted(newest.values(), key=lambda record: record.offset)
        assert watermarks(broker).high == len(before)


def test_compaction_takes_as_many_passes_as_its_bound_of_keys_asks_for():
    config = replace(EAGER, compaction_max_keys=7)
    with closing(LocalBroker(None, config)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, cleanup_policy="compact")])
        for number in range(6):
            write(broker, *((f"key{n}", str(number)) for n in range(100)))
        for _ in range(200):
            broker.run_maintenance()
        records = contents(broker)
        assert {record.key: record.value for record in records} == {
            f"key{n}".encode(): b"5" for n in range(100)
        }
        assert len(records) < 300


def test_a_tombstone_goes_after_its_time_and_takes_its_key_along():
    for retention, keys in ((3600.0, [b"gone", b"kept"]), (-1.0, [b"kept"])):
        with closing(LocalBroker(None, replace(EAGER, delete_retention=retention))) as broker:
            broker.create_topics([TopicSpec(TOPIC, 1, cleanup_policy="compact")])
            write(broker, ("gone", "1"), ("gone", None), ("kept", "2"))
            clean(broker)
            assert [record.key for record in contents(broker)] == keys


def test_a_reader_passes_the_end_of_a_log_that_compaction_emptied():
    with closing(LocalBroker(None, replace(EAGER, delete_retention=-1.0))) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, cleanup_policy="compact")])
        write(broker, ("a", "1"), ("a", None))
        clean(broker)
        consumer = broker.consumer(ConsumerConfig())
        consumer.assign({ONE: 0})
        assert consumer.poll(10, timeout=0) == []
        assert consumer.position(ONE) == watermarks(broker).high == 2


def write_transactions(broker: LocalBroker, count: int, age_ms: int = 0) -> None:
    """Each changes ten keys of thirty."""
    producer = broker.transactional_producer(ProducerConfig(), "id")
    for n in range(count):
        keys = [b"%d" % (number % 30) for number in range(n * 10, n * 10 + 10)]
        producer.begin()
        producer.send([OutgoingRecord(TOPIC, key, b"%d" % n, 0, now() - age_ms) for key in keys])
        producer.commit({}, broker.consumer(ConsumerConfig()))


def test_compaction_keeps_the_offsets_of_transactions():
    with closing(LocalBroker(None, EAGER)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, cleanup_policy="compact")])
        write_transactions(broker, 40)
        newest = {record.key: record for record in contents(broker)}
        clean(broker)
        assert contents(broker) == sorted(newest.values(), key=lambda record: record.offset)
        assert watermarks(broker) == (0, 40 * 11)


def test_retention_takes_the_ends_of_transactions_along():
    with closing(LocalBroker(None)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, retention_ms=HOUR_MS)])
        write_transactions(broker, 2, age_ms=2 * HOUR_MS)
        write_transactions(broker, 1)
        clean(broker)
        assert watermarks(broker) == (22, 33)
        assert [record.offset for record in contents(broker)] == list(range(22, 32))


def test_a_compacted_log_stays_compact_while_it_is_written(tmp_path):
    path = tmp_path / "log.sqlite"
    with closing(LocalBroker(path, replace(EAGER, maintenance_bytes=1_000_000))) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, cleanup_policy="compact")])
        for number in range(200):
            write(broker, *((f"key{n}", f"{number}" * 10) for n in range(50)))
            broker.run_maintenance()
        clean(broker)
        assert len(contents(broker)) <= 200
    assert path.stat().st_size < 500_000


def test_a_compacted_topic_refuses_a_record_without_a_key():
    with closing(LocalBroker(None)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, cleanup_policy="compact")])
        with pytest.raises(BrokerError, match="no key"):
            send(broker, OutgoingRecord(TOPIC, None, b"1"))
