"""Dead letters, as operators list, show and replay them, on the local broker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from ratestream.cli.builders import builders
from ratestream.operations.deadletters import LetterId
from ratestream.operations.deployment import Deployment
from ratestream.operations.errors import OperationError
from ratestream.operations.letters import (
    SHOWN_BYTES,
    Filter,
    LetterList,
    ListDeadLetters,
    Outcome,
    ReplayDeadLetters,
    ReplayedLetter,
    ShowDeadLetter,
    ShownLetter,
)
from ratestream.operations.topics import CreateTopics
from ratestream.settings import Settings
from ratestream.streaming import (
    ConsumerConfig,
    DeliveryError,
    OutgoingRecord,
    ProducerConfig,
    Record,
    TopicPartition,
)
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.local.producer import LocalProducer
from tests.support.brokers import send

HEADERS = {
    "topic": "src-data",
    "partition": "2",
    "offset": "7",
    "timestamp": "1",
    "service": "data_processor",
    "reason": "Value 12 is no rate",
}


@pytest.fixture
def here() -> Iterator[Deployment]:
    with closing(LocalBroker(None)) as broker:
        deployment = Deployment(Settings(), lambda: broker, builders())
        asyncio.run(CreateTopics().run(deployment))
        yield deployment


def letter(
    partition: int = 0, value: bytes | None = b"{}", **headers: str | None
) -> OutgoingRecord:
    """`time` is milliseconds since the epoch; a header that is None is left out."""
    time = headers.pop("time", None)
    content = {**HEADERS, **headers}
    return OutgoingRecord(
        "dead-letter",
        b"demo",
        value,
        partition,
        int(time) if time else None,
        tuple((name, text.encode()) for name, text in content.items() if text is not None),
    )


def put(here: Deployment, *letters: OutgoingRecord) -> None:
    send(here.broker, *letters)


def found(here: Deployment, limit: int = 20, **wanted: Any) -> LetterList:
    return asyncio.run(ListDeadLetters(limit, Filter(**wanted)).run(here))


def ids(here: Deployment, limit: int = 20, **wanted: Any) -> list[str]:
    return [each.id for each in found(here, limit, **wanted).letters]


def show(here: Deployment, which: str) -> ShownLetter:
    return asyncio.run(ShowDeadLetter(which).run(here))


def replay(here: Deployment, *which: str, **options: bool) -> list[ReplayedLetter]:
    return asyncio.run(ReplayDeadLetters(list(which), **options).run(here))


def refusal(here: Deployment, which: str, **options: bool) -> str:
    (result,) = replay(here, which, **options)
    assert result.outcome is Outcome.REFUSED
    return result.reason


def records(here: Deployment, topic: str) -> list[Record]:
    read: list[Record] = []
    with closing(here.broker.consumer(ConsumerConfig())) as consumer:
        for partition in range(8):
            log = TopicPartition(topic, partition)
            low, high = consumer.watermarks(log)
            consumer.assign({log: low})
            while (consumer.position(log) or low) < high:
                read += consumer.poll(1000, 1)
    return read


def test_newest_letters_of_all_partitions_come_first(here: Deployment) -> None:
    now = int(datetime.now(UTC).timestamp() * 1000)
    for number in range(30):
        put(here, letter(number % 3, time=str(now + number)))
    assert ids(here, 5) == ["2:9", "1:9", "0:9", "2:8", "1:8"]
    assert len(ids(here, 100)) == 30


def test_a_letter_says_what_was_refused_where_and_why(here: Deployment) -> None:
    put(here, letter())
    listed = found(here)
    assert listed.is_complete
    (only,) = listed.letters
    assert (only.topic, only.service, only.reason, only.key, only.replayed) == (
        *("src-data", "data_processor", "Value 12 is no rate", "demo", False),
    )
    assert abs(datetime.now(UTC) - only.time) < timedelta(minutes=1)


@pytest.mark.parametrize(
    "wanted",
    [
        {"topic": "processed-data"},
        {"service": "db_loader"},
        {"reason": "TOO LARGE"},
        {"since": datetime.now(UTC) - timedelta(hours=2)},
    ],
)
def test_letters_are_narrowed_down(wanted: dict[str, Any], here: Deployment) -> None:
    day_ago = str(int((datetime.now(UTC) - timedelta(days=1)).timestamp() * 1000))
    put(here, letter(time=day_ago))
    put(here, letter(topic="processed-data", service="db_loader", reason="it is too large"))
    assert ids(here) == ["0:1", "0:0"]
    assert ids(here, **wanted) == ["0:1"]


def test_a_long_topic_is_read_piece_by_piece(here: Deployment) -> None:
    put(here, *[letter(reason="rare" if n % 1000 == 0 else "frequent") for n in range(4500)])
    assert ids(here, reason="rare") == ["0:4000", "0:3000", "0:2000", "0:1000", "0:0"]
    assert len(ids(here, 10_000)) == 4500


def test_without_the_topic_it_is_said(here: Deployment) -> None:
    with closing(LocalBroker(None)) as broker:
        empty = Deployment(Settings(), lambda: broker, builders())
        with pytest.raises(OperationError, match="there is no topic dead-letter yet"):
            found(empty)


def test_a_letter_is_shown_whole(here: Deployment) -> None:
    put(here, letter(1, b'{"rate": 1.10}'))
    shown = show(here, "1:0")
    assert (shown.id, shown.key, shown.value, shown.value_bytes) == (
        *("1:0", "demo", '{"rate": 1.10}', 14),
    )
    assert dict(shown.headers) == HEADERS


def test_of_a_long_value_the_beginning_is_shown(here: Deployment) -> None:
    put(here, letter(value=b"x" * 200_000))
    shown = show(here, "0:0")
    assert (len(shown.value or ""), shown.value_bytes) == (SHOWN_BYTES, 200_000)


def test_what_is_no_text_is_shown_all_the_same(here: Deployment) -> None:
    put(here, letter(value=b"\xff\x00"))
    assert show(here, "0:0").value == "\\xff\x00"


@pytest.mark.parametrize("which", ["0:1", "0:99", "8:0", "999999999:999999999999999999"])
def test_a_letter_that_is_not_there_is_refused(which: str, here: Deployment) -> None:
    put(here, letter())
    with pytest.raises(OperationError, match=f"there is no letter {which}"):
        show(here, which)


@pytest.mark.parametrize("which", ["", "1", "1:", ":1", "-1:0", "1:x", "1:2:3", "1:" + "9" * 30])
def test_what_is_no_id_is_refused(which: str) -> None:
    with pytest.raises(OperationError, match="is no letter: partition:offset"):
        LetterId.parse(which)


class LosingProducer(LocalProducer):
    """Loses what is for `src-data`, as a Kafka does whose partition has no leader."""

    is_lost = False

    def send(self, records: Sequence[OutgoingRecord]) -> None:
        kept = [each for each in records if each.topic != "src-data"]
        self.is_lost = self.is_lost or len(kept) < len(records)
        super().send(kept)

    def flush(self) -> dict[TopicPartition, int]:
        done = super().flush()
        if self.is_lost:
            raise DeliveryError("src-data acknowledged nothing")
        return done


class LosingBroker(LocalBroker):
    def producer(self, config: ProducerConfig) -> LocalProducer:
        return LosingProducer(self._storage, config)


def test_a_letter_that_was_not_acknowledged_can_be_replayed_again() -> None:
    with closing(LosingBroker(None)) as broker:
        here = Deployment(Settings(), lambda: broker, builders())
        asyncio.run(CreateTopics().run(here))
        put(here, letter(3))
        with pytest.raises(DeliveryError):
            replay(here, "3:0")
        assert ids(here) == ["3:0"]


def test_a_replayed_letter_is_sent_again_and_hidden(here: Deployment) -> None:
    put(here, letter(3, b"again", time="5"), letter(3, b"other"))
    (result,) = replay(here, "3:0")
    assert (result.outcome, result.topic) == (Outcome.REPLAYED, "src-data")
    (sent,) = records(here, "src-data")
    assert (sent.key, sent.value) == (b"demo", b"again")
    assert dict(sent.headers) == {"replay-of": b"dead-letter 3:0"}
    assert sent.timestamp > 5
    assert ids(here) == ["3:1"]
    assert [(each.id, each.replayed) for each in found(here, replayed=True).letters] == [
        ("3:1", False),
        ("3:0", True),
    ]


def test_a_second_replay_is_refused_unless_wanted(here: Deployment) -> None:
    put(here, letter())
    replay(here, "0:0")
    assert refusal(here, "0:0") == "it was replayed before; --again does it once more"
    assert len(records(here, "src-data")) == 1
    assert replay(here, "0:0", again=True)[0].outcome is Outcome.REPLAYED
    assert len(records(here, "src-data")) == 2


def test_a_marker_is_no_letter(here: Deployment) -> None:
    put(here, letter())
    replay(here, "0:0")
    with pytest.raises(OperationError, match="there is no letter 0:1"):
        show(here, "0:1")


def test_a_dry_run_sends_nothing(here: Deployment) -> None:
    put(here, letter())
    assert replay(here, "0:0", dry_run=True)[0].outcome is Outcome.POSSIBLE
    assert records(here, "src-data") == []
    assert ids(here) == ["0:0"]


def test_a_letter_without_a_value_is_a_letter(here: Deployment) -> None:
    put(here, letter(value=None))
    assert ids(here) == ["0:0"]
    replay(here, "0:0")
    assert [each.value for each in records(here, "src-data")] == [None]


@pytest.mark.parametrize("topic", ["elsewhere", "dead-letter", "data-aggregator-windows-changelog"])
def test_letters_go_only_to_topics_that_services_read(topic: str, here: Deployment) -> None:
    put(here, letter(topic=topic))
    assert f"its header topic, '{topic}', is none of" in refusal(here, "0:0")


def test_a_letter_that_is_only_a_beginning_is_refused(here: Deployment) -> None:
    put(here, letter(offset=None))
    assert "only the beginning of something too large" in refusal(here, "0:0")


def test_one_that_is_refused_does_not_hold_the_others_back(here: Deployment) -> None:
    put(here, letter(), letter(topic="elsewhere"), letter(1))
    results = replay(here, "0:0", "0:1", "7:5", "1:0")
    assert [each.outcome for each in results] == [
        *(Outcome.REPLAYED, Outcome.REFUSED, Outcome.REFUSED, Outcome.REPLAYED),
    ]
    assert len(records(here, "src-data")) == 2
    assert ids(here) == ["0:1"]


def test_a_letter_named_twice_is_sent_once(here: Deployment) -> None:
    put(here, letter())
    assert len(replay(here, "0:0", "0:0")) == 1
    assert len(records(here, "src-data")) == 1


def test_a_letter_too_large_for_its_topic_is_refused(here: Deployment) -> None:
    put(here, letter(value=b"x" * 1_100_000))
    assert "max_message_bytes of src-data allows 1048576" in refusal(here, "0:0")
    assert ids(here) == ["0:0"]


def test_operations_are_bounded() -> None:
    for operation in (ListDeadLetters(10_001), ReplayDeadLetters(["0:0"] * 101)):
        encoded = msgspec.json.encode(operation)
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(encoded, type=type(operation))
