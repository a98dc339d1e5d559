"""Topics and lag, as operators see them, on the local broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from ratestream.cli.builders import builders
from ratestream.operations import lag
from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Finding, Severity, is_fine
from ratestream.operations.lag import check_lag
from ratestream.operations.topics import TOMBSTONES_MS, CheckTopics, CreateTopics
from ratestream.settings import Settings, TopicSettings
from ratestream.streaming import (
    AccessError,
    BrokerError,
    ConsumerConfig,
    OutgoingRecord,
    TopicPartition,
    store,
)
from ratestream.streaming.local import LocalBroker
from ratestream.streaming.local.consumer import LocalConsumer
from ratestream.streaming.types import TopicConfig, TopicDescription
from tests.support.brokers import send

CHANGELOG = "data-aggregator-windows-changelog"
PROBE = "transaction-probe"
TOPICS = ["aggregated-data", CHANGELOG, "dead-letter", "processed-data", "src-data", PROBE]


@pytest.fixture
def broker() -> Iterator[LocalBroker]:
    with closing(LocalBroker(None)) as broker:
        yield broker


def deployment(broker: LocalBroker, **topics: Any) -> Deployment:
    return Deployment(Settings(topics=TopicSettings(**topics)), lambda: broker, builders())


def create(deployment: Deployment) -> dict[str, bool]:
    return {each.name: each.made for each in asyncio.run(CreateTopics().run(deployment))}


def check(deployment: Deployment) -> dict[str, Finding]:
    """By the topic's name; fails when there are several of one."""
    findings = asyncio.run(CheckTopics().run(deployment))
    by_topic = {each.subject.removeprefix("topic "): each for each in findings}
    assert len(by_topic) == len(findings)
    return by_topic


def make(broker: LocalBroker, deployment: Deployment, name: str, **changes: Any) -> None:
    broker.create_topics([replace(deployment.plan.topics[name], **changes)])


def test_all_topics_are_made_once(broker: LocalBroker) -> None:
    here = deployment(broker)
    assert create(here) == dict.fromkeys(TOPICS, True)
    assert create(here) == dict.fromkeys(TOPICS, False)
    assert {each.severity for each in check(here).values()} == {Severity.OK}


def test_a_changelog_is_made_as_large_as_its_source_is(broker: LocalBroker) -> None:
    here = deployment(broker)
    make(broker, here, "processed-data", partitions=3)
    create(here)
    assert broker.describe_topics([CHANGELOG])[CHANGELOG].partitions == 3
    assert check(here)[CHANGELOG].severity is Severity.OK


def test_a_missing_topic_is_wrong(broker: LocalBroker) -> None:
    found = check(deployment(broker))
    assert list(found) == TOPICS
    assert {each.severity for each in found.values()} == {Severity.WRONG}
    assert "ratestream topics create" in found["src-data"].advice


def test_a_changelog_of_another_size_than_its_source_is_wrong(broker: LocalBroker) -> None:
    here = deployment(broker)
    make(broker, here, CHANGELOG, partitions=3)
    create(here)
    finding = check(here)[CHANGELOG]
    assert finding.severity is Severity.WRONG
    assert "has 3 partitions and processed-data, which it is split like, has 8" in finding.text


@pytest.mark.parametrize(
    ("changes", "severity", "text"),
    [
        ({"partitions": 3}, Severity.WARNING, "has 3 partitions, topics.partitions is 8"),
        ({"cleanup_policy": "compact"}, Severity.WRONG, "has cleanup.policy=compact"),
        ({"retention_ms": 3_600_000}, Severity.WARNING, "keeps records for 1 h"),
        ({"max_message_bytes": 1000}, Severity.WRONG, "takes records of 1000 bytes"),
    ],
)
def test_a_topic_that_differs_from_the_settings_is_told(
    changes: dict[str, Any], severity: Severity, text: str, broker: LocalBroker
) -> None:
    here = deployment(broker)
    make(broker, here, "src-data", **changes)
    create(here)
    found = check(here)
    assert found["src-data"].severity is severity
    assert found["src-data"].text.startswith(text)
    assert {found[name].severity for name in TOPICS if name != "src-data"} == {Severity.OK}


