"""db_loader: quotes from Kafka into Postgres, exactly once, beside what else writes the same rows
into the same table of the same server.

The limit is `COPY` of these rows from a file: in the format that is the faster one of two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path

import asyncpg
import msgspec
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from rich.console import Console
from rich.progress import Progress

from benchmarks import BenchmarkError
from benchmarks.report import Report, Target
from benchmarks.rounds import Figures, Found, Subject, measure, ratio
from benchmarks.stage import PARTITIONS, producing, running, service, stage
from ratestream.events import Origin, Quote
from ratestream.storage.database import upgrade
from ratestream.storage.embedded import EmbeddedPostgres
from tests.support.processes import ServiceProcess

TOPIC = "processed-data"
LOADER, ORM, EXECUTEMANY = "db_loader", "one ORM insert a message", "executemany"
COPY = "COPY from a {} file"
FORMATS = ("binary", "csv")

_RATE = "rows_per_second"
_PAIRS = tuple(f"{base}{quote}" for base in ("EUR", "USD", "GBP", "CHF") for quote in (
    f"{a}{b}{c}" for a in "ABCDE" for b in "QRSTU" for c in "YZ"
))  # fmt: skip
_PAIRS_OF_A_SNAPSHOT = 50
_EXECUTEMANY_ROWS = 1_000
_PEER_SECONDS = 30.0
_COLUMNS = (
    *("origin_topic", "origin_partition", "origin_offset"),
    *("pair", "source", "value", "observed_at", "received_at"),
)
_STARTED = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
_LOOK_SECONDS = 0.02
_LOAD_SECONDS = 900.0
_BUFFER_RECORDS = 50_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--loader-quotes", type=int, default=2_000_000, help="of loader (default: %(default)s)"
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    with stage(console) as (bootstrap, folder, progress):
        found = compare(bootstrap, folder, progress, options.loader_quotes, options.rounds)
    targets = [
        Target("db_loader against COPY from a file", against_copy(found), at_least=0.5),
        Target("db_loader against one insert a message", ratio(found, _RATE, LOADER, ORM), 100.0),
    ]
    return Report("loader", {"quotes": options.loader_quotes}, found, targets)


def compare(
    bootstrap: str,
    folder: Path,
    progress: Progress,
    quotes: int,
    rounds: int,
    *,
    with_peers: bool = True,
) -> dict[str, Found]:
    """Rows per second of each subject, by its name. Without peers: the loader and the limit."""
    with _postgres(folder) as url:
        _fill(bootstrap, folder, progress, quotes)
        asyncio.run(_export_binary(url, folder))
        subjects = [
            Subject(LOADER, partial(_loader, bootstrap, folder, url, quotes)),
            *(Subject(COPY.format(each), partial(_copy, folder, url, each)) for each in FORMATS),
        ]
        if with_peers:
            subjects += [
                Subject(EXECUTEMANY, partial(_peer, bootstrap, url, _EXECUTEMANY_ROWS)),
                Subject(ORM, partial(_peer, bootstrap, url, 1)),
            ]
        return measure(subjects, rounds, progress, "loader")


def against_copy(found: dict[str, Found]) -> float:
    """The loader's rate as a part of the limit."""
    return min(ratio(found, _RATE, LOADER, COPY.format(each)) for each in FORMATS)


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """The one from the wheel, set as `ratestream up` sets it, with the tables in it."""
    with EmbeddedPostgres(folder / "postgres") as server:
        asyncio.run(upgrade(server.url))
        yield server.url


