"""Growth: how long the API's reads take, against the rows that are stored.

The reads are api_gateway's own (`storage/reader.py`), one at a time, on a Postgres of its own with
200 pairs of one source. Rows are those of `quotes`, and as many again are in `averages`; they are
written in the order of time, the pairs in turn, as they would come.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
from rich.console import Console
from rich.progress import Progress

from benchmarks import BenchmarkError
from benchmarks.figures import percentile
from benchmarks.report import Report
from benchmarks.rounds import Figures, Subject, measure
from benchmarks.stage import postgres, progress_bars
from ratestream.storage.database import Database
from ratestream.storage.reader import Reader

PAIRS = 200

_LIMIT = 10
_ROW_BYTES = 700
"""Of a row in each table with its indexes, and what building them takes, roughly."""

_MILLISECONDS = 1000
_TABLES = {"quotes": "", "averages": ", window_fill"}
_KEY = """
SELECT pg_get_constraintdef(c.oid) AS key, conname AS key_name FROM pg_constraint AS c
WHERE conrelid = $1::regclass AND contype = 'p'
"""
_OTHER_INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS definition
FROM pg_index WHERE indrelid = $1::regclass AND NOT indisprimary
"""
_FILL = """
INSERT INTO {table} (pair, source, value, observed_at, received_at,
    origin_topic, origin_partition, origin_offset{more})
SELECT 'P' || lpad((n % {pairs})::text, 3, '0') || 'XX', 's0', (n % 100000 + 1) / 1000.0, at, at,
    'src-data', n % 8, n / 8{values}
FROM generate_series(1, {rows}) AS n,
    LATERAL (SELECT now() - ({rows} - n) * interval '1 millisecond' AS at) AS moment
"""
_SERIES = """
INSERT INTO series (pair, source)
SELECT 'P' || lpad(n::text, 3, '0') || 'XX', 's0' FROM generate_series(0, {pairs} - 1) AS n
"""

Read = Callable[[Reader, str], Awaitable[object]]


async def _newest(reader: Reader, pair: str) -> object:
    return await reader.newest_quotes(pair, _LIMIT)


async def _current_averages(reader: Reader, pair: str) -> object:
    return await reader.current_averages(PAIRS)


async def _average_of_a_pair(reader: Reader, pair: str) -> object:
    return await reader.current_averages(_LIMIT, pair)


async def _pairs(reader: Reader, pair: str) -> object:
    return await reader.pairs(PAIRS)


READS: dict[str, Read] = {
    "10 newest quotes of a pair": _newest,
    "average of a pair": _average_of_a_pair,
    "averages of all 200 pairs": _current_averages,
    "first and last of all 200 pairs": _pairs,
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--row-counts",
        type=int,
        nargs="+",
        default=[100_000, 1_000_000, 10_000_000],
        help="stored in each table (default: 100000 1000000 10000000; 100000000 takes an hour and "
        "70 GB)",
    )
    parser.add_argument(
        "--asked", type=int, default=200, help="times each read is asked a round (%(default)s)"
    )


def run(options: argparse.Namespace, console: Console) -> Report:
    with (
        TemporaryDirectory(prefix="ratestream-benchmark-") as name,
        postgres(folder := Path(name)) as server,
        progress_bars(console) as progress,
    ):
        _check_room(folder, sum(options.row_counts))
        databases = {
            rows: asyncio.run(_filled(server, rows, progress)) for rows in options.row_counts
        }
        subjects = [
            Subject(f"{what}, {rows:,} rows", partial(_figures, database, read, options.asked))
            for what, read in READS.items()
            for rows, database in databases.items()
        ]
        found = measure(subjects, options.rounds, progress, "queries")
    return Report("queries", {"rows": options.row_counts, "asked": options.asked}, found)


def _check_room(folder: Path, rows: int) -> None:
    needed, free = rows * _ROW_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise BenchmarkError(
            f"{rows:,} rows take some {needed / 1e9:.0f} GB and {folder} has {free / 1e9:.0f} GB: "
            "ask for fewer with --row-counts, or set TMPDIR to another disk"
        )


async def _filled(server: str, rows: int, progress: Progress) -> str:
    """The URL of a new database with so many rows in each table."""
    url = server.replace("/postgres?", f"/rows_{rows}?")
    await _execute(server, f"CREATE DATABASE rows_{rows}")
    database = Database(url)
    try:
        await database.upgrade()
    finally:
        await database.close()
    bar = progress.add_task(f"{rows:,} rows written", total=len(_TABLES))
    await _execute(url, _SERIES.format(pairs=PAIRS))
    for table in _TABLES:
        await _fill(url, table, rows)
        progress.advance(bar)
    progress.remove_task(bar)
    return url


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _fill(url: str, table: str, rows: int) -> None:
    """Indexes are built when the rows are there: much faster, and the same to a reader."""
    more = _TABLES[table]
    connection = await asyncpg.connect(url)
    try:
        ((key, key_name),) = await connection.fetch(_KEY, table)
        indexes = await connection.fetch(_OTHER_INDEXES, table)
        await connection.execute("SET maintenance_work_mem = '512MB'")
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {key_name}")
        for index in indexes:
            await connection.execute(f"DROP INDEX {index['name']}")
        await connection.execute(
            _FILL.format(
                table=table, rows=rows, pairs=PAIRS, more=more, values=", 10" if more else ""
            )
        )
        await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {key_name} {key}")
        for index in indexes:
            await connection.execute(index["definition"])
        await connection.execute(f"VACUUM (ANALYZE) {table}")
    finally:
        await connection.close()


def _figures(url: str, read: Read, asked: int) -> Figures:
    seconds = asyncio.run(_asked(url, read, asked))
    return {f"p{at}_ms": percentile(seconds, at) * _MILLISECONDS for at in (50, 99)}


async def _asked(url: str, read: Read, times: int) -> Sequence[float]:
    """Seconds that each took. The first answers, which prepare statements, are not counted."""
    database = Database(url)
    reader = Reader(database)
    chosen = random.Random(times)
    try:
        seconds = []
        for number in range(-_LIMIT, times):
            pair = f"P{chosen.randrange(PAIRS):03}XX"
            started = time.perf_counter()
            if not await read(reader, pair):
                raise BenchmarkError(f"{pair} has no answer")
            if number >= 0:
                seconds.append(time.perf_counter() - started)
        return seconds
    finally:
        await database.close()
