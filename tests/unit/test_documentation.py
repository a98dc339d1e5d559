"""The documentation names everything that there is, and what it says to type is what CI runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import typer.main
from pydantic import BaseModel

from ratestream.cli import cli
from ratestream.settings import Settings, variable

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

REQUIREMENTS = ("kafka", "browser", "postgres", "prometheus", "containers", "node")
"""What RATESTREAM_TEST_REQUIRE may name: tests need it, and are skipped without it."""

LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+\s+(.*?)\s*$", re.MULTILINE)


def settings_in(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted names of all settings, the lists themselves and, as `list[].name`, what is in
    their items."""
    for name, field in model.model_fields.items():
        section, items = models_in(field.annotation), models_in_list(field.annotation)
        if not section:
            yield above + name
        for each in section:
            yield from settings_in(each, f"{above}{name}.")
        for each in items:
            yield from settings_in(each, f"{above}{name}[].")


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return models_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [model for each in get_args(annotation) for model in models_in(each)]
    return []


def models_in_list(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is Annotated:
        return models_in_list(get_args(annotation)[0])
    if get_origin(annotation) in (list, tuple):
        return models_in(get_args(annotation)[0])
    return []


def is_documented(setting: str, page: str) -> bool:
    in_item = setting.rpartition("[].")
    return f"`{in_item[2] if in_item[1] else variable(setting)}`" in page


def commands_in(command: Any, above: str = "ratestream") -> Iterator[str]:
    """Every command that does something: `ratestream run`, `ratestream topics create`, …"""
    below = getattr(command, "commands", None)
    if not below:
        yield above
        return
    for name, each in below.items():
        if not each.hidden:
            yield from commands_in(each, f"{above} {name}")


def anchors_in(text: str) -> set[str]:
    """What a link may name behind `#`, as the usual renderers derive it from headings."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings_in(text))
    return {each.replace(" ", "-") for each in plain}


def headings_in(text: str) -> list[str]:
    return HEADING.findall(FENCE.sub("", text))


def broken_links(page: Path) -> Iterator[str]:
    text = page.read_text()
    for target in LINK.findall(FENCE.sub("", text)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            yield f"{page.name}: {target} is not there"
        elif anchor and file.suffix == ".md" and anchor not in anchors_in(file.read_text()):
            yield f"{page.name}: {target} has no such heading"


def is_in_index(page: Path) -> bool:
    """Whether its folder's README.md links it; a README.md is linked from the folder above."""
    folder = page.parent.parent if page.name == "README.md" else page.parent
    linked = LINK.findall((folder / "README.md").read_text())
    return str(page.relative_to(folder)) in linked


def commands_shown(text: str) -> list[str]:
    """The lines to type in shell blocks, without prompt, comment or output."""
    shown = []
    for language, block in FENCE.findall(text):
        for line in block.splitlines():
            if language == "sh" or (language == "console" and line.startswith("$ ")):
                command = line.removeprefix("$ ").split("  #")[0].strip()
                if command and not command.startswith("#"):
                    shown.append(command)
    return shown


def sources() -> Iterator[str]:
    return (path.read_text() for path in sorted((ROOT / "src").rglob("*.py")))


def words_of(*pages: Path) -> set[str]:
    return {word for page in pages for word in re.findall(r"[\w.]+", page.read_text())}


def test_every_setting_is_documented() -> None:
    page = (DOCS / "settings.md").read_text()
    names = list(settings_in(Settings))
    assert [name for name in names if not is_documented(name, page)] == []
    assert {"kafka.bootstrap_servers", "data_requester.sources[].url"} <= set(names)


def test_every_metric_is_documented() -> None:
    named = {
        node.value
        for source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"ratestream_\w+", node.value)
    }
    documented = words_of(DOCS / "metrics.md")
    assert {each for each in named if not {each, f"{each}_total"} & documented} == set()
    assert "ratestream_records_in" in named


def test_every_command_is_documented() -> None:
    commands = list(commands_in(typer.main.get_command(cli)))
    text = "".join(page.read_text() for page in PAGES)
    assert [command for command in commands if command not in text] == []
    assert "ratestream up" in commands


