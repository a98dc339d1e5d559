"""The faults that an operator meets: which alerts fire, which panel shows it and what it shows
then, and the test that seeds it. docs/operations.md has the same table; a test holds them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deploy.grafana.boards import BOARDS
from deploy.grafana.style import Dashboard, Panel
from tests.support.monitoring import Alert, Prometheus, Sample, as_grafana_asks, wait_until

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Fault:
    """`panel` is "dashboard / title"; `is_shown_by` tells a sample of it that cannot be taken for
    a good one."""

    name: str
    alerts: tuple[str, ...]
    panel: str
    is_shown_by: Callable[[Sample], bool]
    test: str


FAULTS = (
    Fault(
        "a source gives nothing",
        ("SourceStale",),
        "Sources / Intervals missed",
        lambda each: each.labels["source"] == "demo" and each.value > 3,
        "test_source_that_stops_answering",
    ),
    Fault(
        "a service cannot keep up, or is held up",
        ("LagGrowing", "NoCommittedProgress"),
        "Runtime / Records not read yet, by service and topic",
        lambda each: each.labels["service"] == "db_loader" and each.value > 100,
        "test_tables_that_somebody_locks",
    ),
    Fault(
        "db_loader is stopped",
        ("ServiceDown",),
        "Overview / Services up",
        lambda each: each.labels["service"] == "db_loader" and each.value == 0,
        "test_loader_that_is_stopped",
    ),
    Fault(
        "one of several instances hangs",
        ("ServiceDown",),
        "Overview / Services up",
        lambda each: each.labels["service"] == "data_aggregator" and each.value == 2,
        "test_one_of_several_aggregators_that_hangs",
    ),
    Fault(
        "Kafka is away",
        ("BrokerUnreachable", "NoPartitions"),
        "Runtime / Broker reached by",
        lambda each: each.labels["service"] == "db_loader" and each.value == 0,
        "test_kafka_that_goes_away",
    ),
    Fault(
        "Postgres is away",
        ("PostgresUnreachable", "ApiErrorBudgetBurning"),
        "Postgres / Reached by",
        lambda each: each.labels["service"] == "db_loader" and each.value == 0,
        "test_postgres_that_goes_away",
    ),
    Fault(
        "rows are stored late",
        ("LoaderBehind",),
        "db_loader / Share of rows stored late",
        lambda each: each.value > 0.05,
        "test_tables_that_somebody_locks",
    ),
    Fault(
        "records that cannot be used",
        ("DeadLetters",),
        "Overview / Dead letters in the time shown",
        lambda each: each.value > 0,
        "test_snapshot_that_cannot_be_read",
    ),
    Fault(
        "a disk fills",
        ("DiskFilling",),
        "Runtime / Disk free",
        lambda each: each.labels["service"] == "data_aggregator" and each.value < 0.1,
        "test_disk_that_fills",
    ),
    Fault(
        "a certificate is about to expire",
        ("CertificateExpiring",),
        "Runtime / Certificates end in",
        lambda each: each.labels["service"] == "data_processor" and each.value < 21 * DAY_SECONDS,
        "test_certificate_about_to_expire",
    ),
    Fault(
        "somebody else moves the offsets in Postgres",
        ("SetbacksRepeating",),
        "Runtime / Setbacks per minute",
        lambda each: each.labels["service"] == "db_loader" and each.value > 0,
        "test_offsets_that_somebody_else_moves",
    ),
    Fault(
        "a service falls over again and again",
        ("ServiceRestarting",),
        "Runtime / Restarts in the time shown",
        lambda each: each.labels["service"] == "data_processor" and each.value >= 3,
        "test_service_that_is_started_again_and_again",
    ),
)


def panel_of(fault: Fault) -> Panel:
    board, title = fault.panel.split(" / ", 1)
    boards: dict[str, Dashboard] = {each.title: each for each in BOARDS}
    (found,) = (each for each in boards[f"ratestream: {board}"].panels if each.title == title)
    return found


class Sightings:
    """What of the table the test of that name has seen in a running Prometheus."""

    def __init__(self, watch: Prometheus, test: str) -> None:
        self._watch = watch
        self._faults = [fault for fault in FAULTS if test == fault.test]
        self.unseen = {(fault.name, alert) for fault in self._faults for alert in fault.alerts}

    def wait_firing(self, alert: str, **labels: str) -> Alert:
        """The alert, once it fires and, while it does, the panel of its fault shows it."""
        fired = self._watch.wait_firing(alert, **labels)
        for fault in self._faults:
            if alert in fault.alerts:
                self._wait_shown(fault, alert, labels)
                self.unseen.discard((fault.name, alert))
        return fired

    def _wait_shown(self, fault: Fault, alert: str, labels: dict[str, str]) -> None:
        shown: Sequence[Sample] = ()

        def is_shown() -> bool:
            nonlocal shown
            shown = self._shown(panel_of(fault))
            fires = any(each.is_of(alert, **labels) for each in self._watch.firing())
            return fires and any(map(fault.is_shown_by, shown))

        wait_until(is_shown, lambda: f"{fault.panel} shows no {fault.name}: {shown}")

    def _shown(self, panel: Panel) -> list[Sample]:
        return [
            sample
            for query in panel.queries
            for sample in self._watch.query(as_grafana_asks(query.expression))
        ]
