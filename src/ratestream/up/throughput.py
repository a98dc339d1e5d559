"""How much a service has to do: read from the registry that Prometheus reads."""

from __future__ import annotations

import time
from dataclasses import dataclass

from prometheus_client import CollectorRegistry


@dataclass(frozen=True, slots=True)
class Throughput:
    """Records a second since the sample before, and the lag now. None: not known yet."""

    in_per_second: float | None = None
    out_per_second: float | None = None
    lag: int | None = None
    records_in: float = 0.0
    records_out: float = 0.0
    at: float = 0.0
    """Monotonic seconds; 0 before the first sample."""

    def next(self, registry: CollectorRegistry) -> Throughput:
        """The sample after this one."""
        now = time.monotonic()
        totals = _totals(registry)
        records_in = totals.get("ratestream_records_in_total", 0.0)
        records_out = totals.get("ratestream_records_out_total", 0.0)
        lag = totals.get("ratestream_consumer_lag_records")
        elapsed = now - self.at if self.at else None
        return Throughput(
            in_per_second=elapsed and (records_in - self.records_in) / elapsed,
            out_per_second=elapsed and (records_out - self.records_out) / elapsed,
            lag=None if lag is None else int(lag),
            records_in=records_in,
            records_out=records_out,
            at=now,
        )


_WANTED = (
    "ratestream_records_in_total",
    "ratestream_records_out_total",
    "ratestream_consumer_lag_records",
)


def _totals(registry: CollectorRegistry) -> dict[str, float]:
    """The wanted samples' sums over all labels; those without any are absent."""
    totals: dict[str, float] = {}
    for family in registry.restricted_registry(_WANTED).collect():
        for sample in family.samples:
            if sample.name in _WANTED:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals
