"""The rules of the house, held by reading the source: who may import whom, who may touch what.

Each rule is a function from source text to complaints, so that a test can also show it red.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SRC = Path(__file__).resolve().parents[2] / "src"

# A module may import what stands on a line above its own, and its own package.
LAYERS = (
    ("ratestream.streaming", "ratestream.rates", "ratestream.garbage"),
    ("ratestream.events",),
    ("ratestream.sources", "ratestream.storage"),
    ("ratestream.settings",),
    ("ratestream.observability", "ratestream.apidocs", "ratestream.certificates"),
    ("ratestream.monitoring", "ratestream.healthcheck"),
    ("ratestream.services",),
    ("ratestream.operations",),
    ("ratestream.up",),
    ("ratestream.cli",),
)

# Inside the runtime every module stands on a line of its own.
STREAMING_LAYERS = tuple(
    (f"ratestream.streaming.{name}",)
    for name in (
        *("errors", "types", "codecs", "store", "statefolder", "disk", "metrics", "kafka"),
        *(
            "local",
            "threads",
            "outbox",
            "topics",
            "tables",
            "restoring",
            "standby",
            "sinks",
            "streams",
            "timers",
            "app",
            "committer",
            "retries",
            "progress",
            "partitions",
            "pipeline",
        ),
        *("web", "worker", "testing"),
    )
)

# Each outside library is met in one place.
HOMES = {
    "alembic": "ratestream.storage",
    "confluent_kafka": "ratestream.streaming.kafka",
    "cryptography": "ratestream.certificates",
    "pydantic_settings": "ratestream.settings",
    "rocksdict": "ratestream.streaming.store",
    "sqlalchemy": "ratestream.storage",
    "sqlite3": "ratestream.streaming.local",
    "typer": "ratestream.cli",
}

# Where anything at all may be caught: a boundary that others' code must not break.
BLIND_EXCEPTS = {
    "ratestream.cli": 1,  # prints what is expected in one line, raises the rest
    "ratestream.streaming.kafka.calls": 1,  # hands it on to the caller
    "ratestream.streaming.store": 5,  # rocksdict raises nothing more precise
    "ratestream.streaming.streams": 1,  # whatever an agent raises
    "ratestream.streaming.threads": 1,  # hands it on to the caller
}

# Run by Alembic; never imported.
NOT_IMPORTABLE = ("ratestream.storage.migrations",)


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path.read_text() for path in sorted(SRC.rglob("*.py"))}
PACKAGES = {module_name(path) for path in SRC.rglob("__init__.py")}


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def imports(module: str, source: str) -> set[str]:
    """Everything imported anywhere in `source`, as dotted names: `from a import b` is a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(module, node)
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    return found


def absolute(module: str, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    depth = node.level - (module in PACKAGES)
    parts = module.split(".")
    package = parts[: len(parts) - depth]
    return ".".join([*package, node.module] if node.module else package)


def layer_of(name: str, layers: Iterable[tuple[str, ...]]) -> int | None:
    for number, packages in enumerate(layers):
        if any(is_in(name, package) for package in packages):
            return number
    return None


def imports_that_point_up(
    module: str, source: str, layers: tuple[tuple[str, ...], ...]
) -> Iterator[str]:
    """Imports of a higher layer, of a neighbour on the same one, or of what has no layer."""
    root = ".".join(layers[0][0].split(".")[:-1])
    own = layer_of(module, layers)
    if module == root:
        return
    if own is None:
        yield f"{module} has no layer: add it to the list in this test"
        return
    home = next(package for package in layers[own] if is_in(module, package))
    for name in sorted(imports(module, source)):
        if not is_in(name, root) or is_in(name, home) or name == f"{root}.__version__":
            continue
        other = layer_of(name, layers)
        if other is None or other >= own:
            yield f"{module} imports {name}"


def imports_between_services(module: str, source: str) -> Iterator[str]:
    """A service knows no other; whoever starts services, `cli` and `up`, knows them all."""
    services = "ratestream.services"
    if any(is_in(module, each) for each in ("ratestream.cli", "ratestream.up")):
        return
    own = ".".join(module.split(".")[:3])  # a service may be a package
    for name in sorted(imports(module, source)):
        if is_in(name, services) and not is_in(name, own):
            yield f"{module} imports {name}"


def imports_beyond_the_standard_library(module: str, source: str) -> Iterator[str]:
    for name in sorted(imports(module, source)):
        if name.split(".")[0] not in sys.stdlib_module_names and not is_in(
            name, "ratestream.rates"
        ):
            yield f"{module} imports {name}"


def libraries_away_from_home(module: str, source: str) -> Iterator[str]:
    for name in sorted(imports(module, source)):
        home = HOMES.get(name.split(".")[0], module)
        if not is_in(module, home):
            yield f"{module} imports {name}, which belongs to {home}"


def environment_reads(module: str, source: str) -> Iterator[str]:
    names = ("environ", "environb", "getenv", "putenv", "unsetenv")
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=attr) if attr in names:
                yield f"{module}:{node.lineno} uses os.{attr}"
    for name in sorted(imports(module, source)):
        if name in {f"os.{each}" for each in names}:
            yield f"{module} imports {name}"


