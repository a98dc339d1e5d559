"""`ratestream topics`: make what the services need, and compare what there is with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import replace

import msgspec

from ratestream.operations.deployment import Deployment, Plan
from ratestream.operations.findings import Finding, Severity, counted
from ratestream.streaming import TopicSpec
from ratestream.streaming.app import TRANSACTION_PROBE
from ratestream.streaming.types import TopicConfig, TopicDescription

_HOUR_MS = 3600 * 1000
TOMBSTONES_MS = 13 * _HOUR_MS
"""A table believes what it has for 12 hours after it had everything, give or take a moment: a
deletion that it has not seen by then must still be in the changelog."""

SAFE_COPIES = 3
"""With as many replicas one may be lost, and another out of step, without losing a record."""


class TopicReport(msgspec.Struct, frozen=True):
    """A topic after `topics create`; `made` says whether it was there before."""

    name: str
    partitions: int
    made: bool


class CreateTopics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Make every topic of every service that does not exist, as the services would themselves.
    What exists stays as it is."""

    async def run(self, deployment: Deployment) -> list[TopicReport]:
        return await asyncio.to_thread(_create, deployment)


class CheckTopics(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Compare every topic with what the settings say; several findings a topic are possible."""

    async def run(self, deployment: Deployment) -> list[Finding]:
        return await asyncio.to_thread(_check, deployment)


def _create(deployment: Deployment) -> list[TopicReport]:
    names = sorted(deployment.plan.topics)
    before = deployment.broker.describe_topics(names)
    wanted = {name: _wanted(deployment.plan, name, before) for name in names}
    missing = [wanted[name] for name in names if name not in before]
    if missing:
        deployment.broker.create_topics(missing)
    there = wanted | before
    return [TopicReport(name, there[name].partitions, name not in before) for name in names]


def _wanted(plan: Plan, name: str, found: Mapping[str, TopicDescription]) -> TopicSpec:
    """A changelog gets as many partitions as its source really has."""
    spec = plan.topics[name]
    source = found.get(plan.sources.get(name, ""))
    return spec if source is None else replace(spec, partitions=source.partitions)


def _check(deployment: Deployment) -> list[Finding]:
    plan = deployment.plan
    names = sorted(plan.topics)
    found = deployment.broker.describe_topics(names)
    configs = deployment.broker.topic_configs(list(found))
    return [
        finding for name in names for finding in _of_topic(plan, name, found, configs.get(name))
    ]


def _of_topic(
    plan: Plan, name: str, found: Mapping[str, TopicDescription], config: TopicConfig | None
) -> Iterator[Finding]:
    subject = f"topic {name}"
    topic = found.get(name)
    if topic is None or config is None:
        yield Finding(subject, Severity.WRONG, "is missing", "run ratestream topics create")
        return
    source = found.get(plan.sources.get(name, ""))
    spec = plan.topics[name] if source is None else _wanted(plan, name, found)
    differences = list(_of_copies(subject, topic, spec))
    if name != TRANSACTION_PROBE.name:  # of which nothing is kept: it only has to be there
        differences += _of_layout(subject, topic, spec, source)
        differences += _of_config(subject, config, spec)
        differences += _of_safety(subject, topic, config, spec)
    yield from differences or [Finding(subject, Severity.OK, _words(topic, config))]


def _of_layout(
    subject: str, topic: TopicDescription, spec: TopicSpec, source: TopicDescription | None
) -> Iterator[Finding]:
    if topic.partitions != spec.partitions and source is not None:
        yield Finding(
            subject,
            Severity.WRONG,
            f"has {counted(topic.partitions, 'partition')} and {source.name}, which it is split "
            f"like, has {source.partitions}",
            "stop the service that owns it, delete it, and run ratestream topics create: its "
            "table starts empty",
        )
    elif topic.partitions != spec.partitions:
        yield Finding(
            subject,
            Severity.WARNING,
            f"has {counted(topic.partitions, 'partition')}, topics.partitions is {spec.partitions}",
            "set topics.partitions to what there is: keys stay where they are only while it does "
            "not change",
        )


def _of_copies(subject: str, topic: TopicDescription, spec: TopicSpec) -> Iterator[Finding]:
    if topic.replication_factor < spec.replication_factor:
        yield Finding(
            subject,
            Severity.WARNING,
            f"is on {counted(topic.replication_factor, 'broker')}, topics.replication_factor is "
            f"{spec.replication_factor}",
            "add replicas with kafka-reassign-partitions, or lower the setting",
        )


def _of_config(subject: str, config: TopicConfig, spec: TopicSpec) -> Iterator[Finding]:
    if config.cleanup_policy != spec.cleanup_policy:
        yield Finding(
            subject,
            Severity.WRONG,
            f"has cleanup.policy={config.cleanup_policy} and needs {spec.cleanup_policy}",
            f"set it with kafka-configs: --add-config cleanup.policy={spec.cleanup_policy}",
        )
    elif config.retention_ms != spec.retention_ms and spec.cleanup_policy == "delete":
        yield Finding(
            subject,
            Severity.WARNING,
            f"keeps records {_hours(config.retention_ms)}, topics.retention_hours says "
            f"{_hours(spec.retention_ms)}",
            f"set it with kafka-configs: --add-config retention.ms={spec.retention_ms}",
        )
    if config.max_message_bytes < spec.max_message_bytes:
        yield Finding(
            subject,
            Severity.WRONG,
            f"takes records of {config.max_message_bytes} bytes, services send up to "
            f"{spec.max_message_bytes}",
            f"set it with kafka-configs: --add-config max.message.bytes={spec.max_message_bytes}",
        )


def _of_safety(
    subject: str, topic: TopicDescription, config: TopicConfig, spec: TopicSpec
) -> Iterator[Finding]:
    """What a broker's own defaults may have taken away, and no setting of ours says."""
    if spec.cleanup_policy == "compact" and config.delete_retention_ms < TOMBSTONES_MS:
        yield Finding(
            subject,
            Severity.WRONG,
            f"keeps deletions {_hours(config.delete_retention_ms)}: a table that was away for "
            "longer keeps what was deleted",
            "set it with kafka-configs: --add-config delete.retention.ms=86400000",
        )
    if topic.replication_factor >= SAFE_COPIES and config.min_insync_replicas < 2:
        yield Finding(
            subject,
            Severity.WARNING,
            f"has min.insync.replicas={config.min_insync_replicas}: what only one broker has is "
            "acknowledged, and lost with it",
            "set it with kafka-configs: --add-config min.insync.replicas=2",
        )


def _words(topic: TopicDescription, config: TopicConfig) -> str:
    kept = "" if config.cleanup_policy != "delete" else f" {_hours(config.retention_ms)}"
    return (
        f"{counted(topic.partitions, 'partition')}, "
        f"{counted(topic.replication_factor, 'replica')}, "
        f"{config.cleanup_policy}{kept}, records up to {config.max_message_bytes} bytes"
    )


def _hours(milliseconds: int) -> str:
    return "for ever" if milliseconds < 0 else f"for {milliseconds / _HOUR_MS:g} h"