def test_fewer_replicas_than_wanted_are_told(broker: LocalBroker) -> None:
    create(deployment(broker))
    found = check(deployment(broker, replication_factor=3))
    assert found["src-data"].severity is Severity.WARNING
    assert "is on 1 broker, topics.replication_factor is 3" in found["src-data"].text


def test_the_topic_to_try_transactions_on_may_be_of_any_shape(broker: LocalBroker) -> None:
    here = deployment(broker)
    make(broker, here, PROBE, partitions=3, retention_ms=-1, max_message_bytes=1000)
    create(here)
    assert check(here)[PROBE].severity is Severity.OK
    fewer = check(deployment(broker, replication_factor=3))
    assert fewer[PROBE].severity is Severity.WARNING


def test_larger_records_than_needed_are_fine(broker: LocalBroker) -> None:
    here = deployment(broker)
    make(broker, here, "src-data", max_message_bytes=2_000_000)
    create(here)
    assert check(here)["src-data"].severity is Severity.OK


class ClusterBroker(LocalBroker):
    """Says of each topic what a cluster of three may, where a topic is not as its brokers say."""

    def __init__(self, copies: int, **config: int) -> None:
        super().__init__(None)
        self._copies = copies
        self._config_of_cluster = config

    def describe_topics(self, names: Sequence[str]) -> dict[str, TopicDescription]:
        found = super().describe_topics(names)
        return {
            name: replace(each, replication_factor=self._copies) for name, each in found.items()
        }

    def topic_configs(self, names: Sequence[str]) -> dict[str, TopicConfig]:
        found = super().topic_configs(names)
        changed: Mapping[str, Any] = self._config_of_cluster
        return {name: replace(each, **changed) for name, each in found.items()}


@pytest.mark.parametrize(
    ("copies", "acknowledging", "severity"),
    [(3, 1, Severity.WARNING), (3, 2, Severity.OK), (2, 1, Severity.OK), (1, 1, Severity.OK)],
)
def test_an_acknowledgement_by_one_replica_of_three_is_told(
    copies: int, acknowledging: int, severity: Severity
) -> None:
    with closing(ClusterBroker(copies, min_insync_replicas=acknowledging)) as broker:
        here = deployment(broker, replication_factor=copies)
        create(here)
        found = check(here)
    assert found.pop(PROBE).severity is Severity.OK
    assert {each.severity for each in found.values()} == {severity}
    if severity is Severity.WARNING:
        assert found["src-data"].text.startswith("has min.insync.replicas=1: ")


@pytest.mark.parametrize(
    ("kept_ms", "severity"),
    [(TOMBSTONES_MS, Severity.OK), (TOMBSTONES_MS - 1, Severity.WRONG), (0, Severity.WRONG)],
)
def test_deletions_that_a_table_could_miss_are_wrong(kept_ms: int, severity: Severity) -> None:
    with closing(ClusterBroker(1, delete_retention_ms=kept_ms)) as broker:
        here = deployment(broker)
        create(here)
        found = check(here)
    assert found.pop(CHANGELOG).severity is severity
    assert {each.severity for each in found.values()} == {Severity.OK}


def test_deletions_are_kept_for_longer_than_a_table_trusts_what_it_has() -> None:
    trusted = store._TOMBSTONES_SECONDS + store._REFRESH_SECONDS
    assert trusted * 1000 <= TOMBSTONES_MS


def test_what_is_wrong_or_could_not_be_looked_at_is_not_fine() -> None:
    def fine(*severities: Severity) -> bool:
        return is_fine([Finding("it", severity, "is so") for severity in severities])

    assert fine(Severity.OK, Severity.WARNING)
    assert not fine(Severity.OK, Severity.WRONG)
    assert not fine(Severity.OK, Severity.SKIPPED)


def snapshots(count: int) -> list[OutgoingRecord]:
    return [OutgoingRecord("src-data", b"demo", b"{}", 0) for _ in range(count)]


