"""The repository's image, built and run without Docker.

buildah builds the Dockerfile on a base that debootstrap makes, and podman runs it with runc. Both
need root; nothing outside the given folder and `.cache` is left changed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
BASE = "debian:13.8-slim"
RELEASE = "trixie"
IN_BASE = ("etc/machine-ca.crt", "etc/pip.conf")
"""What a base made here has and the real one has not: how this machine reaches packages."""

_BUILD_SECONDS = 400
_COMMAND_SECONDS = 120
_NEEDED = ("buildah", "podman", "runc", "debootstrap", "nsenter", "unshare")


def require_containers() -> None:
    """Skips the test unless it is asked for, since it takes minutes and fetches packages; fails it
    where it is asked for and cannot run."""
    if "containers" not in os.environ.get("RATESTREAM_TEST_REQUIRE", ""):
        pytest.skip("RATESTREAM_TEST_REQUIRE does not name containers, which take minutes")
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.fail("only root can build and run containers here")


class Engine:
    """buildah and podman with a store of their own in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = ("--root", str(folder / "images"), "--runroot", str(folder / "run"))

    def buildah(self, *arguments: str) -> str:
        return run("buildah", *self._store, *arguments, seconds=_BUILD_SECONDS)

    def podman(self, *arguments: str) -> str:
        return run(*self.podman_command(*arguments))

    def podman_command(self, *arguments: str) -> list[str]:
        networks = ("--network-config-dir", str(self._folder / "networks"))
        return ["podman", *self._store, *networks, "--runtime", "runc", *arguments]

    def build(self, tag: str) -> None:
        """The repository's Dockerfile, with nothing from outside but packages."""
        if not self.buildah("images", "--quiet", "--filter", f"reference={BASE}").strip():
            self.podman("import", "--quiet", str(_base_archive()), f"localhost/{BASE}")
        options = ("--isolation", "chroot", "--pull-never", "--format", "docker", "--quiet")
        self.buildah("bud", *options, "--tag", f"localhost/{tag}", str(ROOT))

    @contextmanager
    def mounted(self, tag: str) -> Iterator[Path]:
        """The image's file system."""
        container = self.buildah("from", "--pull-never", f"localhost/{tag}").strip()
        try:
            yield Path(self.buildah("mount", container).strip())
        finally:
            self.buildah("rm", container)

    def clear_containers(self) -> None:
        self.podman("rm", "--all", "--force", "--time", "0", "--volumes")
        self.podman("volume", "prune", "--force")
        self.podman("network", "prune", "--force")

    def clear(self) -> None:
        self.clear_containers()
        self.podman("rmi", "--all", "--force")


def run(
    *command: str, seconds: int = _COMMAND_SECONDS, environment: Mapping[str, str] | None = None
) -> str:
    """What it printed. Fails the test, with what it said, unless it ends well."""
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def _base_archive() -> Path:
    """A small Debian, made once. What this machine needs to reach packages is added, so that the
    Dockerfile needs to know nothing of it."""
    archive = CACHE / f"{RELEASE}.tar"
    if not archive.exists():
        CACHE.mkdir(exist_ok=True)
        unfinished = CACHE / f"{RELEASE}.{os.getpid()}"
        try:
            run("debootstrap", "--variant=minbase", RELEASE, str(unfinished), seconds=300)
            _let_in(unfinished)
            with tarfile.open(unfinished.with_suffix(".tar"), "w") as tar:
                tar.add(unfinished, arcname=".")
            unfinished.with_suffix(".tar").rename(archive)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return archive


def _let_in(base: Path) -> None:
    """The certificates that this machine trusts, and where its pip finds packages."""
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", base / IN_BASE[0])
    listed = run(sys.executable, "-m", "pip", "config", "list")
    settings = dict(re.findall(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
    settings = {name: settings[name] for name in ("index-url", "proxy") if name in settings}
    lines = [f"{name} = {value}\n" for name, value in settings.items()]
    (base / IN_BASE[1]).write_text(f"[global]\ncert = /{IN_BASE[0]}\n{''.join(lines)}")
