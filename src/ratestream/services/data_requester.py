"""data_requester: asks each configured source on its own timer, and puts every answer on
`src-data`.

One instance at a time polls, the others stand by. A source that fails is counted, logged when it
starts to and when it has ended, and asked again; it never stops the service.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import httpx
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from ratestream.events import Snapshot, milliseconds
from ratestream.settings import Settings
from ratestream.sources.base import FAILURE_REASONS, Answer, Source, SourceError
from ratestream.sources.config import SourceSettings
from ratestream.sources.factory import make_source
from ratestream.sources.http import make_client, make_tls_context
from ratestream.streaming import App, MessageTooLargeError, Topic

_FIRST_TICK_SECONDS = 1.0
_KEPT_BYTES = 64 * 1024
_TOO_LARGE = "too_large_for_topic"
_jitter = wait_random_exponential(multiplier=0.5, max=30)

log = structlog.get_logger("ratestream.data_requester")


def build(settings: Settings) -> App:
    """Sends one `Snapshot` per answer to `src-data`, keyed by the source's name, with the time
    of receipt as the record's timestamp."""
    app = App("data_requester")
    snapshots = app.topic("src-data", value_type=Snapshot, **settings.topics.options())
    dead_letter = app.topic(
        "dead-letter", key_type=bytes, value_type=bytes, **settings.topics.dead_letter_options()
    )
    app.dead_letter = dead_letter
    app.leader_topic = snapshots
    metrics = SourceMetrics(app.registry)
    publisher = Publisher(app.id, snapshots, dead_letter)
    pollers = [Poller(section, publisher, metrics) for section in settings.data_requester.sources]
    for poller in pollers:
        app.timer(poller.schedule.tick, on_leader=True, name=f"poll {poller.name}")(poller.tick)

    @app.lifespan
    async def clients(_: App) -> AsyncIterator[None]:
        tls = make_tls_context()
        async with AsyncExitStack() as stack:
            for poller in pollers:
                poller.client = await stack.enter_async_context(make_client(poller.settings, tls))
            yield

    return app


