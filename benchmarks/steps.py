"""What each step of the stateful job costs: processor time of the thread that does it, the least of
many repetitions, so that what else the machine does is not in it. Consuming and producing are
librdkafka's calls on a real broker; everything else needs none."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import count, repeat
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer
from confluent_kafka import TopicPartition as Assigned
from confluent_kafka.admin import AdminClient
from rich.console import Console

from benchmarks import BenchmarkError
from benchmarks.inputs import Quotes, fill
from benchmarks.programs import ours
from benchmarks.programs.arguments import Arguments
from benchmarks.programs.job import WINDOW
from benchmarks.programs.messages import Average, Quote
from benchmarks.report import Report
from benchmarks.rounds import Figures, Subject, measure
from benchmarks.stage import stage
from benchmarks.streams import only_for_now
from ratestream.rates.averages import mean, push
from ratestream.streaming import App, WorkerConfig
from ratestream.streaming.kafka.partitions import partition_of
from ratestream.streaming.outbox import BufferedOutbox
from ratestream.streaming.streams import Agent, Event, Rejections, RunningAgent, Stream
from ratestream.streaming.types import Record, RecordRun, TopicPartition

_RECORDS = 10_000
_PAIRS = 200
_MANY_PAIRS = 100_000
_TOPIC = "steps"
_WAIT_SECONDS = 30.0
_FLUSH_SECONDS = 60.0

AgentFunction = Callable[[Stream[Quote]], Awaitable[None]]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repetitions", type=int, default=20, help="of a step (%(default)s)")


def run(options: argparse.Namespace, console: Console) -> Report:
    with stage(console) as (bootstrap, folder, progress):
        admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
        with only_for_now(admin, _TOPIC, folder / _TOPIC):
            fill(bootstrap, _TOPIC, Quotes(_RECORDS * options.repetitions, _PAIRS).messages())
            few = Steps(bootstrap, folder / "few", options.repetitions, _PAIRS)
            many = Steps(bootstrap, folder / "many", options.repetitions, _MANY_PAIRS)
            steps = few.of_few_keys() | many.of_many_keys()
            subjects = [Subject(name, step) for name, step in steps.items()]
            found = measure(subjects, options.rounds, progress, "steps")
    return Report("steps", {"repetitions": options.repetitions}, found)


@dataclass
class Least:
    """The least time of a repetition."""

    seconds: float = float("inf")

    @contextmanager
    def timing(self) -> Iterator[None]:
        before = time.thread_time()
        yield
        self.seconds = min(self.seconds, time.thread_time() - before)

    def figures(self) -> Figures:
        return {"microseconds_a_record": self.seconds / _RECORDS * 1e6}


class Steps:
    """By name; each returns what it cost."""

    def __init__(self, bootstrap: str, folder: Path, repetitions: int, pairs: int) -> None:
        self._bootstrap = bootstrap
        self._repetitions = repetitions
        self._app = App("steps")
        names = ("in", "out", "steps")
        given = Arguments("stateful", bootstrap, *names, folder, "exactly_once")
        ours.stateful(self._app, given)
        self._table = self._app.tables["windows"]
        self._table.open(0, folder, "cluster/changelog")
        messages = list(Quotes(_RECORDS, pairs).messages())
        self._run = RecordRun(
            [Record("in", 0, at, m.key.encode(), m.value, 0) for at, m in enumerate(messages)]
        )
        self._quotes: list[Quote] = self._decode()
        self._windows = [push([], quote.price, WINDOW) * WINDOW for quote in self._quotes]
        self._averages = [
            Average(q.pair, q.source, q.price, WINDOW, q.observed_at, q.received_at)
            for q in self._quotes
        ]

    def of_few_keys(self) -> dict[str, Callable[[], Figures]]:
        topics, encode = self._app.topics, self._app.topics["out"].value_codec.encode
        (agent,) = self._app.agents
        return {
            "librdkafka: consume": self._consume,
            "librdkafka: produce": lambda: self._produce(None),
            "librdkafka: produce, with a report": lambda: self._produce(lambda *_: None),
            "decode the values": lambda: self._least(self._decode),
            "decode the keys": lambda: self._least(
                lambda: topics["in"].key_codec.decode_all(self._run.keys)
            ),
            "make events": lambda: self._least(self._events),
            "push to a window": lambda: self._least(
                lambda: [push(each, each[0], WINDOW) for each in self._windows]
            ),
            "mean of a window": lambda: self._least(lambda: [*map(mean, self._windows)]),
            "encode an average": lambda: self._least(lambda: [*map(encode, self._averages)]),
            "an agent that does nothing": lambda: self._agent(_nothing),
            "an agent that writes the table": lambda: self._agent(self._writes),
            "an agent that reads the table": lambda: self._agent(self._reads),  # what that wrote
            "an agent that sends": lambda: self._agent(self._sends),
            "the agent of the job": lambda: self._agent(agent.function),
        }

    def of_many_keys(self) -> dict[str, Callable[[], Figures]]:
        """What a table costs besides when nearly every record of a commit has another key, and
        none of them is in its cache. An entry has ten prices."""
        self._table.cache_entries = 1
        ends: dict[TopicPartition, int] = {}

        def look(_: KafkaError | None, message: Message) -> None:
            """As the producer does for the records of changelogs."""
            ends[partition_of(message)] = (message.offset() or 0) + 1

        return {
            "many keys: make the changelog's records": lambda: self._fed(self._writes)["changelog"],
            "many keys: write the store": lambda: self._fed(self._writes)["store"],
            "many keys: an agent that reads the store": lambda: self._agent(self._reads),
            "librdkafka: produce, with a report that is looked at": lambda: self._produce(look),
        }

    def _least(self, work: Callable[[], object]) -> Figures:
        least = Least()
        for _ in range(self._repetitions):
            with least.timing():
                work()
        return least.figures()

    def _decode(self) -> list[Any]:
        return self._app.topics["in"].value_codec.decode_all(self._run.values)

    def _events(self) -> list[Event]:
        return list(map(Event, self._run.keys, self._quotes, repeat(self._run), count()))

    def _agent(self, function: AgentFunction) -> Figures:
        return self._fed(function)["agent"]

    def _fed(self, function: AgentFunction) -> dict[str, Figures]:
        """What the agent costs, and what committing to the table does after it."""
        return asyncio.run(self._feed(replace(self._app.agents[0], function=function)))

    async def _feed(self, agent: Agent) -> dict[str, Figures]:
        outbox, events = BufferedOutbox(WorkerConfig()), self._events()
        least = {"agent": Least(), "changelog": Least(), "store": Least()}
        running = RunningAgent(agent, outbox, Rejections("steps", None))
        await asyncio.sleep(0)
        for _ in range(self._repetitions):
            with least["agent"].timing():
                running.stream.feed(events)
                await running.stream.wait_idle()
            outbox.take()
            with least["changelog"].timing():
                changes = self._table.take_changes()
                for each in changes:
                    each.records()
            with least["store"].timing():
                for each in changes:
                    self._table.commit(each, 1)
        await running.cancel(_WAIT_SECONDS)
        return {name: each.figures() for name, each in least.items()}

    async def _reads(self, stream: Stream[Quote]) -> None:
        async for quote in stream:
            self._table[quote.pair]

    async def _writes(self, stream: Stream[Quote]) -> None:
        async for quote in stream:
            self._table[quote.pair] = self._windows[0]

    async def _sends(self, stream: Stream[Quote]) -> None:
        averages, average = self._app.topics["out"], self._averages[0]
        async for quote in stream:
            await averages.send(key=quote.pair, value=average)

    def _consume(self) -> Figures:
        settings = {"bootstrap.servers": self._bootstrap, "group.id": "steps"}
        least = Least()
        with closing(Consumer(settings | {"log_level": 2})) as consumer:
            consumer.assign([Assigned(_TOPIC, number, 0) for number in range(8)])
            time.sleep(1.0)  # they are fetched: what is measured is their way into Python
            for _ in range(self._repetitions // 2):
                with least.timing():
                    found = _consumed(consumer)
                del found
        return least.figures()

    def _produce(self, report: Callable[..., None] | None) -> Figures:
        values = [m.value for m in Quotes(_RECORDS, _PAIRS).messages()]
        keys = [quote.pair for quote in self._quotes]
        settings = {"bootstrap.servers": self._bootstrap, "compression.type": "lz4"}
        producer = Producer(settings | {"linger.ms": 20, "log_level": 2})

        def produce() -> None:
            for key, value in zip(keys, values, strict=True):
                producer.produce(_TOPIC, value, key, -1, report, None, 0, None)
            if producer.flush(_FLUSH_SECONDS):
                raise BenchmarkError(f"not acknowledged within {_FLUSH_SECONDS} s")

        return self._least(produce)


async def _nothing(stream: Stream[Quote]) -> None:
    async for _ in stream:
        pass


def _consumed(consumer: Consumer) -> Sequence[Message] | Iterable[Message]:
    messages = consumer.consume(_RECORDS, _WAIT_SECONDS)
    if len(messages) != _RECORDS:
        raise BenchmarkError(f"{len(messages)} records came within {_WAIT_SECONDS} s")
    return messages
