"""Where peers run: each in an environment of its own below `.cache/`, made on first use from what
`peers/` pins, and made anew when that changes. Python ones through pip, Java through Maven."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import BenchmarkError

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
CACHE = ROOT / ".cache"

_COMPLETE = "complete"
_OUTPUT_CHARACTERS = 4000


def python_of(peer: str) -> Path:
    """The interpreter that has what the peer's requirements.txt names. Raises `BenchmarkError`."""
    requirements = PEERS / peer / "requirements.txt"
    folder = _folder(peer, [requirements])
    python = folder / "bin" / "python"
    if not (folder / _COMPLETE).exists():
        _start_over(peer, folder)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements))
        (folder / _COMPLETE).touch()
    return python


def java_of(peer: str) -> tuple[str, ...]:
    """Java and its class path, with the peer compiled. Raises `BenchmarkError`."""
    home = PEERS / peer
    folder = _folder(peer, [home / "pom.xml", *sorted(home.rglob("*.java"))])
    java, maven = shutil.which("java"), shutil.which("mvn")
    if java is None or maven is None or shutil.which("javac") is None:
        raise BenchmarkError(f"{peer}: needs a Java 17 development kit and Maven")
    if not (folder / _COMPLETE).exists():
        _start_over(peer, folder)
        where = (f"-Dbuild.folder={folder}", f"-DoutputDirectory={folder / 'libraries'}")
        goals = ("package", "dependency:copy-dependencies")
        _run(maven, "-q", "-B", "-f", str(home / "pom.xml"), *goals, *where)
        (folder / _COMPLETE).touch()
    return (java, "-cp", f"{folder / 'classes'}:{folder / 'libraries'}/*")


def pinned(peer: str, package: str) -> str:
    """The version of a package, or of a property of the pom, that the peer pins."""
    home = PEERS / peer
    if (home / "pom.xml").exists():
        found = re.search(rf"<{package}>(.+?)</", (home / "pom.xml").read_text())
    else:
        found = re.search(rf"(?m)^{package}==(\S+)", (home / "requirements.txt").read_text())
    if found is None:
        raise BenchmarkError(f"{peer}: nothing pins {package}")
    return found[1]


def _folder(peer: str, files: Sequence[Path]) -> Path:
    """Named by what is in the files, and by the Python that makes it."""
    content = b"".join(file.read_bytes() for file in files) + sys.version.encode()
    return CACHE / f"peer-{peer}-{hashlib.sha256(content).hexdigest()[:12]}"


def _start_over(peer: str, folder: Path) -> None:
    print(f"bringing what {peer} needs (once) ...", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)


def _run(*command: str) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{' '.join(command)}:\n{done.stdout[-_OUTPUT_CHARACTERS:]}")
