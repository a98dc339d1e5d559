"""The embedded Postgres: started, stopped, killed, refused."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

import ratestream.storage.embedded as embedded
from ratestream.storage.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.support.postgres import execute, fetch

HOLDER = """
import sys, time
from pathlib import Path
from ratestream.storage.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print("started", flush=True)
time.sleep(60)
"""


def postmaster_pid(folder: Path) -> int:
    return int((folder / "data" / "postmaster.pid").read_text().split()[0])


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


def start_holder(folder: Path) -> subprocess.Popen[str]:
    """Another process with a server of its own, as the leader of a process group."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_data_is_kept_from_run_to_run(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    with EmbeddedPostgres(folder) as server:
        asyncio.run(execute(server.url, "CREATE TABLE kept AS SELECT 42 AS answer"))
        pid = postmaster_pid(folder)
    assert not is_running(pid)
    with EmbeddedPostgres(folder) as server:
        assert asyncio.run(fetch(server.url, "SELECT answer FROM kept"))[0]["answer"] == 42


def test_starting_and_stopping_twice_is_once(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")
    server.start()
    pid = postmaster_pid(tmp_path / "pg")
    server.start()
    assert postmaster_pid(tmp_path / "pg") == pid
    server.stop()
    server.stop()
    assert not is_running(pid)


def test_only_we_may_enter_and_nothing_listens_on_a_port(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg") as server:
        assert (tmp_path / "pg").stat().st_mode & 0o777 == 0o700
        row = asyncio.run(
            fetch(
                server.url,
                "SELECT current_setting('listen_addresses') AS listen,"
                " current_setting('synchronous_commit') AS sync",
            )
        )[0]
        assert (row["listen"], row["sync"]) == ("", "on")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_its_process(tmp_path: Path, how: signal.Signals) -> None:
    folder = tmp_path / "pg"
    holder = start_holder(folder)
    pid = postmaster_pid(folder)
    os.killpg(holder.pid, how)  # as a terminal's Ctrl-C does: the whole group
    holder.wait()
    end(holder)
    wait_for_end(pid)
    with EmbeddedPostgres(folder) as server:
        assert asyncio.run(fetch(server.url, "SELECT 1 AS one"))[0]["one"] == 1


def test_a_server_left_behind_is_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    holder = start_holder(folder)
    pid = postmaster_pid(folder)
    shell = psutil.Process(os.getsid(pid))
    for each in (psutil.Process(holder.pid), shell, *shell.children()):
        if each.pid != pid:
            each.kill()
    end(holder)
    assert is_running(pid)
    with EmbeddedPostgres(folder) as server:
        assert asyncio.run(fetch(server.url, "SELECT 1 AS one"))[0]["one"] == 1
        assert postmaster_pid(folder) != pid
    assert not is_running(pid)


def test_a_leftover_pid_file_of_somebody_else_harms_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    with EmbeddedPostgres(folder):
        lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
    bystander = subprocess.Popen(["sleep", "60"])
    lines[0] = str(bystander.pid)
    (folder / "data" / "postmaster.pid").write_text("\n".join(lines) + "\n")
    with EmbeddedPostgres(folder) as server:
        assert asyncio.run(fetch(server.url, "SELECT 1 AS one"))[0]["one"] == 1
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LOCK_SECONDS", 0.05)
    with EmbeddedPostgres(tmp_path / "pg") as server:
        with pytest.raises(EmbeddedPostgresError, match="in use by another ratestream"):
            EmbeddedPostgres(tmp_path / "pg").start()
        assert asyncio.run(fetch(server.url, "SELECT 1 AS one"))[0]["one"] == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedPostgresError, match=r"file/pg cannot be used.*--data-dir"):
        EmbeddedPostgres(tmp_path / "file" / "pg").start()


def test_data_of_another_major_version_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "pg" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("99\n")
    with pytest.raises(EmbeddedPostgresError, match="made by Postgres 99 and this is 18"):
        EmbeddedPostgres(tmp_path / "pg").start()


def test_a_long_path_and_one_with_spaces_work(tmp_path: Path) -> None:
    for folder in (tmp_path / "a b%c", tmp_path / ("long" * 25)):
        with EmbeddedPostgres(folder) as server:
            assert asyncio.run(fetch(server.url, "SELECT 1 AS one"))[0]["one"] == 1


def test_a_start_that_was_killed_does_not_stand_in_the_way(tmp_path: Path) -> None:
    unfinished = tmp_path / "pg" / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path / "pg") as server:
        assert asyncio.run(fetch(server.url, "SELECT 1 AS one"))[0]["one"] == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another identity")
def test_where_root_may_not_change_its_shown_id_an_existing_account_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_user_namespace", lambda account: ())
    with pytest.raises(EmbeddedPostgresError, match="run ratestream as an ordinary user"):
        EmbeddedPostgres(tmp_path / "pg").start()  # pytest's own folder lets nobody in

    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        with EmbeddedPostgres(Path(parent) / "pg") as server:
            assert asyncio.run(fetch(server.url, "SELECT 1 AS one"))[0]["one"] == 1
            assert (Path(parent) / "pg").stat().st_uid != 0
        monkeypatch.undo()
        with EmbeddedPostgres(Path(parent) / "pg") as server:
            assert asyncio.run(fetch(server.url, "SELECT 1 AS one"))[0]["one"] == 1
