"""How far behind each service is, and whether it gets on.

A group's committed offset that stands still while there is something to read says more than any
number: nobody is working on it. So those that are behind are looked at twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from tenacity import (
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_delay,
    wait_fixed,
)

from ratestream.operations.deployment import Deployment
from ratestream.operations.findings import Finding, Severity, counted
from ratestream.streaming import (
    AccessError,
    Broker,
    BrokerError,
    ConsumerConfig,
    TopicPartition,
)

WATCH_SECONDS = 3.0
COORDINATOR_SECONDS = 30.0
"""How long a group's offsets are asked for: a cluster that is new, or has lost a broker, has to
find out first who keeps them."""

_RETRY_SECONDS = 0.5
MANY_RECORDS = 100_000
"""Behind by more than this is worth a look, moving or not."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one service in one topic: records not done, and how many have been done ever."""

    behind: int
    done: int


def check_lag(deployment: Deployment, wait: Callable[[float], None] = time.sleep) -> list[Finding]:
    """One finding for each service and topic that it works through. Takes `WATCH_SECONDS` longer
    when one is behind. Raises `BrokerError`."""
    plan = deployment.plan
    there = deployment.broker.describe_topics(sorted(plan.topics))
    partitions = {
        (service, name): [TopicPartition(name, number) for number in range(there[name].partitions)]
        for service, names in plan.inputs.items()
        for name in names
        if name in there
    }
    patiently = Retrying(
        retry=retry_if_exception_type(BrokerError) & retry_if_not_exception_type(AccessError),
        stop=stop_after_delay(COORDINATOR_SECONDS),
        wait=wait_fixed(_RETRY_SECONDS),
        sleep=wait,
        reraise=True,
    )
    before = patiently(_measure, deployment.broker, partitions)
    if any(each.behind for each in before.values()):
        wait(WATCH_SECONDS)
    after = _measure(
        deployment.broker, {key: partitions[key] for key, each in before.items() if each.behind}
    )
    return [
        _finding(service, name, progress, after.get((service, name), progress))
        for (service, name), progress in before.items()
    ]


_Partitions = Mapping[tuple[str, str], list[TopicPartition]]


def _measure(broker: Broker, wanted: _Partitions) -> dict[tuple[str, str], Progress]:
    return {(group, name): _progress(broker, group, all_) for (group, name), all_ in wanted.items()}


def _progress(broker: Broker, group: str, partitions: list[TopicPartition]) -> Progress:
    """Never joins the group. What was deleted before it was read does not count as behind."""
    config = ConsumerConfig(group=group, client_id="ratestream-doctor")
    with closing(broker.consumer(config)) as consumer:
        committed = consumer.committed(partitions)
        behind = 0
        for partition in partitions:
            low, high = consumer.watermarks(partition)
            behind += max(0, high - max(low, committed.get(partition, low)))
    return Progress(behind, sum(committed.values()))


def _finding(service: str, topic: str, before: Progress, after: Progress) -> Finding:
    subject = f"{service} on {topic}"
    records = f"{counted(after.behind, 'record')} behind"
    if not after.behind:
        return Finding(subject, Severity.OK, "has done everything there is")
    if not before.done and not after.done:
        return Finding(
            subject,
            Severity.WRONG,
            f"is {records} and has never committed anything",
            f"start {service}, or see in its log and at its /health/ready why it cannot work",
        )
    if after.done == before.done:
        return Finding(
            subject,
            Severity.WRONG,
            f"is {records} and did nothing for {WATCH_SECONDS:g} s",
            f"see whether {service} runs, and in its log and at its /health/ready why it waits",
        )
    if after.behind > MANY_RECORDS and after.behind >= before.behind:
        return Finding(
            subject,
            Severity.WARNING,
            f"is {records}, and more come than it does",
            f"start another instance of {service}: as many as there are partitions share the work",
        )
    return Finding(subject, Severity.OK, f"is {records} and gets on")
