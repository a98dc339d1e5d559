"""Fixtures that more than one folder of tests uses, and `--only-skipped`."""

from __future__ import annotations

from collections.abc import Generator

import pytest

pytest_plugins = ("tests.support.brokers", "tests.support.postgres")

_SKIPPED = "ratestream/skipped"
_skipped = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-skipped",
        action="store_true",
        help="run what the last run of the whole suite has skipped: for a machine that has more",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_skipped] = set()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--only-skipped"):
        return
    wanted = set(_cache(config).get(_SKIPPED, ()))
    if not wanted:
        raise pytest.UsageError("--only-skipped: no run of the whole suite has skipped anything")
    config.hook.pytest_deselected(items=[each for each in items if each.nodeid not in wanted])
    items[:] = [each for each in items if each.nodeid in wanted]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped:
        item.config.stash[_skipped].add(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        skipped = config.stash[_skipped]
        _cache(config).set(_SKIPPED, sorted(skipped))


def _cache(config: pytest.Config) -> pytest.Cache:
    assert config.cache is not None
    return config.cache
