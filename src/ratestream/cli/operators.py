"""The commands for operators: `topics`, `db`, `dead-letter` and `doctor`.

Exit code 0 when all is well, 1 when something is wrong.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from ratestream.cli.options import KAFKA, POSTGRES, ConfigOption, DataDirOption, given
from ratestream.cli.output import Format, escaped, print_findings, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from ratestream.cli.place import Place
    from ratestream.operations.doctor import RunCheck
    from ratestream.operations.findings import Finding
    from ratestream.operations.letters import Filter, ReplayedLetter, ShownLetter

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _group(name: str, about: str) -> typer.Typer:
    return typer.Typer(name=name, help=about, no_args_is_help=True, rich_markup_mode=None)


topics = _group("topics", "The topics that the services need.")
db = _group("db", "The schema in Postgres.")
dead_letter = _group("dead-letter", "Records that a service refused.")


def _ago(text: str) -> datetime:
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time: a number and s, m, h or d, such as 2h")
    try:
        return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is longer ago than there are dates") from None


def _services_address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or "{service}" not in text:
        raise typer.BadParameter(
            f"{text!r} is no address of every service: it starts with http:// or https:// and has "
            "{service} where the name goes, such as http://{service}:8000"
        )
    return text


FormatOption = Annotated[Format, typer.Option(help="How to print.")]
TopicOption = Annotated[str | None, typer.Option(help="Only what was refused on this topic.")]
ServiceOption = Annotated[str | None, typer.Option(help="Only what this service refused.")]
ReasonOption = Annotated[
    str | None, typer.Option(help="Only with this text in the reason, in capitals or not.")
]
SinceOption = Annotated[
    datetime | None,
    typer.Option(parser=_ago, metavar="TIME", help="Only the last 30s, 15m, 2h or 3d."),
]


@topics.command("create")
def create_topics(
    format: FormatOption = Format.TEXT,  # noqa: A002
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make every topic that does not exist, as the services would; existing ones stay as they
    are."""
    from ratestream.operations.topics import CreateTopics

    with _place(config, data_dir, [KAFKA], format, changing=True) as place:
        made = asyncio.run(place.perform(CreateTopics()))
    if format is Format.JSON:
        print_json(place.where, made)
        return
    print_table(
        ("topic", "partitions", ""),
        [(each.name, str(each.partitions), "made" if each.made else "exists") for each in made],
    )


