"""What only the local broker does: its file, its locks, its threads."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread

import pytest

from ratestream.streaming.errors import (
    BrokerError,
    DeliveryError,
    FencedError,
    MessageTooLargeError,
    StateError,
    TransactionAbortedError,
)
from ratestream.streaming.local import LocalBroker, LocalBrokerConfig
from ratestream.streaming.types import (
    ConsumerConfig,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
    TopicSpec,
)
from tests.support.brokers import read, send, values

TOPIC = "quotes"
ONE = TopicPartition(TOPIC, 0)
FLUSH_RECORDS = 300


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker" / "log.sqlite"


@contextmanager
def opened(path: Path | None, partitions: int = 1) -> Iterator[LocalBroker]:
    with closing(LocalBroker(path)) as broker:
        broker.create_topics([TopicSpec(TOPIC, partitions)])
        yield broker


def everything(broker: LocalBroker, partitions: int = 1) -> list[Record]:
    with closing(broker.consumer(ConsumerConfig())) as consumer:
        ends = [TopicPartition(TOPIC, number) for number in range(partitions)]
        consumer.assign({end: consumer.watermarks(end).low for end in ends})
        return read(consumer, sum(consumer.watermarks(end).high for end in ends))


def test_what_was_written_is_there_after_a_restart(path):
    with opened(path) as broker:
        before = (broker.cluster_id(), broker.describe_topics([TOPIC]))
        send(broker, *values(TOPIC, 0, "a", "b", "c"))
        consumer = broker.consumer(ConsumerConfig(group="loader"))
        consumer.commit({ONE: 2})
    with opened(path) as broker:
        assert (broker.cluster_id(), broker.describe_topics([TOPIC])) == before
        assert [record.value for record in everything(broker)] == [b"a", b"b", b"c"]
        assert broker.consumer(ConsumerConfig(group="loader")).committed([ONE]) == {ONE: 2}
        assert send(broker, *values(TOPIC, 0, "d")) == {ONE: 4}


WRITE_UNTIL_KILLED = f"""
import sys
from pathlib import Path
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.types import OutgoingRecord, ProducerConfig, TopicSpec

broker = LocalBroker(Path(sys.argv[1]))
broker.create_topics([TopicSpec({TOPIC!r}, 2)])
producer = broker.producer(ProducerConfig())
while True:
    producer.send([OutgoingRecord({TOPIC!r}, str(n).encode(), b"27.8325" * 40)
                   for n in range({FLUSH_RECORDS})])
    producer.flush()
    print("flushed", flush=True)
"""


def test_a_kill_loses_nothing_flushed_and_tears_no_flush(path):
    command = [sys.executable, "-c", WRITE_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(20):
            assert process.stdout.readline() == "flushed\n"
        process.kill()
        flushed = 20 + len(process.stdout.readlines())
    with opened(path, partitions=2) as broker:
        records = everything(broker, partitions=2)
    flushes, rest = divmod(len(records), FLUSH_RECORDS)
    assert rest == 0
    assert flushed <= flushes <= flushed + 1
    for number in range(2):
        offsets = [record.offset for record in records if record.partition == number]
        assert offsets == list(range(len(offsets)))


HOLD = """
import sys
from pathlib import Path
from ratestream.streaming.local import LocalBroker

