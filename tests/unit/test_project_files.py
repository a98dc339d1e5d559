"""What the repository holds besides code: locks that fit, and nothing of any one machine."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = (
    "requirements.lock",
    "requirements-dev.lock",
    "requirements-build.lock",
    "requirements-image.lock",
)

PIN = re.compile(r"^([a-zA-Z0-9._-]+)==(\S+)", re.MULTILINE)
ADDRESS = re.compile(r"\w+://|--(?:extra-)?index-url|--find-links|--trusted-host")

# Written in pieces, so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(r"(?<![\w.$}/-])/(?:ro" + r"ot|wo" + r"rk|home/\w+|Users/\w+)/")
REGISTRIES = re.compile(
    r"pypi\." + r"org|python" + r"hosted|maven\.apache\." + r"org/maven2|npmjs\." + r"org|"
    r"deb\.debian\." + r"org"
)


def ignored_folders() -> set[str]:
    lines = (ROOT / ".gitignore").read_text().split()
    return {line.rstrip("/") for line in lines} | {".git"}


def files_of_the_project() -> Iterator[Path]:
    """Everything that is not ignored, as paths below ROOT."""
    ignored = ignored_folders()
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in ignored]
        for name in files:
            yield (Path(folder) / name).relative_to(ROOT)


def texts_of_the_project() -> Iterator[tuple[Path, str]]:
    for path in files_of_the_project():
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            yield path, content.decode(errors="replace")


def occurrences(pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts_of_the_project()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def pins(lock: str) -> dict[str, str]:
    return {
        canonicalize_name(name): version for name, version in PIN.findall((ROOT / lock).read_text())
    }


def required(*groups: str) -> list[Requirement]:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["local"]]
    for group in groups:
        wanted += PROJECT["dependency-groups"][group]
    return [Requirement(each) for each in wanted]


def unfit(requirements: list[Requirement], locked: dict[str, str]) -> list[str]:
    """Requirements that a lock does not hold, or holds in a version out of range."""
    return [
        f"{each}: locked is {version or 'nothing'}"
        for each in requirements
        if (version := locked.get(canonicalize_name(each.name))) is None
        or not each.specifier.contains(version, prereleases=True)
    ]


def test_locks_hold_what_pyproject_asks_for() -> None:
    assert unfit(required("build"), pins("requirements.lock")) == []
    assert unfit(required("build", "dev"), pins("requirements-dev.lock")) == []


def test_a_lock_that_does_not_fit_is_noticed() -> None:
    wanted = [Requirement("rich>=14"), Requirement("httpx"), Requirement("Typer<1")]
    assert unfit(wanted, {"rich": "13.9", "typer": "0.9"}) == [
        "rich>=14: locked is 13.9",
        "httpx: locked is nothing",
    ]


def test_locks_agree_on_versions() -> None:
    runtime = pins("requirements.lock").items()
    assert runtime <= pins("requirements-dev.lock").items()
    assert pins("requirements-build.lock").items() <= runtime
    assert pins("requirements-image.lock").items() <= runtime


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_version_has_hashes(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert len(entries) == len(pins(lock))


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_name_no_index(lock: str) -> None:
    assert ADDRESS.findall((ROOT / lock).read_text()) == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    assert occurrences(MACHINE_PATHS) == []


def test_no_file_names_the_host_of_a_registry() -> None:
    assert occurrences(REGISTRIES) == []


def test_the_searches_find_what_they_are_for() -> None:
    assert MACHINE_PATHS.search("data in /ro" + "ot/data")
    assert MACHINE_PATHS.search('path = "/home/' + 'alice/rates"')
    assert not MACHINE_PATHS.search("http://127.0.0.1:8007/wo" + "rk/x")
    assert REGISTRIES.search("index-url = https://py" + "pi.org/simple")
    assert ADDRESS.search("--index-url https://example.org")


def test_scripts_can_be_run() -> None:
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.suffix == ""]
    assert [path.name for path in scripts if not os.access(path, os.X_OK)] == []


def test_python_scripts_are_checked_like_the_rest() -> None:
    """Tools look for *.py; scripts without the ending are named in pyproject.toml."""
    in_python = {
        f"scripts/{path.name}"
        for path in (ROOT / "scripts").iterdir()
        if path.is_file() and path.read_text().startswith("#!/usr/bin/env python3")
    }
    assert in_python <= set(PROJECT["tool"]["ruff"]["extend-include"])
    assert in_python <= set(PROJECT["tool"]["mypy"]["files"])