@topics.command("check")
def check_topics(
    format: FormatOption = Format.TEXT,  # noqa: A002
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Compare every topic with the settings."""
    from ratestream.operations.topics import CheckTopics

    with _place(config, data_dir, [KAFKA], format) as place:
        _tell(place, asyncio.run(place.perform(CheckTopics())), format)


@db.command("upgrade")
def upgrade_database(
    format: FormatOption = Format.TEXT,  # noqa: A002
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Bring the schema up to date, and grant to postgres.loader_role and postgres.gateway_role
    exactly what they need."""
    from ratestream.operations.database import UpgradeDatabase

    with _place(config, data_dir, [POSTGRES], format, changing=True) as place:
        done = asyncio.run(place.perform(UpgradeDatabase()))
    if format is Format.JSON:
        print_json(place.where, done)
        return
    if done.before == done.after:
        print(f"the schema has version {done.after} already")
    else:
        print(f"the schema has version {done.after} now; it had {done.before or 'none'}")
    if done.roles and not done.excess:
        print(f"{escaped(' and '.join(done.roles))} may do what they need, and nothing else")
    for each in done.excess:
        print(f"{escaped(each)}, which another role gave it: take it away there")


@db.command("check")
def check_database(
    format: FormatOption = Format.TEXT,  # noqa: A002
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Say which version the schema has, which grants are missing, and whose rows there are."""
    from ratestream.operations.database import CheckDatabase

    with _place(config, data_dir, [POSTGRES], format) as place:
        _tell(place, asyncio.run(place.perform(CheckDatabase())), format)


@dead_letter.command("list")
def list_letters(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Letters, at most.")] = 20,
    topic: TopicOption = None,
    service: ServiceOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    replayed: Annotated[
        bool, typer.Option("--replayed", help="Those that were replayed, too.")
    ] = False,
    format: FormatOption = Format.TEXT,  # noqa: A002
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """The newest letters, newest first."""
    from ratestream.operations.letters import Filter, ListDeadLetters

    wanted = Filter(topic, service, reason, since, replayed)
    with _place(config, data_dir, [KAFKA], format) as place:
        found = asyncio.run(place.perform(ListDeadLetters(limit, wanted)))
    if format is Format.JSON:
        print_json(place.where, found)
        return
    if found.letters:
        rows = [
            (
                each.id + (" replayed" if each.replayed else ""),
                f"{each.time:%Y-%m-%d %H:%M:%SZ}",
                *(each.topic, each.service, each.reason, each.key or ""),
            )
            for each in found.letters
        ]
        print_table(("id", "time", "topic", "service", "reason", "key"), rows)
    else:
        print("no letters")
    if not found.is_complete:
        print("older ones were not looked at, it took too long: narrow it down with --since")


@dead_letter.command("show")
def show_letter(
    id: Annotated[str, typer.Argument(help="As `ratestream dead-letter list` shows it.")],  # noqa: A002
    format: FormatOption = Format.TEXT,  # noqa: A002
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """One letter with its headers and its value."""
    from ratestream.operations.letters import ShowDeadLetter

    with _place(config, data_dir, [KAFKA], format) as place:
        letter = asyncio.run(place.perform(ShowDeadLetter(id)))
    if format is Format.JSON:
        print_json(place.where, letter)
    else:
        _print_letter(letter)


@dead_letter.command("replay")
def replay_letters(
    ids: Annotated[
        list[str] | None, typer.Argument(help="As `ratestream dead-letter list` shows them.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="All that the options below leave, oldest first.")
    ] = False,
    topic: TopicOption = None,
    service: ServiceOption = None,
    reason: ReasonOption = None,
    since: SinceOption = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also those that were replayed before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing; say what would be sent.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    format: FormatOption = Format.TEXT,  # noqa: A002
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Send letters again to the topics they came from, and mark them as replayed."""
    from ratestream.operations.letters import Filter, Outcome

    wanted = Filter(topic, service, reason, since, replayed=again)
    if all_ == bool(ids) or (ids and wanted != Filter(replayed=again)):
        raise typer.BadParameter("give letters, or --all and what it is to be narrowed down to")
    with _place(config, data_dir, [KAFKA], format, changing=not dry_run) as place:
        chosen = ids or asyncio.run(_chosen(place, wanted))
        if chosen and not (dry_run or yes):
            _confirm(len(chosen), is_open=all_)
        results = asyncio.run(_replay(place, chosen, again=again, dry_run=dry_run))
    if format is Format.JSON:
        print_json(place.where, results)
    else:
        _print_replayed(results)
    if any(each.outcome is Outcome.REFUSED for each in results):
        raise typer.Exit(1)


def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            parser=_services_address,
            metavar="URL",
            help="Where services answer, such as http://{service}:8000. Default: what the "
            "settings say.",
        ),
    ] = None,
    sources: Annotated[bool, typer.Option("--sources", help="Ask each rate source, too.")] = False,
    format: FormatOption = Format.TEXT,  # noqa: A002
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Check everything that a deployment stands on, and say what to do."""
    from ratestream.operations.doctor import Check, RunCheck

    wanted = [RunCheck(check, address) for check in Check if sources or check is not Check.SOURCES]
    with _place(config, data_dir, [KAFKA, POSTGRES], format) as place:
        findings = asyncio.run(_diagnosed(place, wanted))
        _tell(place, findings, format)


@contextmanager
def _place(
    config: Path | None,
    data_dir: Path | None,
    needs: Sequence[str],
    format_: Format,
    *,
    changing: bool = False,
) -> Iterator[Place]:
    """Says where it is first, and keeps quiet what only repeats the error that will be shown."""
    from ratestream.cli.place import place_of
    from ratestream.observability import configure_logs
    from ratestream.settings import load

    settings = load(config, given({"data_dir": data_dir}))
    configure_logs(settings.log.model_copy(update={"level": "error"}))
    with place_of(settings, needs, changing=changing) as place:
        if format_ is Format.TEXT:
            print(place.where, flush=True)
        yield place


def _tell(place: Place, findings: Sequence[Finding], format_: Format) -> None:
    """Ends with exit code 1 unless all is well."""
    from ratestream.operations.findings import is_fine

    if format_ is Format.JSON:
        print_json(place.where, findings)
    else:
        print_findings(findings)
    if not is_fine(findings):
        raise typer.Exit(1)


async def _diagnosed(place: Place, wanted: Sequence[RunCheck]) -> list[Finding]:
    from ratestream.operations.doctor import diagnose

    with _progress("checking", len(wanted)) as step:

        async def perform(check: RunCheck) -> list[Finding]:
            findings = await place.perform(check)
            step(1)
            return findings

        return await diagnose(wanted, perform)


async def _chosen(place: Place, wanted: Filter) -> list[str]:
    """Oldest first, as they came."""
    from ratestream.operations.errors import OperationError
    from ratestream.operations.letters import MAX_LISTED, ListDeadLetters

    found = await place.perform(ListDeadLetters(MAX_LISTED, wanted))
    if len(found.letters) == MAX_LISTED or not found.is_complete:
        raise OperationError(
            f"there are {MAX_LISTED} letters or more, or it took too long to find all: narrow it "
            "down with --since, --topic, --service or --reason"
        )
    return [each.id for each in reversed(found.letters)]


def _confirm(count: int, *, is_open: bool) -> None:
    """`is_open`: the letters were not named one by one."""
    if sys.stdin.isatty():
        typer.confirm(f"Send {count} letters again?", abort=True)
    elif is_open:
        raise typer.BadParameter(f"{count} letters would be sent again: --yes agrees to it")


async def _replay(
    place: Place, ids: Sequence[str], *, again: bool, dry_run: bool
) -> list[ReplayedLetter]:
    from ratestream.operations.letters import MAX_REPLAYED, ReplayDeadLetters

    results: list[ReplayedLetter] = []
    with _progress("replaying", len(ids)) as step:
        for start in range(0, len(ids), MAX_REPLAYED):
            batch = list(ids[start : start + MAX_REPLAYED])
            results += await place.perform(ReplayDeadLetters(batch, again, dry_run))
            step(len(batch))
    return results


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], Any]]:
    """A bar on a terminal while it lasts; yields what moves it."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


