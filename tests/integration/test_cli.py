"""The command as people start it: a process, its output, its exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
import yaml

from ratestream import __version__
from ratestream.settings import SERVICES, Settings

COMMAND = [str(Path(sys.executable).with_name("ratestream"))]
SECRET = "hunter2"


def environment(more: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "RATESTREAM" not in name}
    return {**kept, **more}


def ratestream(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refusal(*arguments: str, cwd: Path, **variables: str) -> str:
    """The one line with which the command ends."""
    done = ratestream(*arguments, cwd=cwd, **variables)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_it_says_its_version(tmp_path: Path) -> None:
    done = ratestream("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"ratestream {__version__}\n")


def test_the_version_needs_no_heavy_import(tmp_path: Path) -> None:
    code = (
        "import sys; from ratestream.cli import main; sys.argv = ['ratestream', '--version']\n"
        "try: main()\n"
        "finally: print([m for m in ('ratestream.settings', 'rich') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.splitlines()[1:] == ["[]"]


def test_it_lists_the_services(tmp_path: Path) -> None:
    assert ratestream("services", cwd=tmp_path).stdout.split() == list(SERVICES)


def test_config_prints_values_and_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "ratestream.yaml").write_text("log: {level: debug}")
    done = ratestream("config", "--data-dir", "d", cwd=tmp_path, RATESTREAM_TOPICS__PARTITIONS="3")
    assert done.returncode == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert 'data_dir "d" (command line)' in lines
    assert 'log.level "debug" (ratestream.yaml:1)' in lines
    assert "topics.partitions 3 (RATESTREAM_TOPICS__PARTITIONS)" in lines
    assert "api_gateway.port 8007 (default)" in lines


def test_config_prints_yaml_that_can_be_read_back(tmp_path: Path) -> None:
    done = ratestream("config", "--format", "yaml", cwd=tmp_path)
    printed = yaml.safe_load(done.stdout)
    assert list(printed) == list(Settings.model_fields)
    assert printed["api_gateway"] == Settings().api_gateway.model_dump()
    del printed["postgres"]["url"]
    assert Settings.model_validate(printed).model_dump() == Settings().model_dump()


def test_config_tells_what_is_different_in_up(tmp_path: Path) -> None:
    done = ratestream("config", "--up", cwd=tmp_path)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "postgres.retention_days 30 (default of this command)" in lines


def test_config_shows_no_secret(tmp_path: Path) -> None:
    done = ratestream(
        "config",
        cwd=tmp_path,
        RATESTREAM_POSTGRES__URL=f"postgresql://me:{SECRET}@db/rates",
        RATESTREAM_KAFKA__SASL_PASSWORD=SECRET,
    )
    assert done.returncode == 0
    assert "****" in done.stdout
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [["up"], ["run", "db_loader"], ["config"]])
def test_wrong_settings_stop_the_start(command: list[str], tmp_path: Path) -> None:
    line = refusal(*command, cwd=tmp_path, RATESTREAM_LOG__LEVEL="loud")
    assert line == (
        "ratestream: log.level = 'loud' (RATESTREAM_LOG__LEVEL): "
        "must be 'debug', 'info', 'warning' or 'error'"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_is_there_for_those_who_ask(tmp_path: Path) -> None:
    done = ratestream("--debug", "config", cwd=tmp_path, RATESTREAM_LOG__LEVEL="loud")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_an_unknown_service_is_refused(tmp_path: Path) -> None:
    line = refusal("run", "db-loader", cwd=tmp_path)
    assert line.startswith("ratestream: no service is called 'db-loader'; there are demo_server, ")


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal("up", cwd=tmp_path, **ports({"api_gateway": port}))
    assert line.startswith(f"ratestream: cannot listen: api_gateway.port ({port} on 127.0.0.1): ")
    assert "RATESTREAM_API_GATEWAY__PORT" in line
    assert not (tmp_path / ".ratestream" / "postgres").exists()


def test_a_port_given_twice_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = refusal("up", cwd=tmp_path, **ports({"db_loader": port, "api_gateway": port}))
    assert f"api_gateway.port ({port}) is also another service's" in line


def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refusal("up", "--data-dir", "file", cwd=tmp_path, **ports())
    assert line.startswith("ratestream: data_dir file cannot be written (")
    assert line.endswith("give another folder with --data-dir")


def test_a_data_folder_of_a_newer_ratestream_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "format.json").write_text('{"version": 2}')
    line = refusal("up", "--data-dir", "d", cwd=tmp_path, **ports())
    assert line == (
        "ratestream: data_dir d has format 2, this version of ratestream knows formats up to 1: "
        "use a newer ratestream, or another folder"
    )


@pytest.mark.parametrize("text", ["", "{}", '{"version": "1"}', '{"version": 0}', "[1]"])
def test_a_folder_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text(text)
    line = refusal("up", "--data-dir", str(tmp_path), cwd=tmp_path, **ports())
    assert "not a folder of ratestream?" in line


def test_a_data_folder_in_use_is_refused_with_the_process(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from ratestream.up.datafolder import DataFolder\n"
            "folder = DataFolder(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()",
            str(tmp_path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        line = refusal("up", "--data-dir", str(tmp_path), cwd=tmp_path, **ports())
        holder.communicate()
    assert f"is in use by process {holder.pid}: end that one" in line


def test_a_kafka_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    done = ratestream(
        *("up", "--plain", "--kafka", "127.0.0.1:1", "--data-dir", "d"),
        cwd=tmp_path,
        RATESTREAM_KAFKA__REQUEST_TIMEOUT="1",
        **ports(),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ratestream: ")
    assert "Traceback" not in done.stderr


def test_a_postgres_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    url = f"postgresql://me:{SECRET}@127.0.0.1:1/rates"
    done = ratestream("up", "--plain", "--postgres", url, cwd=tmp_path, **ports())
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ratestream: ")
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr + done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_runs_alone_until_it_is_asked_to_stop(
    number: signal.Signals, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*COMMAND, "run", "demo_server"],
        cwd=tmp_path,
        env=environment(
            {"RATESTREAM_DEMO_SERVER__PORT": str(port), "RATESTREAM_LOG__FORMAT": "json"}
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until_live(port, process)
        process.send_signal(number)
        _, logged = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    events = [json.loads(line) for line in logged.splitlines()]
    assert {event["service"] for event in events} == {"demo_server"}


def wait_until_live(port: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health/live").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(process.communicate())


def ports(wanted: Mapping[str, int] | None = None) -> dict[str, str]:
    """Variables that give every service a free port, except for those wanted."""
    given = dict.fromkeys(SERVICES, 0) | dict(wanted or {})
    return {f"RATESTREAM_{name.upper()}__PORT": str(port) for name, port in given.items()}
