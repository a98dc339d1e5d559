"""db_loader: writes quotes and averages to Postgres, in batches, each row once.

Postgres keeps the offsets, too: rows are added and offsets moved in one transaction, so that both
have happened or neither, whatever ends this process. Reading starts where Postgres stands, and
whoever finds that it stands elsewhere than expected writes nothing and starts there.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from tenacity import (
    AsyncRetrying,
    retry_base,
    retry_if_exception_type,
    retry_if_not_exception_type,
    wait_random_exponential,
)

from ratestream.events import Average, Quote
from ratestream.settings import RuntimeSettings, Settings
from ratestream.storage.database import Database, DatabaseOptions
from ratestream.storage.errors import (
    DatabaseAccessError,
    DatabaseUnavailableError,
    UnstorableError,
)
from ratestream.storage.usage import Usage, measure_usage
from ratestream.storage.writer import Writer
from ratestream.streaming import App, Batch, Move, Stream, TopicPartition

_RETENTION_SECONDS = 600.0
_USAGE_SECONDS = 60.0
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_ROWS = (1, 10, 100, 1_000, 10_000, 100_000)

_UNKNOWN = Usage(math.nan, math.nan)

_IS_AWAY = retry_if_exception_type(DatabaseUnavailableError)
_DOES_NOT_REFUSE = retry_if_not_exception_type(DatabaseAccessError)

Write = Callable[[Sequence[Any], Sequence[Move]], Awaitable[int]]


def build(settings: Settings) -> App:
    """Reads `processed-data` and `aggregated-data`. While Postgres is away it waits and tries
    again, with what it has; a Postgres that refuses it at the start ends it. What can never be
    stored goes to `dead-letter`, alone."""
    app = App("db_loader")
    options = settings.topics.options()
    quotes = app.topic("processed-data", value_type=Quote, **options)
    averages = app.topic("aggregated-data", value_type=Average, **options)
    app.dead_letter = app.topic(
        "dead-letter", key_type=bytes, value_type=bytes, **settings.topics.dead_letter_options()
    )
    postgres, section = settings.postgres, settings.db_loader
    database = Database(postgres.dsn(), DatabaseOptions(app.id, pool_size=postgres.pool_size))
    writer = Writer(database)
    until_done = _retrying(settings.runtime, _IS_AWAY)
    unless_refused = _retrying(settings.runtime, _IS_AWAY & _DOES_NOT_REFUSE)
    offsets = Offsets(writer, until_done)
    metrics = LoaderMetrics(app.registry, database)
    app.add_readiness_check("postgres", lambda: database.trouble)

    @app.lifespan
    async def storage(app: App) -> AsyncIterator[None]:
        try:
            if postgres.migrate:
                await unless_refused(database.upgrade, postgres.roles())
            await unless_refused(writer.check)
            await unless_refused(writer.claim_cluster, app.cluster_id)
            yield
        finally:
            await database.close()

    @app.agent(quotes, offsets_in=offsets)
    async def load_quotes(stream: Stream[Quote]) -> None:
        await load(stream, "quotes", writer.write_quotes)

    @app.agent(averages, offsets_in=offsets)
    async def load_averages(stream: Stream[Average]) -> None:
        await load(stream, "averages", writer.write_averages)

    async def load(stream: Stream[Any], table: str, write: Write) -> None:
        batches = stream.batches(section.batch_max_rows, within=section.batch_seconds)
        async for batch in batches:
            await store(stream, table, write, batch)

    async def store(stream: Stream[Any], table: str, write: Write, batch: Batch[Any]) -> None:
        try:
            with metrics.write_seconds.labels(table).time():
                # When an answer is lost the next attempt may be refused as written already.
                new: int = await until_done(write, batch.values, batch.moves)
        except UnstorableError as error:
            if len(batch.events) == 1:
                await stream.reject(str(error), of=batch.events[0].record)
                await until_done(write, [], batch.moves)
                return
            for half in batch.halves():  # finds the bad one and stores the others
                await store(stream, table, write, half)
        else:
            metrics.observe(table, batch.values, new)

    @app.task
    @app.timer(_USAGE_SECONDS)
    async def measure_database() -> None:
        try:
            metrics.usage = await measure_usage(database)
        except DatabaseUnavailableError:
            metrics.usage = None  # why is said by the database

    if postgres.retention_days:

        @app.timer(_RETENTION_SECONDS)
        async def delete_old_rows() -> None:
            try:
                deleted = await writer.delete_older_than(postgres.retention_days)
            except DatabaseUnavailableError:
                return  # said by the database; the next tick deletes what this one did not
            metrics.deleted.inc(deleted)

    return app


class Offsets:
    """Where Postgres stands, for the runtime to start from; while Postgres is away it waits."""

    def __init__(self, writer: Writer, until_done: AsyncRetrying) -> None:
        self._writer = writer
        self._until_done = until_done

    async def positions(
        self, partitions: Sequence[TopicPartition], topic_ids: Mapping[str, str]
    ) -> dict[TopicPartition, int]:
        found: dict[TopicPartition, int] = await self._until_done(
            self._writer.positions, partitions, topic_ids
        )
        return found


def _retrying(runtime: RuntimeSettings, reason: retry_base) -> AsyncRetrying:
    """Tries for as long as there is this reason, at growing intervals, with jitter."""
    return AsyncRetrying(
        retry=reason,
        wait=wait_random_exponential(
            multiplier=runtime.retry_backoff_min, max=runtime.retry_backoff_max
        ),
    )


class LoaderMetrics:
    """What the loader counts, for each of its tables."""

    def __init__(self, registry: CollectorRegistry, database: Database) -> None:
        table = ["table"]
        self.written = Counter(
            "ratestream_rows_written", "Rows that were new.", table, registry=registry
        )
        self.repeated = Counter(
            "ratestream_rows_repeated",
            "Rows that were there already: their records had been read before.",
            table,
            registry=registry,
        )
        self.deleted = Counter(
            "ratestream_rows_deleted", "Rows deleted because of their age.", registry=registry
        )
        self.batch_rows = Histogram(
            "ratestream_write_batch_rows",
            "Rows of one transaction.",
            table,
            buckets=_ROWS,
            registry=registry,
        )
        self.write_seconds = Histogram(
            "ratestream_write_seconds",
            "Time until a batch was committed, waiting for Postgres included.",
            table,
            buckets=_SECONDS,
            registry=registry,
        )
        self.delay = Histogram(
            "ratestream_delay_seconds",
            "Time from the receipt of a quote to its being stored; of batches that are all new.",
            table,
            buckets=_SECONDS,
            registry=registry,
        )
        self.usage: Usage | None = None
        Gauge(
            "ratestream_database_size_bytes",
            "Bytes of the database on its server's disk, indexes included; measured each minute, "
            "NaN while Postgres does not answer.",
            registry=registry,
        ).set_function(lambda: self._used(database).bytes)
        Gauge(
            "ratestream_database_connections",
            "Connections to the database, of all clients; counted each minute, NaN while Postgres "
            "does not answer.",
            registry=registry,
        ).set_function(lambda: self._used(database).connections)
        for name in ("quotes", "averages"):
            for counted in (self.written, self.repeated, self.delay):
                counted.labels(name)
        Gauge(
            "ratestream_database_up", "1 while Postgres answers.", registry=registry
        ).set_function(lambda: database.trouble is None)

    def _used(self, database: Database) -> Usage:
        return _UNKNOWN if self.usage is None or database.trouble else self.usage

    def observe(self, table: str, rows: Sequence[Quote | Average], new: int) -> None:
        """After a batch was committed, `new` rows of which were not there before."""
        self.written.labels(table).inc(new)
        self.repeated.labels(table).inc(len(rows) - new)
        self.batch_rows.labels(table).observe(len(rows))
        if new == len(rows):
            now = time.time()
            delays = [now - row.received_at.timestamp() for row in rows]
            _observe_all(self.delay.labels(table), delays)


def _observe_all(histogram: Histogram, values: Iterable[float]) -> None:
    """As `observe` for each of them, which takes as long as writing the row does. The library has
    nothing for many at once: this is what its `observe` does, once for each bucket."""
    ordered, before = sorted(values), 0
    for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True):
        until = bisect_right(ordered, bound, before)
        bucket.inc(until - before)
        before = until
    histogram._sum.inc(sum(ordered))