def commit(broker: LocalBroker, group: str, topic: str, offset: int) -> None:
    with closing(broker.consumer(ConsumerConfig(group=group))) as consumer:
        consumer.commit({TopicPartition(topic, 0): offset})


def of_processor(deployment: Deployment, meanwhile: Callable[[], None] = lambda: None) -> Finding:
    """What is found when this happens between the two looks."""
    findings = check_lag(deployment, wait=lambda _: meanwhile())
    return next(each for each in findings if each.subject == PROCESSOR)


PROCESSOR = "data_processor on src-data"


def test_lag_is_told_of_each_service_and_topic(broker: LocalBroker) -> None:
    here = deployment(broker)
    create(here)
    assert [(each.subject, each.severity) for each in check_lag(here)] == [
        (PROCESSOR, Severity.OK),
        ("data_aggregator on processed-data", Severity.OK),
        ("db_loader on aggregated-data", Severity.OK),
        ("db_loader on processed-data", Severity.OK),
    ]


def test_a_service_that_never_worked_is_wrong(broker: LocalBroker) -> None:
    here = deployment(broker)
    create(here)
    send(broker, *snapshots(5))
    finding = of_processor(here)
    assert finding.severity is Severity.WRONG
    assert finding.text == "is 5 records behind and has never committed anything"


def test_a_service_that_stands_still_is_wrong(broker: LocalBroker) -> None:
    here = deployment(broker)
    create(here)
    send(broker, *snapshots(5))
    commit(broker, "data_processor", "src-data", 2)
    finding = of_processor(here)
    assert finding.severity is Severity.WRONG
    assert finding.text == "is 3 records behind and did nothing for 3 s"


def test_a_service_that_gets_on_is_fine(broker: LocalBroker) -> None:
    here = deployment(broker)
    create(here)
    send(broker, *snapshots(5))
    commit(broker, "data_processor", "src-data", 2)
    finding = of_processor(here, lambda: commit(broker, "data_processor", "src-data", 4))
    assert (finding.severity, finding.text) == (Severity.OK, "is 1 record behind and gets on")


def test_a_service_that_loses_ground_is_told(broker: LocalBroker) -> None:
    here = deployment(broker)
    create(here)
    send(broker, *snapshots(lag.MANY_RECORDS + 10))
    commit(broker, "data_processor", "src-data", 2)

    def meanwhile() -> None:
        send(broker, *snapshots(5))
        commit(broker, "data_processor", "src-data", 4)

    finding = of_processor(here, meanwhile)
    assert finding.severity is Severity.WARNING
    assert finding.text == "is 100011 records behind, and more come than it does"


class MovingConsumer(LocalConsumer):
    """Does not find the group's coordinator for a while."""

    errors: list[BrokerError]

    def committed(
        self, partitions: Sequence[TopicPartition], timeout: float = 10.0
    ) -> dict[TopicPartition, int]:
        if self.errors:
            raise self.errors.pop()
        return super().committed(partitions, timeout)


class MovingBroker(LocalBroker):
    def __init__(self, *errors: BrokerError) -> None:
        super().__init__(None)
        self._errors = list(errors)

    def consumer(self, config: ConsumerConfig) -> LocalConsumer:
        consumer = MovingConsumer(self._storage, self._group(config.group), config, self._clock)
        consumer.errors = self._errors
        return consumer


def test_a_group_whose_coordinator_is_new_is_asked_again() -> None:
    with closing(MovingBroker(*[BrokerError("NOT_COORDINATOR")] * 3)) as broker:
        here = deployment(broker)
        create(here)
        waits: list[float] = []
        assert is_fine(check_lag(here, waits.append))
        assert len(waits) == 3


def test_a_group_that_may_not_be_read_is_asked_once() -> None:
    with closing(MovingBroker(AccessError("not you"))) as broker:
        here = deployment(broker)
        create(here)
        with pytest.raises(AccessError):
            check_lag(here, lambda _: pytest.fail("waits"))
