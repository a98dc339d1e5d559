"""The command line. Whatever goes wrong is one line on stderr and exit code 1, or 2 when the
command line itself is wrong; what is heavy is imported by the command that needs it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from enum import Enum
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ratestream import __version__
from ratestream.cli.operators import db, dead_letter, doctor, topics
from ratestream.cli.options import ConfigOption, DataDirOption, given
from ratestream.garbage import uncollected

if TYPE_CHECKING:
    from ratestream.settings import Settings
    from ratestream.streaming import App, Worker

_OVERDUE_SECONDS = 1.0

cli = typer.Typer(
    name="ratestream",
    help="Exchange rates as a stream: exact rolling averages and history, in one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(Enum):
    """How `ratestream config` prints."""

    TABLE = "table"
    YAML = "yaml"


def main() -> None:
    """The `ratestream` command."""
    try:
        try:
            cli()
        finally:
            print(end="", flush=True)
    except Exception as error:
        is_unwritten = _drop_output_that_fails()
        if "--debug" in sys.argv[1:] or not (is_unwritten or _is_expected(error)):
            raise
        what = "cannot write what there is to print: " if is_unwritten else ""
        print(f"ratestream: {what}{error}", file=sys.stderr)
        raise SystemExit(1) from None


@cli.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", hidden=True)] = False,
) -> None:
    if version:
        print(f"ratestream {__version__}")
        raise typer.Exit


@cli.command()
def up(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    kafka: Annotated[
        str | None,
        typer.Option(help="Use this Kafka (host:port, …) instead of the broker built in."),
    ] = None,
    postgres: Annotated[
        str | None,
        typer.Option(help="Use this Postgres (postgresql://…) instead of the one built in."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Plain lines instead of the live table.")
    ] = False,
) -> None:
    """Run everything in one process: broker, Postgres and all six services."""
    from ratestream.up import load_settings
    from ratestream.up import up as run_everything

    settings = load_settings(
        config,
        given({"data_dir": data_dir, "kafka.bootstrap_servers": kafka, "postgres.url": postgres}),
    )
    raise typer.Exit(asyncio.run(run_everything(settings, plain=plain)))


@cli.command()
def run(
    service: Annotated[str, typer.Argument(help="One of those that `ratestream services` lists.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Run one service against the Kafka and the Postgres that the settings name."""
    with uncollected():
        from ratestream.cli.builders import builder
        from ratestream.settings import load

        settings = load(config, given({"data_dir": data_dir}))
        build = builder(service)
    asyncio.run(_run_alone(service, build, settings))


@cli.command()
def services() -> None:
    """List the services in the order in which they start."""
    from ratestream.settings import SERVICES

    for name in SERVICES:
        print(name)


@cli.command()
def config(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    format: Annotated[Format, typer.Option(help="How to print.")] = Format.TABLE,  # noqa: A002
    for_up: Annotated[
        bool, typer.Option("--up", help="As `ratestream up` sees them: some defaults differ.")
    ] = False,
) -> None:
    """Print the settings in force and where each value came from. Secrets print as ****."""
    from ratestream.settings import load

    command_line = given({"data_dir": data_dir})
    if for_up:
        from ratestream.up import load_settings

        settings = load_settings(config, command_line)
    else:
        settings = load(config, command_line)
    print("\n".join(_as_yaml(settings) if format is Format.YAML else _as_table(settings)))


cli.command()(doctor)
for group in (topics, db, dead_letter):
    cli.add_typer(group)


async def _run_alone(service: str, build: Callable[[Settings], App], settings: Settings) -> None:
    """Until a signal asks it to stop, or it fails. A second signal does not wait for agents."""
    with uncollected():
        from ratestream.monitoring import run_monitored
        from ratestream.observability import configure_logs, service_name
        from ratestream.streaming import Worker
        from ratestream.streaming.kafka import KafkaBroker
        from ratestream.up.signals import stop_signals

    configure_logs(settings.log)
    broker = KafkaBroker(settings.kafka.config())
    try:
        with service_name(service), stop_signals() as signals:
            worker = Worker(build(settings), broker, settings.worker_config(service))
            Thread(target=_end_when_overdue, args=(service, worker), daemon=True).start()
            running = asyncio.create_task(run_monitored(worker, settings, owns_process=True))
            first = asyncio.create_task(signals.first.wait())
            await asyncio.wait((running, first), return_when=asyncio.FIRST_COMPLETED)
            worker.stop()
            second = asyncio.create_task(signals.second.wait())
            await asyncio.wait((running, second), return_when=asyncio.FIRST_COMPLETED)
            if second.done():
                running.cancel()
            first.cancel()
            second.cancel()
            await asyncio.gather(running, return_exceptions=second.done())
    finally:
        broker.close()


def _end_when_overdue(service: str, worker: Worker) -> None:
    """What will not end by itself, as a program that stands still or swallows its cancellation."""
    while (why := worker.overdue()) is None:
        time.sleep(_OVERDUE_SECONDS)
    print(f"ratestream: {service}: {why}", file=sys.stderr, flush=True)
    os._exit(1)


def _as_table(settings: Settings) -> list[str]:
    rows = [
        (name, _value(value), settings.provenance[name])
        for name, value in settings.in_force().items()
    ]
    width = max(len(name) for name, _, _ in rows)
    return [f"{name:{width}}  {value}  ({where})" for name, value, where in rows]


def _as_yaml(settings: Settings) -> list[str]:
    lines: list[str] = []
    section = ""
    for name, value in settings.in_force().items():
        group, _, leaf = name.rpartition(".")
        if group != section:
            section = group
            lines.append(f"{group}:")
        indent = "  " if group else ""
        lines.append(f"{indent}{leaf}: {_value(value)}  # {settings.provenance[name]}")
    return lines


def _value(value: Any) -> str:
    """As JSON, which is YAML too."""
    return json.dumps(value, ensure_ascii=False)


def _drop_output_that_fails() -> bool:
    """Whether stdout does not take what was printed, as on a full disk. Then what is left goes
    nowhere, so that Python does not try again when it ends."""
    try:
        print(end="", flush=True)
    except OSError:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


def _is_expected(error: Exception) -> bool:
    """Whether its message alone tells people what to do. Packages with binaries do not exist for
    every platform."""
    if isinstance(error, ImportError):
        return not (error.name or "").startswith("ratestream")
    from ratestream.operations.errors import OperationError
    from ratestream.settings import SettingsError
    from ratestream.storage.errors import StorageError
    from ratestream.streaming import StreamingError
    from ratestream.up.errors import StartError

    expected = SettingsError | StorageError | StreamingError | StartError | OperationError
    return isinstance(error, expected)
