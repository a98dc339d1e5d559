"""pgAdmin with the servers of deploy/pgadmin, on a Postgres with the roles of deploy/postgres.

Its image cannot be had here. The same version comes as a package, and is set up by the steps of the
image's entry point.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.support.compose import Project, copy_of_project, make_secrets, resolved
from tests.support.containers import CACHE, Engine, run

pytestmark = pytest.mark.timeout(540)

PATIENCE_SECONDS = 90.0
GROUP = 2
"""The one that servers.json makes, beside pgAdmin's own."""
CONFIGURATION = """\
import os
SERVER_MODE = True
DATA_DIR = os.environ["PGADMIN_TEST_DATA"]
DEFAULT_SERVER = "0.0.0.0"
DEFAULT_SERVER_PORT = {port}
MASTER_PASSWORD_REQUIRED = False
"""


def install(version: str) -> Path:
    """A Python with this pgAdmin, made once."""
    folder = CACHE / f"pgadmin-{version}"
    python = folder / "bin" / "python"
    finished = folder / "finished"
    if not finished.exists():
        run(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = (str(python), "-m", "pip", "install", "--quiet", "--prefer-binary")
        run(*pip, f"pgadmin4=={version}", seconds=400)
        finished.touch()
    return python


def set_up(python: Path, project: Project, data: Path) -> tuple[dict[str, str], Path]:
    """What the image's entry point does before it starts the server; its environment, and the
    program."""
    service = project.config["services"]["pgadmin"]
    given = service["environment"]
    secrets = {name: Path(each["file"]) for name, each in project.config["secrets"].items()}
    [package] = python.parents[1].glob("lib/python3*/site-packages/pgadmin4")
    port = given["PGADMIN_LISTEN_PORT"]
    (package / "config_local.py").write_text(CONFIGURATION.format(port=port))
    email = given["PGADMIN_DEFAULT_EMAIL"]
    environment = {
        "PATH": os.environ["PATH"],
        "PGADMIN_TEST_DATA": str(data),
        "PGADMIN_SETUP_EMAIL": email,
        "PGADMIN_SETUP_PASSWORD": secrets["pgadmin_password"].read_text().strip(),
    }
    servers = project.config["configs"]["pgadmin_servers"]["file"]
    setup = (str(python), str(package / "setup.py"))
    run(*setup, "setup-db", environment=environment)
    run(*setup, "load-servers", servers, "--user", email, environment=environment)
    storage = data / "storage" / email.replace("@", "_")
    storage.mkdir(parents=True)
    shutil.copy(secrets["pgadmin_passfile"], storage / ".pgpass")
    (storage / ".pgpass").chmod(0o600)
    return environment, package / "pgAdmin4.py"


def log_in(url: str, email: str, password: str) -> httpx.Client:
    client = httpx.Client(base_url=url, timeout=30)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            page = client.get("/login")
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline, "pgAdmin does not answer"
            time.sleep(0.5)
    found = re.search(r'csrfToken": "([^"]+)"', page.text)
    assert found is not None, page.text[:2000]
    form = {
        "email": email,
        "password": password,
        "csrf_token": found[1],
        "internal_button": "Login",
    }
    answer = client.post("/authenticate/login", data=form, follow_redirects=True)
    assert answer.status_code == 200
    script = client.get("/browser/js/utils.js").text
    token = re.search(r"csrf_token'?\]?\s*[=:]\s*[\"']([^\"']+)[\"']", script)
    assert token is not None, script[:2000]
    client.headers["X-pgA-CSRFToken"] = token[1]
    return client


def connect(pgadmin: httpx.Client, server: int) -> httpx.Response:
    """As a click on the server does; no password is given."""
    return pgadmin.post(f"/browser/server/connect/{GROUP}/{server}")


@pytest.fixture(scope="module")
def pgadmin(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[httpx.Client]:
    folder = copy_of_project(tmp_path_factory.mktemp("project"))
    make_secrets(folder)
    project = Project(engine, folder, resolved(folder))
    service = project.config["services"]["pgadmin"]
    python = install(service["image"].rpartition(":")[2])
    try:
        project.make_networks()
        project.start_postgres()
        environment, program = set_up(python, project, folder / "pgadmin")
        project.serve("pgadmin", "outside", [str(python), str(program)], environment)
        url = f"http://{project.address('pgadmin', 'outside')}:8080"
        password = environment["PGADMIN_SETUP_PASSWORD"]
        with closing(log_in(url, environment["PGADMIN_SETUP_EMAIL"], password)) as client:
            yield client
    finally:
        project.close()


def test_both_servers_are_registered(pgadmin: httpx.Client) -> None:
    listed = pgadmin.get(f"/browser/server/nodes/{GROUP}/").json()["result"]
    assert {each["label"] for each in listed} == {
        "ratestream (owner, asks for the password)",
        "ratestream (read only)",
    }


def test_the_reading_role_connects_without_a_question(pgadmin: httpx.Client) -> None:
    answer = connect(pgadmin, 1)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"]["connected"]


def test_the_owner_has_to_give_the_password(pgadmin: httpx.Client) -> None:
    assert connect(pgadmin, 2).status_code == httpx.codes.PRECONDITION_REQUIRED