class SourceMetrics:
    """What is known of each source. An instance that stands by has never had a success: of
    several instances, the newest counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        by_source = ["source"]
        self.requests = Counter(
            "ratestream_source_requests",
            "Times a source was asked, retries included.",
            by_source,
            registry=registry,
        )
        self.request_seconds = Histogram(
            "ratestream_source_request_seconds",
            "Time from the question to the whole answer, or to its failure.",
            by_source,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=registry,
        )
        self.failures = Counter(
            "ratestream_source_failures",
            "Polls that gave nothing after all retries.",
            ["source", "reason"],
            registry=registry,
        )
        self.skipped = Counter(
            "ratestream_source_skipped_rates",
            "Rates left out because their key names no known currency.",
            by_source,
            registry=registry,
        )
        self.age = Gauge(
            "ratestream_source_age_seconds",
            "Time since the newest rates were observed by the source. Of several instances, the "
            "smallest counts.",
            by_source,
            registry=registry,
        )
        self.last_success = Gauge(
            "ratestream_source_last_success_timestamp_seconds",
            "When a source last gave rates, seconds since the epoch; 0 before the first time. Of "
            "several instances, the largest counts.",
            by_source,
            registry=registry,
        )
        self.interval = Gauge(
            "ratestream_source_interval_seconds",
            "Time between two polls of a source, as its settings say.",
            by_source,
            registry=registry,
        )

    def expect(self, source: SourceSettings) -> None:
        """Show a source before its first poll: an alert must see one that never gives rates, and
        the increase of a counter that appears with its first event cannot be seen."""
        self.interval.labels(source.name).set(source.interval_seconds)
        self.last_success.labels(source.name)
        self.requests.labels(source.name)
        self.skipped.labels(source.name)
        for reason in (*FAILURE_REASONS, _TOO_LARGE):
            self.failures.labels(source.name, reason)


class Publisher:
    """Puts answers on `src-data`, and the beginning of those that it would not take on
    `dead-letter`."""

    def __init__(
        self, service: str, snapshots: Topic[str, Snapshot], dead_letter: Topic[bytes, bytes]
    ) -> None:
        self._service = service
        self._snapshots = snapshots
        self._dead_letter = dead_letter

    async def publish(self, snapshot: Snapshot) -> None:
        """Returns when the broker has it. Raises `MessageTooLargeError` after the beginning of
        a snapshot that is too large has gone to `dead-letter`."""
        timestamp = milliseconds(snapshot.received_at)
        try:
            await self._snapshots.send(key=snapshot.source, value=snapshot, timestamp=timestamp)
        except MessageTooLargeError as error:
            whole = self._snapshots.value_codec.encode(snapshot) or b""
            await self._dead_letter.send(
                key=snapshot.source.encode(),
                value=whole[:_KEPT_BYTES],
                timestamp=timestamp,
                headers={
                    "topic": self._snapshots.name.encode(),
                    "service": self._service.encode(),
                    "reason": f"{error}; cut to {_KEPT_BYTES} of {len(whole)} bytes".encode(),
                },
            )
            raise


class Schedule:
    """When to poll: at the first tick, and then at whole multiples of `interval` seconds after it.

    A timer first ticks after one interval, which for a daily source would be too late; so the
    timer ticks more often, in equal parts of the interval, and most ticks of a slow source are not
    due. Nothing drifts, and a tick that is late by less than half a part is the one it should be.
    """

    def __init__(self, interval: float) -> None:
        parts = math.ceil(interval / _FIRST_TICK_SECONDS)
        self.tick = interval / parts
        self._interval = interval
        self._start: float | None = None
        self._last = -1

    def is_due(self, now: float) -> bool:
        """Whether this tick is one to poll at; true once for each."""
        if self._start is None:
            self._start = now
        current = int((now - self._start + self.tick / 2) / self._interval)
        if current == self._last and self.tick < self._interval:
            return False
        self._last = current
        return True


class Poller:
    """Asks one source, one question at a time. `client` must be set before the first tick."""

    client: httpx.AsyncClient

    def __init__(
        self, settings: SourceSettings, publisher: Publisher, metrics: SourceMetrics
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.schedule = Schedule(settings.interval_seconds)
        self._source: Source = make_source(settings)
        self._publisher = publisher
        self._metrics = metrics
        self._not_before = -math.inf
        self._trouble: str | None = None
        metrics.expect(settings)

    async def tick(self) -> None:
        now = time.monotonic()
        if self.schedule.is_due(now) and now >= self._not_before:
            await self.poll()

    async def poll(self) -> None:
        """Ask, again if need be, and publish the answer; what fails is counted."""
        try:
            answer = await self._ask()
            received_at = datetime.now(UTC)
            observed_at = answer.observed_at or received_at
            await self._publisher.publish(
                Snapshot(self.name, observed_at, received_at, dict(answer.rates))
            )
        except SourceError as error:
            self._leave_alone(error.retry_after)
            self._failed(error.reason, str(error))
        except MessageTooLargeError as error:
            self._failed(_TOO_LARGE, str(error))
        else:
            self._succeeded(observed_at, answer.skipped)

    async def _ask(self) -> Answer:
        """With retries that end before the next poll is due. Raises `SourceError`."""
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_worth_retrying),
            wait=self._pause,
            stop=stop_after_attempt(1 + self.settings.max_retries)
            | stop_before_delay(self.settings.interval_seconds),
            reraise=True,
        )
        return await retrying(self._ask_once)

    async def _ask_once(self) -> Answer:
        self._metrics.requests.labels(self.name).inc()
        with self._metrics.request_seconds.labels(self.name).time():
            return await self._source.fetch(self.client)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next try: random, growing, and not before the source allows it."""
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, SourceError) else None
        return max(_jitter(state), self._bounded(asked or 0.0))

    def _bounded(self, retry_after: float) -> float:
        return min(retry_after, self.settings.max_retry_after_seconds)

    def _leave_alone(self, seconds: float | None) -> None:
        if seconds is not None:
            self._not_before = time.monotonic() + self._bounded(seconds)

    def _failed(self, reason: str, error: str) -> None:
        self._metrics.failures.labels(self.name, reason).inc()
        if self._trouble != reason:
            log.warning("source_failed", source=self.name, reason=reason, error=error)
        self._trouble = reason

    def _succeeded(self, observed_at: datetime, skipped: int) -> None:
        metrics = self._metrics
        metrics.skipped.labels(self.name).inc(skipped)
        metrics.last_success.labels(self.name).set_to_current_time()
        observed = observed_at.timestamp()
        metrics.age.labels(self.name).set_function(lambda: time.time() - observed)
        if self._trouble is not None:
            log.info("source_recovered", source=self.name, reason=self._trouble)
        self._trouble = None


def _is_worth_retrying(error: BaseException) -> bool:
    return isinstance(error, SourceError) and error.is_worth_retrying
