"""What is done to the pipeline, and when: the same seed, the same schedule."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from itertools import pairwise

from tests.chaos.servers import BROKERS, Brokers, Postgres
from tests.chaos.services import Instance

INTERVAL = 4.0
SESSION_TIMEOUT = 6.0
INSTANCES = {"data_processor": 2, "data_aggregator": 3, "db_loader": 2}


class Kind(Enum):
    """Each with how often it comes among 20 faults, and with how long it lasts, seconds."""

    KILL_INSTANCE = ("kill -9 of an instance", 7, (0.0, 2.0))
    KILL_BROKER = ("kill -9 of a broker", 3, (1.0, 8.0))
    KILL_POSTGRES = ("kill -9 of Postgres", 3, (0.0, 4.0))
    PAUSE = ("pause beyond the session", 3, (SESSION_TIMEOUT + 1, SESSION_TIMEOUT + 6))
    REMOVE = ("instance removed", 2, (4.0, 12.0))
    ADD = ("instance added", 2, (6.0, 15.0))

    def __init__(self, words: str, weight: int, seconds: tuple[float, float]) -> None:
        self.words = words
        self.weight = weight
        self.seconds = seconds


@dataclass(frozen=True)
class Fault:
    """At `at` seconds after the start, for `seconds`."""

    at: float
    kind: Kind
    target: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.kind.words}: {self.target}, {self.seconds:.1f} s"


def spare(service: str) -> str:
    """The instance that exists only when one is added."""
    return f"{service}-{INSTANCES[service] + 1}"


def permanent() -> list[str]:
    return [f"{name}-{n}" for name, count in INSTANCES.items() for n in range(1, count + 1)]


def make_schedule(seed: int, count: int) -> list[Fault]:
    """One fault each `INTERVAL` on average, each kind early; they overlap unless they are for the
    same target, which then has its turn later. Brokers get time to be in sync again."""
    random_ = random.Random(seed)
    busy_until: dict[str, float] = {}
    faults: list[Fault] = []
    for number, kind in zip(range(count), _kinds(random_), strict=False):
        at = INTERVAL * (number + random_.uniform(0.0, 0.9))
        candidates = _targets(kind)
        free = [target for target in candidates if busy_until.get(target, 0.0) < at]
        target = random_.choice(free or candidates)
        at = max(at, busy_until.get(target, 0.0))
        seconds = random_.uniform(*kind.seconds)
        busy_until[target] = at + seconds
        faults.append(Fault(at, kind, target, seconds))
    return faults


def _kinds(random_: random.Random) -> Iterator[Kind]:
    """Without end: every kind once, then by weight, brokers never close together."""
    first = list(Kind)
    random_.shuffle(first)
    yield from first
    since_broker = len(first) - first.index(Kind.KILL_BROKER)
    while True:
        deck = [kind for kind in Kind for _ in range(kind.weight)]
        while not _brokers_are_apart(deck, since_broker):
            random_.shuffle(deck)
        yield from deck
        since_broker = len(deck) - _broker_places(deck)[-1]


_BROKER_GAP = 5
"""Faults from one of a broker to the next."""


def _broker_places(deck: list[Kind]) -> list[int]:
    return [place for place, kind in enumerate(deck) if kind is Kind.KILL_BROKER]


def _brokers_are_apart(deck: list[Kind], since_broker: int) -> bool:
    places = [-since_broker, *_broker_places(deck)]
    return all(b - a >= _BROKER_GAP for a, b in pairwise(places))


def _targets(kind: Kind) -> list[str]:
    match kind:
        case Kind.KILL_BROKER:
            return [f"broker-{broker}" for broker in BROKERS]
        case Kind.KILL_POSTGRES:
            return ["postgres"]
        case Kind.ADD:
            return [spare(service) for service in INSTANCES]
    return permanent()


class Injector:
    """Lets faults happen to what runs."""

    def __init__(
        self, brokers: Brokers, postgres: Postgres, instances: Mapping[str, Instance]
    ) -> None:
        self._brokers = brokers
        self._postgres = postgres
        self._instances = instances
        self._brokers_turn = asyncio.Lock()
        self._postgres_turn = asyncio.Lock()
        self.struck: dict[Fault, datetime] = {}
        """When each fault has happened, UTC."""

    async def inject(self, fault: Fault) -> None:
        """Returns when it is healed again. Raises `ServerError` when a server does not heal."""
        match fault.kind:
            case Kind.KILL_BROKER:
                await self._kill_broker(fault)
            case Kind.KILL_POSTGRES:
                await self._kill_postgres(fault)
            case _:
                instance = self._instances[fault.target]
                async with instance.turn:
                    await self._disturb(instance, fault)

    async def _kill_broker(self, fault: Fault) -> None:
        async with self._brokers_turn:
            self._strike(fault)
            self._brokers.kill(int(fault.target.removeprefix("broker-")))
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(self._brokers.start_again)
            await asyncio.to_thread(self._brokers.wait_in_sync)

    async def _kill_postgres(self, fault: Fault) -> None:
        async with self._postgres_turn:
            self._strike(fault)
            self._postgres.kill()
            await asyncio.sleep(fault.seconds)
            await asyncio.to_thread(self._postgres.start_again)

    async def _disturb(self, instance: Instance, fault: Fault) -> None:
        self._strike(fault)
        match fault.kind:
            case Kind.KILL_INSTANCE:
                await instance.kill()
                await asyncio.sleep(fault.seconds)
                await instance.start()
            case Kind.PAUSE:
                instance.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.seconds)
                instance.signal(signal.SIGCONT)
            case Kind.REMOVE:
                await instance.stop()
                await asyncio.sleep(fault.seconds)
                await instance.start()
            case Kind.ADD:
                await instance.start()
                await asyncio.sleep(fault.seconds)
                await instance.stop()

    def _strike(self, fault: Fault) -> None:
        self.struck[fault] = datetime.now(UTC)
