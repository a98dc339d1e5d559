"""Settings: what wins, what is refused and how it is told, and that secrets stay secret."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from pydantic import SecretStr, ValidationError

from ratestream.settings import (
    SERVICES,
    KafkaSettings,
    PostgresSettings,
    Settings,
    SettingsError,
    leaves,
    load,
    variable,
)
from ratestream.streaming import WorkerConfig

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hunter2"
URL = f"postgresql://me:{SECRET}@db:5432/rates"


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "ratestream.yaml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def problems(path: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(path)
    return caught.value.problems


def test_nothing_given_is_the_defaults() -> None:
    settings = load()
    assert settings == Settings()
    assert set(settings.provenance.values()) == {"default"}


def test_the_more_specific_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    write("demo_server: {seed: 2, tick_seconds: 3}\ndata_dir: from-file\ntopics: {partitions: 3}")
    monkeypatch.setenv("RATESTREAM_DEMO_SERVER__TICK_SECONDS", "4")
    monkeypatch.setenv("RATESTREAM_DATA_DIR", "from-environment")
    settings = load(
        command_line={"data_dir": "from-command"},
        defaults={"topics.partitions": 5, "data_aggregator.window": 7},
    )
    assert settings.data_dir == Path("from-command")
    assert settings.demo_server.tick_seconds == 4
    assert settings.demo_server.seed == 2
    assert settings.topics.partitions == 3
    assert settings.data_aggregator.window == 7


def test_it_is_known_where_a_value_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    write("log:\n  level: debug\n  format: json\n")
    monkeypatch.setenv("RATESTREAM_LOG__FORMAT", "console")
    settings = load(
        command_line={"data_dir": "here"},
        defaults={"topics.retention_hours": 1, "log.file_count": 3},
    )
    assert settings.provenance["log.level"] == "ratestream.yaml:2"
    assert settings.provenance["log.format"] == "RATESTREAM_LOG__FORMAT"
    assert settings.provenance["data_dir"] == "command line"
    assert settings.provenance["topics.retention_hours"] == "default of this command"
    assert settings.provenance["topics.partitions"] == "default"
    given = {name for name in settings.provenance if settings.is_set(name)}
    assert given == {"log.level", "log.format", "data_dir"}


def test_the_file_may_be_named_by_argument_or_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_CONFIG", str(write("data_dir: two", "two.yaml")))
    assert load().data_dir == Path("two")
    assert load(write("data_dir: one", "one.yaml")).data_dir == Path("one")


def test_lists_in_the_environment_are_yaml_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_DEMO_SERVER__PAIRS", "[USDRUB, EURRUB]")
    assert load().demo_server.pairs == ("USDRUB", "EURRUB")
    sources = [{"kind": "ecb", "interval_seconds": 60}, {"kind": "demo"}]
    monkeypatch.setenv("RATESTREAM_DATA_REQUESTER__SOURCES", json.dumps(sources))
    assert [source.kind for source in load().data_requester.sources] == ["ecb", "demo"]


def test_a_section_may_be_empty() -> None:
    assert load(write("kafka:\nlog:\n  # level: debug\n")) == Settings()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tpoics: {partitions: 8}", "tpoics (ratestream.yaml:1): no such setting"),
        (
            "topics:\n  partitons: 8",
            "topics.partitons (ratestream.yaml:2): no such setting; "
            "did you mean topics.partitions?",
        ),
        (
            "api_gateway: {port: 65536}",
            "api_gateway.port = 65536 (ratestream.yaml:1): must be less than or equal to 65535",
        ),
        (
            "runtime: {commit_interval: .nan}",
            "runtime.commit_interval = nan (ratestream.yaml:1): must be a finite number",
        ),
        (
            "demo_server: {mode: reply}",
            "demo_server.mode = 'reply' (ratestream.yaml:1): must be 'replay', 'random' or 'walk'",
        ),
        (
            "demo_server: {start_date: yesterday}",
            "demo_server.start_date = 'yesterday' (ratestream.yaml:1): must be a valid date",
        ),
        ("demo_server: {pairs: USDRUB}", "demo_server.pairs = 'USDRUB' (ratestream.yaml:1): must"),
        (
            "kafka: {bootstrap_servers: kafka}",
            "kafka.bootstrap_servers = 'kafka' (ratestream.yaml:1): must be host:port",
        ),
        (
            "kafka: {bootstrap_servers: 'SASL_SSL://kafka:9093'}",
            "kafka.bootstrap_servers = 'SASL_SSL://kafka:9093' (ratestream.yaml:1): must be "
            "host:port, without a scheme; see security_protocol",
        ),
        (
            "kafka: {bootstrap_servers: 'a:9092, b:99999'}",
            "kafka.bootstrap_servers = 'a:9092, b:99999' (ratestream.yaml:1): a port must be from "
            "1 to 65535",
        ),
        ("kafka: {security_protocol: SASL_SSL}", "kafka: SASL_SSL also needs sasl_mechanism"),
        ("api_gateway: {default_limit: 5000}", "api_gateway: default_limit is 5000 and max_limit"),
        ("runtime: {session_timeout: 400}", "runtime.session_timeout = 400 (ratestream.yaml:1): "),
        ("runtime: {retry_backoff_min: 60}", "runtime: retry_backoff_min is 60"),
        (
            "postgres: {url: 'postgresql://me:pass/word@db/rates'}",
            "postgres.url = **** (ratestream.yaml:1): must be a postgresql:// URL; in a password",
        ),
        (
            "postgres: {url: 'postgresql://me:70000@[::1]:5432,db:65536/rates'}",
            "postgres.url = **** (ratestream.yaml:1): a port must be at most 65535",
        ),
        (
            "postgres: {ssl_mode: verify-full}",
            "postgres: ssl_mode verify-full also needs ssl_ca_location",
        ),
        (
            "postgres: {ssl_key_location: client.key}",
            "postgres: ssl_certificate_location and ssl_key_location need each other",
        ),
        ("postgres: {ssl_mode: yes}", "postgres.ssl_mode = True (ratestream.yaml:1): must be 'dis"),
        ("runtime: {max_instances: 0}", "runtime.max_instances = 0 (ratestream.yaml:1): must be"),
        ("topics: 8", "topics (ratestream.yaml:1): must be a group of settings"),
        ("[topics]", "ratestream.yaml:1: the settings file must be a mapping"),
        ("log: {level: info}\nlog: {level: info}", "ratestream.yaml:2: log is there twice"),
        ("log: {level: info, level: debug}", "ratestream.yaml:1: log.level is there twice"),
        ("log: {level", "ratestream.yaml: the settings file is not YAML ("),
        ("1: 2", "1 (ratestream.yaml:1): no such setting"),
        (
            "data_requester: {sources: [{kind: demo, intervall_seconds: 1}]}",
            "data_requester.sources[0].demo.intervall_seconds (ratestream.yaml:1): no such",
        ),
        (
            "data_requester: {sources: [{kind: demo, interval_seconds: 0}]}",
            "data_requester.sources[0].demo.interval_seconds = 0 (ratestream.yaml:1): must be",
        ),
        (
            "data_requester: {sources: [{kind: demo}, {kind: demo}]}",
            "data_requester.sources (ratestream.yaml:1): each source needs a name of its own; "
            "used twice: demo",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_name_the_value_and_what_is_allowed(
    text: str, problem: str
) -> None:
    (only,) = problems(write(text))
    assert only.startswith(problem)


@pytest.mark.parametrize(
    "servers",
    [
        *("", ":9092", "kafka", "kafka:0", "kafka:65536", "kafka:٩٠٩٢", "kafka:9092,"),
        *("::1:9092", "[::1]", "[kafka]:9092", "me@kafka:9092", "kafka:9092/x", "a:1 b:2"),
    ],
)
def test_an_address_of_kafka_that_cannot_be_is_refused(servers: str) -> None:
    with pytest.raises(ValidationError, match="bootstrap_servers"):
        KafkaSettings(bootstrap_servers=servers)


@pytest.mark.parametrize(
    "servers",
    ["kafka:1", "my_kafka-1.example.:65535", "10.0.0.1:9092,b:9092 , c:9092", "[::1]:9092"],
)
def test_addresses_of_kafka_may_be_names_and_numbers(servers: str) -> None:
    assert KafkaSettings(bootstrap_servers=servers).bootstrap_servers == servers


def test_every_problem_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_POSTGRES__POOL_SIZE", "many")
    monkeypatch.setenv("RATESTREAM_POSTGRES_URL", URL)
    found = problems(write("log: {level: loud, colour: true}"))
    assert sorted(line.split(" ")[0] for line in found) == [
        "RATESTREAM_POSTGRES_URL",
        "log.colour",
        "log.level",
        "postgres.pool_size",
    ]


def test_an_unknown_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RATESTREAM_POSTGRES_URL", URL)
    assert problems() == (
        "RATESTREAM_POSTGRES_URL (environment variable): no such setting; "
        "did you mean RATESTREAM_POSTGRES__URL?",
    )


def test_a_value_may_be_read_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_POSTGRES__PASSWORD_FILE", str(write(f"{SECRET}\r\n", "one")))
    monkeypatch.setenv("RATESTREAM_DEMO_SERVER__PAIRS_FILE", str(write("- USDRUB\n", "two")))
    monkeypatch.setenv("ratestream_topics__partitions_file", str(write("3", "three")))
    settings = load(write("topics: {partitions: 2}"))
    assert settings.postgres.password == SecretStr(SECRET)
    assert settings.demo_server.pairs == ("USDRUB",)
    assert settings.topics.partitions == 3
    assert settings.provenance["postgres.password"] == "RATESTREAM_POSTGRES__PASSWORD_FILE"
    assert settings.provenance["topics.partitions"] == "ratestream_topics__partitions_file"
    assert settings.in_force()["postgres.password"] == "****"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\xff", "is not UTF-8 text"),
        (b"x" * 65_537, "has more than 65536 bytes"),
    ],
)
def test_a_file_that_gives_no_value_is_refused(
    content: bytes | None, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        Path("secret").write_bytes(content)
    monkeypatch.setenv("RATESTREAM_POSTGRES__PASSWORD_FILE", "secret")
    assert problems() == (
        f"postgres.password (RATESTREAM_POSTGRES__PASSWORD_FILE): the file secret {problem}",
    )


def test_what_is_no_file_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo("pipe")
    for place in ("pipe", "."):
        monkeypatch.setenv("RATESTREAM_POSTGRES__PASSWORD_FILE", place)
        assert problems() == (
            f"postgres.password (RATESTREAM_POSTGRES__PASSWORD_FILE): {place} is no regular file",
        )


def test_a_variable_that_names_no_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_POSTGRES__PASSWORD_FILE", "")
    assert problems() == ("postgres.password (RATESTREAM_POSTGRES__PASSWORD_FILE): names no file",)


def test_a_variable_close_to_the_files_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_CONFIG_FILE", "rates.yaml")
    (only,) = problems()
    assert only.endswith("; did you mean RATESTREAM_CONFIG?")


def test_a_path_of_one_key_is_a_list_too() -> None:
    source = "{kind: json, name: mine, url: 'http://rates', base: USD, rates_path: rates}"
    (only,) = problems(write(f"data_requester: {{sources: [{source}]}}"))
    assert only.endswith(
        "rates_path = 'rates' (ratestream.yaml:1): must be a list of keys, such as [rates]"
    )


@pytest.mark.parametrize(
    ("setting", "others"),
    [
        ("ssl_ca_location", {}),
        ("ssl_certificate_location", {"ssl_key_location": "key.pem"}),
    ],
)
def test_a_file_for_tls_that_is_of_no_use_is_named(setting: str, others: dict[str, str]) -> None:
    kafka = KafkaSettings(security_protocol="SSL", **{setting: "my.pem"}, **others)
    with pytest.raises(
        SettingsError, match=rf"^kafka\.{setting}: my.pem.* cannot be read: No such"
    ):
        kafka.config()
    write("nothing", "my.pem")
    write("nothing", "key.pem")
    with pytest.raises(SettingsError, match=rf"^kafka\.{setting}: my.pem.* is of no use: "):
        kafka.config()


def test_a_wrong_value_in_a_file_is_refused_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_TOPICS__PARTITIONS_FILE", str(write("none\n", "partitions")))
    (only,) = problems()
    assert only.startswith("topics.partitions = 'none' (RATESTREAM_TOPICS__PARTITIONS_FILE): must")


def test_a_value_and_a_file_with_it_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_POSTGRES__PASSWORD", SECRET)
    monkeypatch.setenv("RATESTREAM_POSTGRES__PASSWORD_FILE", str(write(SECRET, "secret")))
    assert problems() == (
        "postgres.password: set RATESTREAM_POSTGRES__PASSWORD or "
        "RATESTREAM_POSTGRES__PASSWORD_FILE, not both",
    )


def test_a_file_for_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_POSTGRES__PASWORD_FILE", "secret")
    assert problems() == (
        "RATESTREAM_POSTGRES__PASWORD_FILE (environment variable): no such setting; "
        "did you mean RATESTREAM_POSTGRES__PASSWORD_FILE?",
    )


def test_no_setting_can_be_taken_for_the_file_of_another() -> None:
    assert [name for name in leaves() if variable(name).endswith("_FILE")] == []


def test_variables_for_tests_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_TEST_KAFKA", "127.0.0.1:9092")
    assert load() == Settings()


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_refused(name: str) -> None:
    (only,) = problems(Path(name))
    assert only.startswith(f"{name}: the settings file cannot be read (")


def test_a_file_that_is_not_text_is_refused() -> None:
    Path("binary.yaml").write_bytes(b"data_dir: \xff")
    assert problems(Path("binary.yaml")) == ("binary.yaml: the settings file is not UTF-8 text",)


def test_secrets_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATESTREAM_KAFKA__SASL_PASSWORD", SECRET)
    monkeypatch.setenv("RATESTREAM_KAFKA__EXTRA", f"{{ssl.key.password: {SECRET}}}")
    source = {
        "kind": "json",
        "name": "paid",
        "url": "https://rates",
        "base": "EUR",
        "headers": {"Authorization": SECRET},
    }
    monkeypatch.setenv("RATESTREAM_DATA_REQUESTER__SOURCES", json.dumps([source]))
    settings = load(command_line={"postgres.url": URL})
    assert settings.in_force()["postgres.url"] == "****"
    assert settings.in_force()["kafka.extra"] == {"ssl.key.password": "****"}
    assert SECRET not in f"{settings!r}{settings}{settings.in_force()}{settings.provenance}"
    assert SECRET in settings.postgres.url.get_secret_value()


@pytest.mark.parametrize(
    "text",
    [
        f"postgres: {{url: 'mysql://me:{SECRET}@db'}}",
        f"postgres: {{urll: '{URL}'}}",
        f"postgres: '{URL}'",
        f"potsgres: {{url: '{URL}'}}",
        f"kafka: {{sasl_password: [{SECRET}]}}",
        f"kafka: {{extra: '{SECRET}'}}",
        f"kafka: {{security_protocol: SASL_SSL, sasl_password: {SECRET}}}",
        f"data_requester: {{sources: [{{kind: demo, url: 'http://me:{SECRET}@host'}}]}}",
        f"data_requester: {{sources: [{{kind: json, headers: {{Key: [{SECRET}]}}}}]}}",
        f"data_requester: {{sources: [{{kind: jsn, headers: {{Key: {SECRET}}}}}]}}",
    ],
)
def test_secrets_are_not_in_error_messages(text: str) -> None:
    assert SECRET not in "\n".join(problems(write(text)))


def test_a_postgres_url_alone_stays_what_it_says() -> None:
    url = "postgresql://me:a%40b@db:5432/rates?sslmode=disable"
    assert PostgresSettings(url=SecretStr(url)).dsn() == url
    alias = "postgres+asyncpg://me@/rates?host=%2Frun%2Fpostgresql"
    assert PostgresSettings(url=SecretStr(alias)).dsn() == (
        "postgresql://me@/rates?host=%2Frun%2Fpostgresql"
    )


def test_postgres_settings_win_over_the_url() -> None:
    password = "p@/: %ü&=#+?"
    parts = urlsplit(
        PostgresSettings(
            url=SecretStr("postgresql://me:old@[::1]:5433,b:6/rates?sslmode=prefer&sslkey=k"),
            password=SecretStr(password),
            ssl_mode="verify-full",
            ssl_ca_location="/a folder/ca.pem",
            ssl_certificate_location="client.pem",
            ssl_key_location="client.key",
        ).dsn()
    )
    assert (parts.netloc, parts.path) == ("me@[::1]:5433,b:6", "/rates")
    assert parse_qs(parts.query) == {
        "password": [password],
        "sslmode": ["verify-full"],
        "sslrootcert": ["/a folder/ca.pem"],
        "sslcert": ["client.pem"],
        "sslkey": ["client.key"],
    }


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().topics.partitions = 1  # type: ignore[misc]


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in leaves().items() if not field.description] == []


def test_runtime_defaults_are_those_of_the_runtime() -> None:
    config = Settings().worker_config("api_gateway")
    assert config == WorkerConfig(port=8007)


def test_each_service_listens_on_loopback_and_a_port_of_its_own() -> None:
    configs = [Settings().worker_config(service) for service in SERVICES]
    assert {config.host for config in configs} == {"127.0.0.1"}
    assert [config.port for config in configs] == [8002, 8003, 8004, 8005, 8006, 8007]


def test_dead_letters_have_room_for_any_record_and_the_reason() -> None:
    topics = Settings().topics
    larger, usual = topics.dead_letter_options(), topics.options()
    assert larger["max_message_bytes"] == usual["max_message_bytes"] + 128 * 1024
    assert usual["retention_ms"] == 7 * 24 * 3600 * 1000
    assert topics.model_copy(update={"retention_hours": 0}).options()["retention_ms"] == -1


def test_the_documents_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "settings-docs"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_every_setting_is_documented_with_its_variable() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert [name for name in leaves() if f"`{variable(name)}`" not in page] == []


def test_the_example_file_says_the_defaults() -> None:
    text = (ROOT / "ratestream.example.yaml").read_text()
    assert load(write(text)) == Settings()
    uncommented = re.sub(r"^( *)#(?! )", r"\1", text, flags=re.MULTILINE)
    uncommented = re.sub(r"^( *)#(?=  \w)", r"\1", uncommented, flags=re.MULTILINE)
    found = load(write(uncommented))
    assert found.model_dump() == Settings().model_dump()
    assert all(found.is_set(name) for name in leaves())
    assert list(yaml.safe_load(uncommented)) == list(Settings.model_fields)