def blind_excepts(module: str, source: str) -> Iterator[str]:
    """Handlers of everything that do not raise the same again."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ExceptHandler(body=[*_, ast.Raise(exc=None)]):
                continue
            case ast.ExceptHandler(type=caught) if catches_everything(caught):
                yield f"{module}:{node.lineno} catches everything"


def catches_everything(caught: ast.expr | None) -> bool:
    match caught:
        case None:
            return True
        case ast.Name(id=name):
            return name in ("Exception", "BaseException")
        case ast.Tuple(elts=elements):
            return any(catches_everything(each) for each in elements)
    return False


def cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules that import each other in a ring, or nothing."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        for other in sorted(graph.get(module, ())):
            if ring := visit(other, [*path, module]):
                return ring
        finished.add(module)
        return []

    return next((ring for module in sorted(graph) if (ring := visit(module, []))), [])


def import_graph() -> dict[str, set[str]]:
    return {
        module: {owner for name in imports(module, source) if (owner := owner_of(name)) != module}
        for module, source in SOURCES.items()
    }


def owner_of(name: str) -> str:
    """The module of ours that an imported name comes from, or the name itself."""
    candidates = (name.rsplit(".", cut)[0] for cut in range(name.count(".") + 1))
    return next((each for each in candidates if each in SOURCES), name)


def complaints(rule: object, within: str = "ratestream", *more: object) -> list[str]:
    assert callable(rule)
    return [
        complaint
        for module, source in SOURCES.items()
        if is_in(module, within)
        for complaint in rule(module, source, *more)
    ]


def test_imports_point_down() -> None:
    assert complaints(imports_that_point_up, "ratestream", LAYERS) == []


def test_imports_inside_the_runtime_point_down() -> None:
    assert complaints(imports_that_point_up, "ratestream.streaming", STREAMING_LAYERS) == []


def test_the_domain_imports_only_the_standard_library() -> None:
    assert complaints(imports_beyond_the_standard_library, "ratestream.rates") == []


def test_services_are_known_only_to_what_starts_them() -> None:
    assert complaints(imports_between_services) == []


def test_each_library_is_met_in_one_place() -> None:
    assert complaints(libraries_away_from_home) == []


def test_each_library_is_declared() -> None:
    """Not only brought along by another one."""
    project = tomllib.loads((SRC.parent / "pyproject.toml").read_text())["project"]
    declared = {
        canonicalize_name(Requirement(each).name)
        for each in [*project["dependencies"], *project["optional-dependencies"]["local"]]
    }
    distributions = packages_distributions()
    undeclared = {
        library
        for module, source in SOURCES.items()
        for library in {name.split(".")[0] for name in imports(module, source)}
        if library not in sys.stdlib_module_names | {"ratestream"}
        and not declared & {canonicalize_name(each) for each in distributions.get(library, ())}
    }
    assert undeclared == set()


def test_only_settings_read_the_environment() -> None:
    found = complaints(environment_reads)
    assert [each for each in found if not each.startswith("ratestream.settings:")] == []


def test_everything_is_caught_only_at_the_boundaries() -> None:
    counts: dict[str, int] = {}
    for complaint in complaints(blind_excepts):
        module = complaint.split(":")[0]
        counts[module] = counts.get(module, 0) + 1
    assert counts == BLIND_EXCEPTS


def test_no_modules_import_each_other_in_a_ring() -> None:
    assert cycle(import_graph()) == []


IMPORT_WITHOUT_NETWORK = """
import importlib, sys