def _made_up(quotes: int) -> Iterator[Quote]:
    """In the order of their snapshots, which have 50 pairs each and come each millisecond."""
    for number in range(quotes):
        snapshot = number // _PAIRS_OF_A_SNAPSHOT
        at = _STARTED + timedelta(milliseconds=snapshot)
        yield Quote(
            _PAIRS[number % len(_PAIRS)],
            "demo",
            Decimal(10_000 + number * 7 % 90_001).scaleb(-4),
            at,
            at,
            Origin("src-data", snapshot % PARTITIONS, snapshot // PARTITIONS),
        )


def _fill(bootstrap: str, folder: Path, progress: Progress, quotes: int) -> None:
    """The topic, and a CSV file of the same rows."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for made in admin.create_topics([NewTopic(TOPIC, PARTITIONS)]).values():
        made.result()
    bar = progress.add_task("quotes made", total=quotes)
    encode = msgspec.json.Encoder(decimal_format="string").encode
    with producing(bootstrap, linger_ms=50) as producer, _file(folder, "csv").open("w") as rows:
        for quote in _made_up(quotes):
            producer.produce(TOPIC, key=quote.pair, value=encode(quote))
            rows.write(_csv(quote))
            if len(producer) > _BUFFER_RECORDS:
                progress.advance(bar, _BUFFER_RECORDS - producer.poll(0.1))
    progress.update(bar, completed=quotes)


def _csv(quote: Quote) -> str:
    origin = quote.origin
    return (
        f"{origin.topic},{origin.partition},{origin.offset},{quote.pair},{quote.source},"
        f"{quote.value},{quote.observed_at},{quote.received_at}\n"
    )


def _file(folder: Path, form: str) -> Path:
    return folder / f"rows.{form}"


async def _export_binary(url: str, folder: Path) -> None:
    """The same rows in Postgres's binary format, written by Postgres."""
    connection = await asyncpg.connect(url)
    try:
        await connection.copy_to_table(
            "quotes", source=_file(folder, "csv"), columns=_COLUMNS, format="csv"
        )
        await connection.copy_from_query(
            f"SELECT {', '.join(_COLUMNS)} FROM quotes",
            output=_file(folder, "binary"),
            format="binary",
        )
    finally:
        await connection.close()


def _copy(folder: Path, url: str, form: str) -> Figures:
    return asyncio.run(_timed_copy(folder, url, form))


async def _timed_copy(folder: Path, url: str, form: str) -> Figures:
    connection = await asyncpg.connect(url)
    try:
        await _empty(connection)
        started = time.monotonic()
        done = await connection.copy_to_table(
            "quotes", source=_file(folder, form), columns=_COLUMNS, format=form
        )
        return {_RATE: int(done.split()[1]) / (time.monotonic() - started)}
    finally:
        await connection.close()


async def _empty(connection: asyncpg.Connection) -> None:
    """The same start for everybody: no rows, nothing to be written back."""
    await connection.execute("TRUNCATE quotes, averages, series, consumer_offsets, origin_cluster")
    await connection.execute("CHECKPOINT")


async def _empty_all(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await _empty(connection)
    finally:
        await connection.close()


def _loader(bootstrap: str, folder: Path, url: str, quotes: int) -> Figures:
    """The real service, from its first row to the commit of its last one."""
    asyncio.run(_empty_all(url))
    _forget_group(bootstrap)
    data = folder / "db_loader"
    loader = service("db_loader", bootstrap, data, {"RATESTREAM_POSTGRES__URL": url})
    try:
        with running(loader):
            return asyncio.run(_until_loaded(url, quotes, loader))
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _forget_group(bootstrap: str) -> None:
    """Where Postgres knows nothing of a partition, the loader starts where its group stands."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for each in admin.list_consumer_groups().result().valid or ():
        if each.group_id == "db_loader":
            admin.delete_consumer_groups(["db_loader"])["db_loader"].result()


async def _until_loaded(url: str, quotes: int, loader: ServiceProcess) -> Figures:
    connection = await asyncpg.connect(url)
    deadline = time.monotonic() + _LOAD_SECONDS
    query = "SELECT coalesce(sum(next_offset), 0) FROM consumer_offsets"
    try:
        while await connection.fetchval(query) < quotes:
            if loader.process is None or loader.process.poll() is not None:
                raise BenchmarkError(f"db_loader ended by itself: {loader.output()}")
            if time.monotonic() > deadline:
                raise BenchmarkError(f"not loaded within {_LOAD_SECONDS} s: {loader.output()}")
            await asyncio.sleep(_LOOK_SECONDS)
        ended = await connection.fetchval("SELECT clock_timestamp()")
        rows, began = await connection.fetchrow("SELECT count(*), min(stored_at) FROM quotes")
    finally:
        await connection.close()
    if rows != quotes:
        raise BenchmarkError(f"{rows} rows of {quotes} quotes")
    return {_RATE: rows / (ended - began).total_seconds()}


def _peer(bootstrap: str, url: str, batch: int) -> Figures:
    asyncio.run(_empty_all(url))
    command = [sys.executable, "-m", "benchmarks.plain.loader"]
    ended = subprocess.run(
        [*command, bootstrap, url, str(_PEER_SECONDS), str(batch)],
        capture_output=True,
        text=True,
        timeout=10 * _PEER_SECONDS,
        check=False,
    )
    if ended.returncode != 0:
        raise BenchmarkError(f"the plain loader failed: {ended.stderr[-2000:]}")
    answer = json.loads(ended.stdout)
    return {_RATE: answer["rows"] / answer["seconds"]}