def test_every_error_is_documented() -> None:
    errors = {
        node.name
        for source in sources()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        and node.bases
        and re.fullmatch(r"[A-Z]\w*Error", node.name)
    }
    assert errors - words_of(DOCS / "errors.md") == set()
    assert "StreamingError" in errors


def test_written_reference_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "reference-docs"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_every_page_is_in_the_index_of_its_folder() -> None:
    pages = set(DOCS.rglob("*.md")) - {DOCS / "README.md"}
    assert [page for page in sorted(pages) if not is_in_index(page)] == []


def test_make_knows_every_target_that_the_pages_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        command.split()[1]
        for page in PAGES
        for command in commands_shown(page.read_text())
        if command.startswith("make ")
    }
    assert named - targets == set()


def test_the_two_commands_of_the_readme_are_what_ci_runs() -> None:
    shown = commands_shown((ROOT / "README.md").read_text())
    assert {"make run", "make test"} <= set(shown)
    ci = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^[^#\n]*\bmake test\b", ci, re.MULTILINE)
    # `make run` is run, and stopped with Ctrl-C, by a test.
    assert '"make", "run"' in (ROOT / "tests" / "e2e" / "test_make_run.py").read_text()


def test_contributing_names_every_module_script_and_requirement() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    code = (path for path in (ROOT / "src" / "ratestream").iterdir() if path.name[0] not in "_.")
    modules = {f"{path.name}/" if path.is_dir() else path.name for path in code} - {"py.typed"}
    (layout,) = (block for _, block in FENCE.findall(page) if "src/ratestream/" in block)
    assert modules - set(layout.split()) == set()
    shown = set(re.findall(r"`(scripts/[\w-]+)", page))
    scripts = (path for path in (ROOT / "scripts").iterdir() if path.suffix == "")
    assert {f"scripts/{path.name}" for path in scripts} - shown == set()
    everything = f"RATESTREAM_TEST_REQUIRE={','.join(REQUIREMENTS)}"
    assert f"`{everything}`" in page
    assert everything in (ROOT / ".ci" / "run").read_text()


def test_requirements_are_those_that_tests_ask_for() -> None:
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    asked = r'"(\w+)" (?:not )?in os\.environ\.get\("RATESTREAM_TEST_REQUIRE"'
    assert set(re.findall(asked, text)) == set(REQUIREMENTS)


# That these notice what they are for.


def test_a_link_to_nowhere_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `word`\n[a](#one-word) [b](#two) [c](gone.md) [d](https://x.example)\n")
    assert list(broken_links(page)) == [
        "page.md: #two has no such heading",
        "page.md: gone.md is not there",
    ]


def test_a_page_that_no_index_has_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "README.md").write_text("[folder](folder/README.md) [b](folder/b.md)")
    (folder / "README.md").write_text("[a](a.md)")
    assert is_in_index(folder / "README.md")
    assert is_in_index(folder / "a.md")
    assert not is_in_index(folder / "b.md")


def test_settings_are_found_at_every_depth() -> None:
    class Leaf(BaseModel):
        seconds: float = 1

    class Tree(BaseModel):
        name: str = ""
        leaf: Leaf = Leaf()
        leaves: list[Annotated[Leaf | None, "many"]] = []

    assert list(settings_in(Tree)) == [
        *("name", "leaf.seconds", "leaves", "leaves[].seconds"),
    ]
    assert is_documented("leaf.seconds", "see `RATESTREAM_LEAF__SECONDS`")
    assert not is_documented("leaf.second", "see `RATESTREAM_LEAF__SECONDS`")
    assert is_documented("leaves[].seconds", "an item has `seconds`")


def test_commands_are_told_from_their_output() -> None:
    text = "```console\n$ make run  # starts\nrunning\n```\n```sh\n# first\nmake test\n```\n"
    assert commands_shown(text) == ["make run", "make test"]


def test_the_tests_that_pages_name_exist() -> None:
    named = {
        match
        for page in PAGES
        for match in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text())
    }
    assert named
    missing = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if not (ROOT / file).is_file() or f"def {test}" not in (ROOT / file).read_text()
    ]
    assert missing == []