def refuse(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        raise RuntimeError(f"{event}{arguments} while importing")

sys.addaudithook(refuse)
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def import_without_network(*modules: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", IMPORT_WITHOUT_NETWORK, *modules]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_importing_opens_no_socket_and_starts_no_process() -> None:
    modules = [name for name in SOURCES if not any(is_in(name, each) for each in NOT_IMPORTABLE)]
    done = import_without_network(*modules)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_service_does_not_load_what_only_a_migration_needs() -> None:
    code = "import sys, ratestream.services.db_loader as _; print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# The rules themselves, each on a text that breaks it.


def test_a_socket_at_import_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talkative.py").write_text("import socket\nsocket.socket()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "while importing" in import_without_network("talkative").stderr


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ratestream.streaming.app", "from ratestream.settings import Settings"),
        ("ratestream.streaming.app", "from ratestream import events"),
        ("ratestream.streaming.app", "def late():\n    import ratestream.rates.pair"),
        ("ratestream.rates.pair", "from ratestream.streaming import App"),
        ("ratestream.events", "from ..ratestream import cli"),
        ("ratestream.storage.tables", "from ratestream.sources.base import Source"),
        ("ratestream.services.db_loader", "from ratestream.up import run"),
        ("ratestream.unheard_of", ""),
    ],
)
def test_an_import_that_points_up_is_noticed(module: str, source: str) -> None:
    assert list(imports_that_point_up(module, source, LAYERS)) != []


@pytest.mark.parametrize(
    "source",
    [
        "from ratestream.streaming.worker import Worker",
        "from .worker import Worker",
        "from . import worker",
        "from ratestream.streaming import Worker",
    ],
)
def test_an_import_that_points_up_inside_the_runtime_is_noticed(source: str) -> None:
    module = "ratestream.streaming.app"
    assert len(list(imports_that_point_up(module, source, STREAMING_LAYERS))) == 1


def test_imports_that_point_down_are_fine() -> None:
    source = "import os\nfrom ratestream.streaming import App\nfrom ratestream.events import Quote"
    assert list(imports_that_point_up("ratestream.services.db_loader", source, LAYERS)) == []
    source = "from ratestream.streaming.types import Record\nfrom .errors import DecodeError"
    assert list(imports_that_point_up("ratestream.streaming.app", source, STREAMING_LAYERS)) == []


@pytest.mark.parametrize(
    ("rule", "module", "source"),
    [
        (
            imports_between_services,
            "ratestream.services.db_loader",
            "from ratestream.services.api_gateway import build",
        ),
        (
            imports_between_services,
            "ratestream.services.db_loader",
            "from . import api_gateway",
        ),
        (imports_between_services, "ratestream.settings", "import ratestream.services.db_loader"),
        (imports_beyond_the_standard_library, "ratestream.rates.pair", "import msgspec"),
        (
            imports_beyond_the_standard_library,
            "ratestream.rates.pair",
            "from ratestream.events import Quote",
        ),
        (libraries_away_from_home, "ratestream.services.db_loader", "from sqlalchemy import text"),
        (libraries_away_from_home, "ratestream.streaming.worker", "import confluent_kafka"),
        (libraries_away_from_home, "ratestream.streaming.store", "import sqlite3 as database"),
        (environment_reads, "ratestream.up", "import os\nhome = os.environ['HOME']"),
        (environment_reads, "ratestream.up", "from os import getenv"),
        (blind_excepts, "ratestream.up", "try: f()\nexcept: pass"),
        (blind_excepts, "ratestream.up", "try: f()\nexcept Exception as e: raise E from e"),
        (blind_excepts, "ratestream.up", "try: f()\nexcept Exception as e: log(e)"),
        (blind_excepts, "ratestream.up", "try: f()\nexcept (ValueError, BaseException): pass"),
    ],
)
def test_a_broken_rule_is_noticed(rule: object, module: str, source: str) -> None:
    assert callable(rule)
    assert len(list(rule(module, source))) == 1


def test_an_exception_that_is_raised_again_is_fine() -> None:
    source = "try: f()\nexcept BaseException:\n    undo()\n    raise"
    assert list(blind_excepts("ratestream.up", source)) == []


def test_a_ring_of_imports_is_noticed() -> None:
    assert cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
