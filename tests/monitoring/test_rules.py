"""The alerts' rules: tried by promtool, and each has its cases, its page and metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitoring import CONFIGURATION, need_prometheus

ROOT = CONFIGURATION.parents[1]
RULES = CONFIGURATION / "alerts.yml"
CASES = sorted(CONFIGURATION.glob("*.test.yml"))
CONFIGURATIONS = [CONFIGURATION / "prometheus.yml", CONFIGURATION / "up.yml"]

rules: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
alerts = [rule for rule in rules if "alert" in rule]
names = sorted({rule["alert"] for rule in alerts})


def promtool(*arguments: object) -> None:
    need_prometheus()
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def label(name: str, text: str) -> str:
    """The value of a label as PromQL writes it."""
    (value,) = re.findall(rf'\b{name}="(\w+)"', text)
    return str(value)


def page_of(alert: str) -> str:
    kebab = re.sub(r"(?<!^)(?=[A-Z])", "-", alert).lower()
    return f"docs/runbooks/{kebab}.md"


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda path: path.name)
def test_configuration_is_valid(configuration: Path) -> None:
    promtool("check", "config", configuration)


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.name)
def test_alerts_fire_when_they_should_and_not_when_not(cases: Path) -> None:
    promtool("test", "rules", cases)


def test_every_alert_has_cases_for_firing_with_each_severity_and_for_not_firing() -> None:
    cases = [case for file in CASES for case in yaml.safe_load(file.read_text())["tests"]]
    tried = [test for case in cases for test in case["promql_expr_test"]]
    fired = {
        (label("alertname", sample["labels"]), label("severity", sample["labels"]))
        for test in tried
        for sample in test["exp_samples"]
    }
    assert fired == {(rule["alert"], rule["labels"]["severity"]) for rule in alerts}
    over_time = [test["expr"] for test in tried if not test["exp_samples"]]
    assert all(expression.startswith("count_over_time(ALERTS") for expression in over_time)
    silent = {label("alertname", expression) for expression in over_time}
    assert silent == set(names)


def test_every_alert_says_what_it_is_and_links_its_page() -> None:
    for rule in alerts:
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, rule["alert"]
        assert rule["annotations"]["runbook"] == page_of(rule["alert"])
        assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    folder = ROOT / "docs" / "runbooks"
    pages = {str(path.relative_to(ROOT)) for path in folder.glob("*.md")}
    assert pages == {page_of(name) for name in names} | {"docs/runbooks/README.md"}
    overview = (folder / "README.md").read_text()
    for name in names:
        assert f"[{name}]({Path(page_of(name)).name})" in overview
        assert (ROOT / page_of(name)).read_text().startswith(f"# {name}\n")


def test_every_metric_of_the_rules_exists() -> None:
    documented = set(re.findall(r"`(ratestream_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    recorded = {rule["record"] for rule in rules if "record" in rule}
    used = {
        name for rule in rules for name in re.findall(r"[a-z_:]*ratestream_\w[\w:]*", rule["expr"])
    }
    exposed = {re.sub(r"_(bucket|count|sum)$", "", name) for name in used - recorded}
    assert exposed - documented == set()
    assert recorded - used == set()


def test_both_configurations_scrape_the_same_services() -> None:
    by_name, by_port = (yaml.safe_load(file.read_text()) for file in CONFIGURATIONS)
    names_asked = by_name["scrape_configs"][0]["dns_sd_configs"][0]["names"]
    ports = by_port["scrape_configs"][0]["static_configs"]
    assert names_asked == [each["labels"]["service"] for each in ports]