broker = LocalBroker(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(path):
    command = [sys.executable, "-c", HOLD, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(StateError, match=f"{path} is in use by another process"):
            LocalBroker(path)
        process.kill()
    LocalBroker(path).close()


def test_a_newer_format_is_refused_and_left_alone(path):
    LocalBroker(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StateError, match=r"format version 99; this ratestream knows 1"):
        LocalBroker(path)


def test_a_file_that_is_not_ours_is_refused(tmp_path):
    other, text, folder = tmp_path / "other.sqlite", tmp_path / "notes.txt", tmp_path / "folder"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE mine (id)")
    text.write_text("not a database, and long enough to be sure of it\n" * 100)
    folder.mkdir()
    for path in (other, text, folder):
        with pytest.raises(StateError, match=str(path)):
            LocalBroker(path)


def test_a_closed_broker_says_so_to_whoever_waits():
    broker = LocalBroker(None)
    broker.create_topics([TopicSpec(TOPIC, 1)])
    consumer = broker.consumer(ConsumerConfig())
    consumer.assign({ONE: 0})
    failures: list[Exception] = []

    def wait() -> None:
        try:
            consumer.poll(1, timeout=600)
        except BrokerError as exc:
            failures.append(exc)

    waiting = Thread(target=wait)
    waiting.start()
    broker.close()
    waiting.join()
    assert [str(failure) for failure in failures] == ["the local broker is closed"]
    assert not broker.is_reachable()


COUNT_UNTIL_KILLED = f"""
import sys
from pathlib import Path
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.types import ConsumerConfig, OutgoingRecord, ProducerConfig
from ratestream.streaming.types import TopicPartition, TopicSpec

broker = LocalBroker(Path(sys.argv[1]))
broker.create_topics([TopicSpec({TOPIC!r}, 1), TopicSpec("counts", 2)])
source = TopicPartition({TOPIC!r}, 0)
producer = broker.transactional_producer(ProducerConfig(), "counter")
consumer = broker.consumer(ConsumerConfig(group="counter"))
start = consumer.committed([source]).get(source, 0)
while True:
    producer.begin()
    end = start + {FLUSH_RECORDS}
    producer.send([OutgoingRecord("counts", None, b"%d" % n, n % 2) for n in range(start, end)])
    producer.commit({{source: end}}, consumer)
    start = end
    print(start, flush=True)
"""


def test_a_kill_tears_no_transaction_from_its_offsets(path):
    command = [sys.executable, "-c", COUNT_UNTIL_KILLED, str(path)]
    source, counts = ONE, [TopicPartition("counts", number) for number in range(2)]
    acknowledged = 0
    for lines in (1, 7, 3, 12):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            heard = [process.stdout.readline() for _ in range(lines)]
            process.kill()
            acknowledged = int([*heard, *process.stdout.readlines()][-1])
        with closing(LocalBroker(path)) as broker:
            reader = broker.consumer(ConsumerConfig(group="counter"))
            committed = reader.committed([source])[source]
            reader.assign(dict.fromkeys(counts, 0))
            records = read(reader, committed)
            ends = [reader.log_end(partition) for partition in counts]
            assert reader.poll(1, timeout=0) == []
        assert acknowledged <= committed <= acknowledged + FLUSH_RECORDS
        assert sorted(int(record.value or b"") for record in records) == list(range(committed))
        markers = committed // FLUSH_RECORDS
        assert ends == [committed // 2 + markers] * 2


def test_a_commit_takes_an_offset_of_each_partition_it_wrote():
    with opened(None, partitions=3) as broker:
        producer = broker.transactional_producer(ProducerConfig(), "id")
        consumer = broker.consumer(ConsumerConfig())
        for _ in range(2):
            producer.begin()
            producer.send([*values(TOPIC, 0, "a", "b"), *values(TOPIC, 1, "c")])
            ends = producer.commit({}, consumer)
        assert ends == {ONE: 5, TopicPartition(TOPIC, 1): 3}
        consumer.assign({ONE: 0})
        assert [record.offset for record in consumer.poll(9, timeout=0)] == [0, 1, 3, 4]
        assert consumer.position(ONE) == consumer.watermarks(ONE).high == 6
        assert consumer.log_end(TopicPartition(TOPIC, 2)) == 0


@pytest.mark.parametrize("bound", [{"buffer_records": 3}, {"buffer_bytes": 3000}])
def test_a_transaction_that_does_not_fit_its_buffer_is_refused(bound):
    with opened(None) as broker:
        producer = broker.transactional_producer(ProducerConfig(**bound), "counter-1")
        producer.begin()
        producer.send(values(TOPIC, 0, "x" * 1000, "x" * 1000, "x" * 1000))
        config = ProducerConfig(**bound)
        bounds = f"buffer_records={config.buffer_records} or buffer_bytes={config.buffer_bytes}"
        with pytest.raises(BrokerError, match=f"counter-1 is larger than {bounds}"):
            producer.send(values(TOPIC, 0, "x"))
        with pytest.raises(BrokerError, match="counter-1 is of no more use: it failed"):
            producer.commit({}, broker.consumer(ConsumerConfig()))
        assert everything(broker) == []


def test_a_closed_consumer_commits_nothing():
    with opened(None) as broker:
        producer = broker.transactional_producer(ProducerConfig(), "id")
        consumer = broker.consumer(ConsumerConfig(group="loader"))
        consumer.close()
        producer.begin()
        with pytest.raises(TransactionAbortedError, match=r"cannot commit quotes\[0\]"):
            producer.commit({ONE: 1}, consumer)
        with pytest.raises(FencedError):
            consumer.commit({ONE: 1})


def test_a_failed_write_is_told_twice_and_forgotten():
    broker = LocalBroker(None)
    broker.create_topics([TopicSpec(TOPIC, 1)])
    producer = broker.producer(ProducerConfig(buffer_records=1))
    producer.send(values(TOPIC, 0, "a"))
    broker.close()
    with pytest.raises(DeliveryError):
        producer.send(values(TOPIC, 0, "b"))
    with pytest.raises(DeliveryError):
        producer.flush()
    assert producer.flush() == {}


def test_the_topic_s_own_limit_refuses_a_record():
    with closing(LocalBroker(None)) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1, max_message_bytes=100)])
        with pytest.raises(MessageTooLargeError, match="max_message_bytes is 100"):
            send(broker, *values(TOPIC, 0, "x" * 101))


def test_a_full_partition_does_not_starve_another():
    with opened(None, partitions=2) as broker:
        send(broker, *values(TOPIC, 0, *["x"] * 5000), *values(TOPIC, 1, *["y"] * 5))
        consumer = broker.consumer(ConsumerConfig())
        consumer.assign({ONE: 0, TopicPartition(TOPIC, 1): 0})
        polled = [record for _ in range(10) for record in consumer.poll(1, timeout=0)]
        assert sum(record.partition == 1 for record in polled) == 5


def test_a_poll_is_bounded_in_bytes():
    with opened(None) as broker:
        producer = broker.producer(ProducerConfig())
        for _ in range(20):
            producer.send(values(TOPIC, 0, "x" * 1000))
            producer.flush()
        consumer = broker.consumer(ConsumerConfig(buffer_bytes=5000))
        consumer.assign({ONE: 0})
        assert len(consumer.poll(100, timeout=0)) == 5
        assert len(read(consumer, 15)) == 15


class Worker(Thread):
    """Reads its share until told to stop, and commits whatever is taken away from it."""

    def __init__(self, broker: LocalBroker) -> None:
        super().__init__()
        self.consumer = broker.consumer(ConsumerConfig(group="workers"))
        self.consumer.subscribe([TOPIC], self)
        self.records: list[Record] = []
        self.stopping = False

    def run(self) -> None:
        while not self.stopping:
            self.records += self.consumer.poll(7, timeout=0.01)
            self.consumer.resume(sorted(self.consumer.assignment()))
        self.consumer.close()

    def assigned(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {}

    def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        positions = {each: self.consumer.position(each) for each in partitions}
        self.consumer.commit({tp: at for tp, at in positions.items() if at is not None})

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        raise AssertionError(f"lost {partitions}")


def test_threads_that_come_and_go_handle_each_record_once():
    with opened(None, partitions=8) as broker:
        workers: list[Worker] = []
        for number in range(12):
            keys = (str(n).encode() for n in range(number * 250, (number + 1) * 250))
            send(broker, *(OutgoingRecord(TOPIC, key, b"27.8325") for key in keys))
            workers.append(Worker(broker))
            workers[-1].start()
            if number % 3 == 2:
                stop(workers[number - 1])
        survivor = workers[-1]
        for worker in workers[:-1]:
            stop(worker)
        while sum(len(worker.records) for worker in workers) < 3000:
            survivor.join(0.01)
        stop(survivor)
        keys_read = sorted(int(r.key or b"") for worker in workers for r in worker.records)
        assert keys_read == list(range(3000))


def stop(worker: Worker) -> None:
    worker.stopping = True
    worker.join()


def test_a_batch_too_large_for_its_setting_is_split(path):
    with closing(LocalBroker(path, LocalBrokerConfig(batch_bytes=1000))) as broker:
        broker.create_topics([TopicSpec(TOPIC, 1)])
        send(broker, *values(TOPIC, 0, *["x" * 90] * 100, "y" * 5000))
        assert len(everything(broker)) == 101
    with closing(sqlite3.connect(path)) as connection:
        sizes = [row[0] for row in connection.execute("SELECT length(records) FROM batch")]
    assert len(sizes) > 10
    assert sum(size > 1000 for size in sizes) == 1
