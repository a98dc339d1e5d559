"""How the rate of a program is measured that turns one topic into another.

The input is there before the program starts. What counts is what a reader of committed records
can see: from its first sight of output until everything is there, so that starting costs nothing,
whichever the program. A slow one is stopped after a while, and its rate is that of what it did.
Every run has a topic, a group and a folder of its own, and its output is counted and compared.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]  # not listed

from benchmarks import BenchmarkError
from benchmarks.inputs import Message, differences, fill
from benchmarks.programs.arguments import Arguments
from benchmarks.programs.job import PARTITIONS
from benchmarks.rounds import Figures, Subject

RATE = "outputs_per_second"

_LOOK_SECONDS = 0.05
_ASK_SECONDS = 30.0
_START_SECONDS = 120.0
_STILL_SECONDS = 60.0
_QUIET_SECONDS = 1.5
_STOP_SECONDS = 15.0
_READ_RECORDS = 10_000
_COMMITTED = {
    "group.id": "benchmark",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "earliest",
    "log_level": 2,
}

_numbers = count()


@dataclass(frozen=True)
class Program:
    """What is started: `command` is followed by the arguments that all of them take, and
    `environment` added to this process's own."""

    name: str
    command: tuple[str, ...]
    guarantee: str = "at_least_once"
    environment: Mapping[str, str] = field(default_factory=dict)


class Input(Protocol):
    """What goes in, and how many records have to come out."""

    @property
    def outputs(self) -> int: ...
    @property
    def is_ordered(self) -> bool:
        """Whether the outputs of a key have one order."""
        ...

    def messages(self) -> Iterator[Message]: ...
    def some_keys(self) -> list[str]: ...
    def expected(self, keys: Collection[str]) -> dict[str, list[str]]: ...


Spent = Mapping[str, float]
"""By name, seconds that were spent until now, on whatever that is."""


class Sight(NamedTuple):
    """What was seen at one moment: offsets that are visible, what the program has used so far in
    seconds of a core, its resident memory in bytes, and what else was asked for."""

    at: float
    offsets: int
    cpu: float
    memory: int
    spent: Spent = MappingProxyType({})


@dataclass(frozen=True)
class Course:
    """One job over one input topic, which programs run in turn. Each is stopped after `seconds`;
    what it does before `after` outputs are there does not count. `spent` is asked with the
    number of the program's process; what that grows by for one output is a figure, too."""

    bootstrap: str
    folder: Path
    job: str
    topic: str
    input: Input
    seconds: float = 30.0
    after: int = 0
    spent: Callable[[int], Spent] = lambda _: {}

    @cached_property
    def expected(self) -> dict[str, list[str]]:
        return self.input.expected(self.input.some_keys())

    def warm_up(self, programs: Iterable[Program]) -> None:
        """Runs that do not count. A broker that has just started is slow until Java has compiled
        what it does."""
        for program in programs:
            self.run(program)

    def subject(self, program: Program) -> Subject:
        return Subject(program.name, lambda: self.run(program))

    def run(self, program: Program) -> Figures:
        """Raises `BenchmarkError` when nothing comes out, too much, or something wrong."""
        group = f"{self.topic}-{next(_numbers)}"
        given = Arguments(
            self.job,
            self.bootstrap,
            self.topic,
            f"{group}-out",
            group,
            self.folder / group,
            program.guarantee,
        )
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 2})
        with (
            only_for_now(admin, given.output, given.data_dir),
            closing(Ends(self.bootstrap, given.output)) as ends,
            running(program, given) as process,
        ):
            sights = self._watch(ends, given, process)
            stop(process)
            self._check(ends, given, sights)
        return figures(sights, self.input.outputs, self.after)

    def _watch(self, ends: Ends, given: Arguments, process: subprocess.Popen[bytes]) -> list[Sight]:
        """From the first output on, until all is there and nothing more comes, or time is up."""
        sights: list[Sight] = []
        started = changed = time.monotonic()
        counted_from: float | None = None
        while True:
            seen = look(ends, process, self.spent)
            if seen.offsets and (not sights or seen.offsets != sights[-1].offsets):
                sights.append(seen)
                changed = seen.at
            if counted_from is None and seen.offsets > self.after:
                counted_from = seen.at
            if seen.offsets >= self.input.outputs:
                if seen.at - changed > _QUIET_SECONDS:
                    return sights
            elif counted_from is not None and seen.at - counted_from > self.seconds:
                return sights
            elif process.poll() is not None:
                raise BenchmarkError(f"it ended by itself:\n{output_of(given)}")
            elif seen.at - changed > (_STILL_SECONDS if sights else _START_SECONDS):
                raise BenchmarkError(
                    f"nothing came out for {seen.at - changed:.0f} s, {seen.at - started:.0f} s "
                    f"after the start:\n{output_of(given)}"
                )
            time.sleep(_LOOK_SECONDS)

    def _check(self, ends: Ends, given: Arguments, sights: Sequence[Sight]) -> None:
        total, found = read(self.bootstrap, given.output, ends.by_partition(), self.expected)
        is_complete = sights[-1].offsets >= self.input.outputs
        if total > self.input.outputs or (is_complete and total != self.input.outputs):
            raise BenchmarkError(f"{total} records came out, not {self.input.outputs}")
        if not self.input.is_ordered:
            found = {key: sorted(values) for key, values in found.items()}
        if is_complete or self.input.is_ordered:
            wrong = differences(self.expected, found, is_complete)
            if wrong:
                raise BenchmarkError("wrong output: " + "; ".join(wrong[:5]))


