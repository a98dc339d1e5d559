"""db_loader: writes quotes and averages to Postgres, in batches, each row once.

A batch is done when Postgres has committed it; until then its records are not, so whatever ends
this process, they are read again, and the rows that are there already stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
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
from ratestream.streaming import App, Event, Stream

_RETENTION_SECONDS = 600.0
_USAGE_SECONDS = 60.0
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_ROWS = (1, 10, 100, 1_000, 10_000, 100_000)

_UNKNOWN = Usage(math.nan, math.nan)

_IS_AWAY = retry_if_exception_type(DatabaseUnavailableError)
_DOES_NOT_REFUSE = retry_if_not_exception_type(DatabaseAccessError)

Write = Callable[[Sequence[Any]], Awaitable[int]]


def build(settings: Settings) -> App:
    """Reads `processed-data` and `aggregated-data`. While Postgres is away it waits and tries
    again, and commits nothing; a Postgres that refuses it at the start ends it. What can never be
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

    @app.agent(quotes)
    async def load_quotes(stream: Stream[Quote]) -> None:
        await load(stream, "quotes", writer.write_quotes)

    @app.agent(averages)
    async def load_averages(stream: Stream[Average]) -> None:
        await load(stream, "averages", writer.write_averages)

    async def load(stream: Stream[Any], table: str, write: Write) -> None:
        batches = stream.take(section.batch_max_rows, within=section.batch_seconds)
        async for events in batches:
            await store(stream, table, write, events)

    async def store(stream: Stream[Any], table: str, write: Write, events: Sequence[Event]) -> None:
        rows = [event.value for event in events]
        try:
            with metrics.write_seconds.labels(table).time():
                new: int = await until_done(write, rows)
        except UnstorableError as error:
            if len(events) == 1:
                await stream.reject(str(error), of=events[0].record)
                return
            middle = len(events) // 2  # halving finds the bad one and stores the others
            await store(stream, table, write, events[:middle])
            await store(stream, table, write, events[middle:])
        else:
            metrics.observe(table, rows, new)

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
            now = datetime.now(UTC)
            delay = self.delay.labels(table)
            for row in rows:
                delay.observe((now - row.received_at).total_seconds())