def _print_letter(letter: ShownLetter) -> None:
    print(f"letter     {letter.id}, {letter.time:%Y-%m-%d %H:%M:%SZ}")
    for name, content in letter.headers:
        print(f"{escaped(name):10} {escaped(content)}")
    if letter.key is not None:
        print(f"key        {escaped(letter.key)}")
    if letter.value is None:
        print("without a value")
        return
    shown = "\n".join(map(escaped, _readable(letter.value).splitlines()))
    print(f"\n{shown}")
    if letter.value_bytes > len(letter.value.encode()):
        print(f"… the beginning of {letter.value_bytes} bytes")


def _readable(value: str) -> str:
    """JSON is laid out, every number as it was written; anything else stays as it is."""
    import msgspec

    try:
        return msgspec.json.format(value, indent=2)
    except msgspec.DecodeError:
        return value


def _print_replayed(results: Sequence[ReplayedLetter]) -> None:
    from ratestream.operations.letters import Outcome

    if not results:
        print("no letters")
        return
    words = {
        Outcome.REPLAYED: "sent again to {}",
        Outcome.POSSIBLE: "would be sent again to {}",
        Outcome.REFUSED: "refused: {}",
    }
    for each in results:
        what = each.reason if each.outcome is Outcome.REFUSED else each.topic
        print(f"{each.id}  {words[each.outcome].format(escaped(what))}")
