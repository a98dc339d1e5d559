"""data_requester as it runs: real sources over HTTP, the real worker, the local broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import structlog

from ratestream.events import Snapshot
from ratestream.services.data_requester import build
from ratestream.settings import DataRequesterSettings, Settings
from ratestream.sources.config import DemoSource, EcbSource
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.testing import AppTester
from ratestream.streaming.types import Record
from tests.support.http_site import DOCUMENTS, Reply, Site, http_site

ECB = Reply((DOCUMENTS / "ecb-daily.xml").read_bytes())
HTML = Reply((DOCUMENTS / "ddos-protection.html").read_bytes())
DEMO = Reply(b'{"observed_at":"2005-04-01T14:00:00Z","rates":{"USDRUB":"27.86","EURRUB":36.10}}')


@asynccontextmanager
async def requester(
    *sources: DemoSource | EcbSource, broker: LocalBroker | None = None
) -> AsyncIterator[AppTester]:
    settings = Settings(data_requester=DataRequesterSettings(sources=sources))
    async with AppTester(build(settings), broker) as tester:
        yield tester


@asynccontextmanager
async def asking(*replies: Reply, **source: Any) -> AsyncIterator[tuple[AppTester, Site]]:
    """A requester with one source that answers `replies` in turn, the last over and over."""
    async with http_site(*replies) as site:
        section = DemoSource(url=site.url, **{"interval_seconds": 0.02, **source})
        async with requester(section) as tester:
            yield tester, site


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def metric(tester: AppTester, name: str, **labels: str) -> float:
    return tester.app.registry.get_sample_value(name, labels) or 0.0


def failures(tester: AppTester, reason: str) -> float:
    return metric(tester, "ratestream_source_failures_total", source="demo", reason=reason)


def shares(tester: AppTester) -> float:
    return metric(tester, "ratestream_assigned_partitions")


async def snapshots(tester: AppTester, at_least: int = 1) -> list[Snapshot]:
    await until(lambda: len(tester.records("src-data")) >= at_least)
    return [each for each in tester.received("src-data") if isinstance(each, Snapshot)]


def test_an_answer_becomes_a_snapshot_keyed_by_its_source() -> None:
    async def main() -> tuple[list[Snapshot], Record]:
        async with asking(DEMO) as (tester, _):
            return await snapshots(tester), tester.records("src-data")[0]

    (snapshot, *_), record = asyncio.run(main())
    assert snapshot.source == "demo"
    assert snapshot.observed_at == datetime(2005, 4, 1, 14, tzinfo=UTC)
    assert {pair: bytes(rate) for pair, rate in snapshot.rates.items()} == {
        "USDRUB": b'"27.86"',
        "EURRUB": b"36.10",
    }
    assert record.key == b"demo"
    assert record.timestamp == int(snapshot.received_at.timestamp() * 1000)


def test_a_slow_source_is_asked_at_the_start_and_not_an_interval_later() -> None:
    async def main() -> list[Snapshot]:
        async with http_site(ECB) as site, requester(EcbSource(url=site.url)) as tester:
            return await snapshots(tester)

    assert asyncio.run(main())[0].source == "ecb"


def test_several_sources_are_asked_beside_each_other() -> None:
    async def main() -> set[str]:
        async with http_site(ECB) as ecb, http_site(DEMO) as demo, http_site(ECB) as silent:
            silent.replies = [Reply(ECB.body, hangs=True)]
            async with requester(
                EcbSource(name="silent", url=silent.url, interval_seconds=0.02),
                EcbSource(url=ecb.url, interval_seconds=0.02),
                DemoSource(url=demo.url, interval_seconds=0.02),
            ) as tester:
                seen: set[str] = set()
                while seen < {"ecb", "demo"}:
                    seen = {each.source for each in await snapshots(tester)}
                return seen

    assert asyncio.run(main()) == {"ecb", "demo"}


def test_an_unusable_answer_is_counted_logged_once_and_survived() -> None:
    async def main() -> float:
        async with asking(*[HTML] * 5, DEMO) as (tester, _):
            await snapshots(tester)
            return failures(tester, "unusable")

    with structlog.testing.capture_logs() as logs:
        assert asyncio.run(main()) == 5
    ours = [each["event"] for each in logs if each["event"].startswith("source_")]
    assert ours == ["source_failed", "source_recovered"]


def test_a_failing_server_is_asked_again_before_the_next_poll() -> None:
    async def main() -> tuple[float, int]:
        async with asking(Reply(status=500), DEMO, interval_seconds=30.0) as (tester, site):
            await snapshots(tester)
            return failures(tester, "server_error"), len(site.requests)

    assert asyncio.run(main()) == (0, 2)


def test_retries_have_an_end() -> None:
    async def main() -> tuple[float, float]:
        async with asking(Reply(status=500), interval_seconds=60.0, max_retries=2) as (tester, _):
            await until(lambda: failures(tester, "server_error") == 1)
            requests = metric(tester, "ratestream_source_requests_total", source="demo")
            return requests, metric(
                tester, "ratestream_source_request_seconds_count", source="demo"
            )

    assert asyncio.run(main()) == (3, 3)


def test_a_source_that_asks_for_patience_is_left_alone() -> None:
    async def main() -> int:
        later = Reply(status=429, headers=(("Retry-After", "3600"),))
        async with asking(later, DEMO) as (tester, site):
            await until(lambda: failures(tester, "rate_limited") == 1)
            await asyncio.sleep(0.2)  # ten intervals
            return len(site.requests)

    assert asyncio.run(main()) == 1


def test_a_retry_waits_as_long_as_the_source_asks() -> None:
    async def main() -> float:
        busy = Reply(status=503, headers=(("Retry-After", "1"),))
        async with asking(busy, DEMO, interval_seconds=30.0) as (tester, site):
            await snapshots(tester)
            return site.asked_at[1] - site.asked_at[0]

    assert asyncio.run(main()) >= 1


def test_the_patience_asked_for_has_a_bound() -> None:
    async def main() -> float:
        later = Reply(status=429, headers=(("Retry-After", "3600"),))
        async with asking(later, DEMO, max_retry_after_seconds=0.05) as (tester, _):
            await snapshots(tester)
            return failures(tester, "rate_limited")

    assert asyncio.run(main()) == 1


def test_a_silent_source_is_a_counted_timeout() -> None:
    async def main() -> int:
        silent = Reply(DEMO.body, hangs=True)
        async with asking(silent, silent, DEMO, timeout_seconds=0.1) as (tester, _):
            return len(await snapshots(tester)) and int(failures(tester, "timeout"))

    assert asyncio.run(main()) == 2


def test_the_beginning_of_what_src_data_does_not_take_goes_to_dead_letter() -> None:
    rates = ",".join(f'"{n:06d}":"{"1" * 100}"' for n in range(45_000))
    huge = Reply(f'{{"observed_at":"2005-04-01T14:00:00Z","rates":{{{rates}}}}}'.encode())
    assert len(huge.body) > 5_000_000

    async def main() -> tuple[Record, float, float]:
        async with asking(huge, DEMO, max_response_bytes=8_000_000) as (tester, _):
            await snapshots(tester)
            dead_letters = metric(tester, "ratestream_dead_letters_total")
            counted = failures(tester, "too_large_for_topic")
            return tester.records("dead-letter")[0], counted, dead_letters

    record, counted, dead_letters = asyncio.run(main())
    headers = dict(record.headers)
    assert (counted, dead_letters) == (1, 1)
    assert record.key == b"demo"
    assert record.value is not None
    assert record.value.startswith(b'{"source":"demo"')
    assert len(record.value) == 64 * 1024
    assert headers["topic"] == b"src-data"
    assert headers["service"] == b"data_requester"
    assert b"max_message_bytes allows 1048576; cut to 65536 of" in headers["reason"]


def test_a_longer_answer_than_allowed_is_cut_before_kafka() -> None:
    async def main() -> tuple[float, int]:
        async with asking(Reply(b" " * 5_000_000), DEMO) as (tester, _):
            await snapshots(tester)
            return failures(tester, "too_large"), len(tester.records("dead-letter"))

    assert asyncio.run(main()) == (1, 0)


def test_age_is_the_time_since_the_rates_were_observed() -> None:
    async def main() -> tuple[str, float, float]:
        async with asking(DEMO, HTML) as (tester, _):
            await snapshots(tester)
            await until(lambda: failures(tester, "unusable") > 0)
            async with httpx.AsyncClient(trust_env=False) as client:
                page = (await client.get(f"{tester.worker.address}/metrics")).text
            age = metric(tester, "ratestream_source_age_seconds", source="demo")
            last = metric(tester, "ratestream_source_last_success_timestamp_seconds", source="demo")
            return page, age, last

    page, age, last = asyncio.run(main())
    since = datetime.now(UTC) - datetime(2005, 4, 1, 14, tzinfo=UTC)
    assert abs(age - since.total_seconds()) < 60
    assert abs(last - datetime.now(UTC).timestamp()) < 60
    assert 'ratestream_source_failures_total{reason="unusable",source="demo"}' in page


def test_a_source_that_never_gives_rates_is_seen_from_the_start() -> None:
    async def main() -> dict[str, float | None]:
        async with asking(Reply(DEMO.body, hangs=True), interval_seconds=7.0) as (tester, _):
            value = tester.app.registry.get_sample_value
            of_demo = {"source": "demo"}
            timeout = {"source": "demo", "reason": "timeout"}
            return {
                "interval": value("ratestream_source_interval_seconds", of_demo),
                "success": value("ratestream_source_last_success_timestamp_seconds", of_demo),
                "age": value("ratestream_source_age_seconds", of_demo),
                "failures": value("ratestream_source_failures_total", timeout),
            }

    assert asyncio.run(main()) == {"interval": 7.0, "success": 0.0, "age": None, "failures": 0.0}


def test_one_of_two_instances_asks_and_the_other_takes_over() -> None:
    async def main() -> None:
        broker = LocalBroker(None)
        async with http_site(DEMO) as site:
            source = DemoSource(url=site.url, interval_seconds=0.02)
            async with requester(source, broker=broker) as first:
                await snapshots(first)
                async with requester(source, broker=broker) as second:
                    both = (first, second)
                    await until(lambda: all(shares(each) == 4 for each in both))
                    idle = next(each for each in both if not each.worker.is_leader)
                    asked = "ratestream_source_requests_total"
                    before = metric(idle, asked, source="demo")
                    seen = len(site.requests)
                    await until(lambda: len(site.requests) > seen + 3)
                    assert metric(idle, asked, source="demo") == before
                    leader = second if idle is first else first
                    leader.worker.stop()
                    await until(lambda: idle.worker.is_leader)
                    await until(lambda: metric(idle, asked, source="demo") > before)
        broker.close()

    asyncio.run(main())