@contextmanager
def course(
    bootstrap: str, folder: Path, job: str, given: Input, seconds: float = 30.0, after: int = 0
) -> Iterator[Course]:
    """Fills the input, and deletes it afterwards."""
    topic = f"{job}-{next(_numbers)}"
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 2})
    with only_for_now(admin, topic, folder / topic):
        fill(bootstrap, topic, given.messages())
        yield Course(bootstrap, folder, job, topic, given, seconds, after)


def figures(sights: Sequence[Sight], outputs: int, after: int = 0) -> dict[str, float]:
    """From the first sight of more than `after` outputs to the first sight of the last, which may
    have fewer. The marks that end transactions take offsets, too: when everything came out, what
    is more than `outputs` was marks, evenly."""
    first = next((each for each in sights if each.offsets > after), sights[0])
    last = sights[-1]
    seconds = last.at - first.at
    if seconds <= 0:
        raise BenchmarkError("all of it came at once: there is too little input to measure a rate")
    real = min(1.0, outputs / last.offsets)
    rate = (last.offsets - first.offsets) * real / seconds
    cores = (last.cpu - first.cpu) / seconds
    spent = {name: now - first.spent.get(name, 0.0) for name, now in last.spent.items()}
    return {
        RATE: rate,
        "cores": cores,
        "cores_at_1_million_per_second": cores / rate * 1e6,
        "memory_mb": max(each.memory for each in sights) / 1e6,
        **{f"{name}_us": each / seconds / rate * 1e6 for name, each in spent.items()},
    }


def look(ends: Ends, process: subprocess.Popen[bytes], spent: Callable[[int], Spent]) -> Sight:
    cpu, memory = used(process.pid)
    offsets = sum(ends.by_partition().values())
    return Sight(time.monotonic(), offsets, cpu, memory, spent(process.pid))


class Ends:
    """Up to where a reader of committed records could read a topic now."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._consumer = Consumer({"bootstrap.servers": bootstrap, **_COMMITTED})

    def by_partition(self) -> dict[int, int]:
        return {number: self._end(number) for number in range(PARTITIONS)}

    def _end(self, number: int) -> int:
        """Asked again for a while: a partition that is only just made has no leader yet."""
        deadline = time.monotonic() + _ASK_SECONDS
        while True:
            try:
                partition = TopicPartition(self._topic, number)
                end: int = self._consumer.get_watermark_offsets(partition, _ASK_SECONDS)[1]
                return end
            except KafkaException as error:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"no end of {self._topic}: {error}") from error
                time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        self._consumer.close()


def used(pid: int) -> tuple[float, int]:
    """Seconds of a core and bytes, of a process and its children; nothing once it has ended."""
    cpu, memory = 0.0, 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess), each.oneshot():
                times = each.cpu_times()
                cpu += times.user + times.system
                memory += each.memory_info().rss
    return cpu, memory


def read(
    bootstrap: str, topic: str, until: Mapping[int, int], keys: Collection[str]
) -> tuple[int, dict[str, list[str]]]:
    """How many committed records there are, and of those of `keys` the means or the prices."""
    settings = {"bootstrap.servers": bootstrap, "enable.partition.eof": True}
    consumer = Consumer(settings | _COMMITTED)
    wanted = {key.encode() for key in keys}
    total, found = 0, defaultdict[str, list[str]](list)
    open_partitions = {number for number, end in until.items() if end > 0}
    deadline = time.monotonic() + _START_SECONDS
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in open_partitions])
        while open_partitions:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{topic} could not be read within {_START_SECONDS} s")
            for message in consumer.consume(_READ_RECORDS, 1.0):
                if message.error() is not None:
                    open_partitions.discard(message.partition() or 0)  # its end
                    continue
                total += 1
                key = message.key()
                if key in wanted:
                    value = json.loads(message.value() or b"")
                    found[str(value["pair"])].append(str(value.get("mean") or value["price"]))
    finally:
        consumer.close()
    return total, found


@contextmanager
def only_for_now(admin: AdminClient, topic: str, folder: Path) -> Iterator[None]:
    """A topic and a folder. Afterwards they are gone, and so is every topic that was made since."""
    kept = admin.list_topics(timeout=_ASK_SECONDS).topics.keys()
    made = admin.create_topics([NewTopic(topic, PARTITIONS, 1)], operation_timeout=_ASK_SECONDS)
    made[topic].result()
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        now = admin.list_topics(timeout=_ASK_SECONDS).topics.keys()
        made_since = [name for name in now if name not in kept and not name.startswith("__")]
        for deleted in admin.delete_topics(made_since, operation_timeout=_ASK_SECONDS).values():
            with suppress(Exception):  # another name of the same topics may have deleted it
                deleted.result()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(program: Program, given: Arguments) -> Iterator[subprocess.Popen[bytes]]:
    """The program, in a process group of its own, which is gone afterwards."""
    with (given.data_dir / "output").open("ab") as output:
        process = subprocess.Popen(
            [*program.command, *given.as_options()],
            env={**os.environ, **program.environment},
            cwd=given.data_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asked first; what does not listen is killed."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def output_of(given: Arguments) -> str:
    """The last that it printed."""
    return (given.data_dir / "output").read_text(errors="replace")[-4000:]
