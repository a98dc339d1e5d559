"""Every setting there is, and where its value comes from.

In order of precedence: the command line, `RATESTREAM_…` environment variables (`__` goes one
level down: RATESTREAM_POSTGRES__URL; with `_FILE` behind the name the value is read from that
file), one YAML file, the defaults below. Whatever is unknown, mistyped or out of bounds stops the
start. This is the only module that reads the environment.
"""

from __future__ import annotations

import difflib
import os
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ratestream.sources.config import (
    DEFAULT_PAIRS,
    DemoSource,
    PairName,
    SourceSettings,
)
from ratestream.streaming.types import ProcessingGuarantee, WorkerConfig

if TYPE_CHECKING:
    from ratestream.storage.roles import Roles
    from ratestream.streaming.kafka import KafkaConfig

ENV_PREFIX = "RATESTREAM_"
CONFIG_VARIABLE = "RATESTREAM_CONFIG"
DEFAULT_FILE = Path("ratestream.yaml")
MASK = "****"
SERVICES = (
    "demo_server",
    "data_requester",
    "data_processor",
    "data_aggregator",
    "db_loader",
    "api_gateway",
)
"""In the order in which they start."""

_DEAD_LETTER_EXTRA_BYTES = 128 * 1024
_HOUR_MS = 3600 * 1000
_FILE_SUFFIX = "_FILE"
_VALUE_FILE_BYTES = 65_536
_NOT_OURS = re.compile(rf"{CONFIG_VARIABLE}|{ENV_PREFIX}TEST_.*")
_URL_CREDENTIALS = re.compile(r"://[^/@\s]+@")
_POSTGRES_HOST = r"(\[[^\]@/]+\]|[^][:@,/?#\s]*)(:\d{1,5})?"
_POSTGRES_URL = re.compile(
    rf"postgres(ql)?(\+asyncpg)?://([^@/?#\s]*@)?{_POSTGRES_HOST}(,{_POSTGRES_HOST})*"
    r"(/[^/?#\s]*)?(\?[^=&#\s]+=[^&#\s]*(&[^=&#\s]+=[^&#\s]*)*)?"
)
_BOOTSTRAP_SERVER = re.compile(
    r"(\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]|[^][:@,/?#%\s]+):(?P<port>[0-9]{1,5})"
)
_ROLE_NAME_LENGTH = 63
_MAX_PORT = 65_535

Host = Annotated[str, Field(min_length=1, description="Address to listen on.")]


class SettingsError(Exception):
    """Settings that cannot be used. `problems` has one line for each, naming the setting, its
    value (secrets masked), where it came from, and what is allowed; `str()` joins them."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True
    )


def _not_above(section: Section, lower: str, upper: str) -> None:
    low, high = getattr(section, lower), getattr(section, upper)
    if low > high:
        raise ValueError(f"{lower} is {low} and {upper} is {high}: it must not be above")


def _check_tls_files(kafka: KafkaSettings, key_password: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority, certificate, key = (
        kafka.ssl_ca_location,
        kafka.ssl_certificate_location,
        kafka.ssl_key_location,
    )
    if authority is not None and not Path(authority).is_dir():
        with _naming("kafka.ssl_ca_location", authority):
            context.load_verify_locations(authority)
    if certificate is not None and key is not None:
        with _naming("kafka.ssl_certificate_location", f"{certificate} or {key}"):
            context.load_cert_chain(certificate, key, key_password)


@contextmanager
def _naming(setting: str, file: str) -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise SettingsError([f"{setting}: {file} is of no use: {_one_line(error)}"]) from error
    except OSError as error:
        raise SettingsError([f"{setting}: {file} cannot be read: {error.strerror}"]) from error


def _port(default: int) -> Any:
    return Field(default=default, ge=0, le=_MAX_PORT, description="TCP port; 0 takes a free one.")


class ServiceSection(Section):
    """What each service has: where it serves its health, metrics and pages."""

    host: Host = "127.0.0.1"
    port: int = _port(0)


class KafkaSettings(Section):
    """Where Kafka is. `ratestream up` needs it only for a Kafka of your own."""

    bootstrap_servers: str = Field(
        default="127.0.0.1:9092",
        description="Addresses of some of the brokers, `host:port`, separated by commas.",
    )
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="How to talk to the brokers."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        default=None, description="How to log in; needed with SASL_PLAINTEXT and SASL_SSL."
    )
    sasl_username: str | None = Field(default=None, description="User to log in as.")
    sasl_password: SecretStr | None = Field(default=None, description="That user's password.")
    ssl_ca_location: str | None = Field(
        default=None, description="File with the certificates to trust; not set: the system's."
    )
    ssl_certificate_location: str | None = Field(
        default=None, description="File with the client's certificate, PEM."
    )
    ssl_key_location: str | None = Field(
        default=None, description="File with the client's key, PEM."
    )
    ssl_key_password: SecretStr | None = Field(
        default=None, description="Password of the client's key."
    )
    request_timeout: float = Field(
        default=10.0,
        ge=0.1,
        le=300,
        description="Seconds that Kafka may take to answer a question.",
    )
    partition_assignment: Literal["cooperative-sticky", "range"] = Field(
        default="cooperative-sticky",
        description="How a group shares partitions: `cooperative-sticky` moves only those that "
        "must move, `range` stops all for a moment.",
    )
    group_protocol: Literal["classic", "consumer"] = Field(
        default="classic",
        description="How instances agree on who reads what: `consumer` is the protocol of Kafka 4 "
        "(KIP-848), which shares partitions out itself and has its time limits at the broker.",
    )
    extra: dict[str, SecretStr] = Field(
        default={},
        max_length=100,
        description="Any other setting of librdkafka, by librdkafka's name; wins over the above.",
    )

    def config(self) -> KafkaConfig:
        """For `KafkaBroker`, with the secrets in it. Raises `SettingsError` for a file that is of
        no use: what librdkafka says of one does not say which."""
        from ratestream.streaming.kafka import KafkaConfig  # loads librdkafka: only when needed

        revealed = _revealed(self)
        if self.security_protocol in ("SSL", "SASL_SSL"):
            _check_tls_files(self, revealed["ssl_key_password"] or "")
        return KafkaConfig(**revealed)

    @field_validator("bootstrap_servers")
    @classmethod
    def _has_ports(cls, servers: str) -> str:
        if "://" in servers:
            raise ValueError("must be host:port, without a scheme; see security_protocol")
        found = [_BOOTSTRAP_SERVER.fullmatch(server.strip()) for server in servers.split(",")]
        if not all(found):
            raise ValueError(
                "must be host:port, or several separated by commas; an IPv6 address in brackets"
            )
        if not all(1 <= int(server["port"]) <= _MAX_PORT for server in found if server):
            raise ValueError(f"a port must be from 1 to {_MAX_PORT}")
        return servers

    @model_validator(mode="after")
    def _login_is_complete(self) -> Self:
        if self.security_protocol.startswith("SASL"):
            names = ("sasl_mechanism", "sasl_username", "sasl_password")
            missing = [name for name in names if getattr(self, name) is None]
            if missing:
                raise ValueError(f"{self.security_protocol} also needs {', '.join(missing)}")
        return self


class PostgresSettings(Section):
    """Where Postgres is, and how long it keeps what it gets."""

    url: SecretStr = Field(
        default=SecretStr("postgresql://ratestream@127.0.0.1:5432/ratestream"),
        description="`postgresql://user:password@host:port/database`. `ratestream up` brings a "
        "Postgres of its own unless this is set.",
    )
    password: SecretStr | None = Field(
        default=None, min_length=1, description="The user's password; wins over the url's."
    )
    ssl_mode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] | None = Field(
        default=None,
        description="How the connection is encrypted and the server recognised, as libpq's "
        "`sslmode`; only `verify-full` is safe against whoever can come between. Not set: what "
        "the url says, or else `prefer`.",
    )
    ssl_ca_location: str | None = Field(
        default=None,
        min_length=1,
        description="File with the certificates to trust, PEM; `verify-ca` and `verify-full` "
        "need it.",
    )
    ssl_certificate_location: str | None = Field(
        default=None, min_length=1, description="File with the client's certificate, PEM."
    )
    ssl_key_location: str | None = Field(
        default=None, min_length=1, description="File with the client's key, PEM."
    )
    pool_size: int = Field(
        default=4, ge=1, le=100, description="Connections that one service keeps at most."
    )
    retention_days: int = Field(
        default=0,
        ge=0,
        le=36_500,
        description="Days after which quotes and averages are deleted; 0 keeps them for ever. "
        "`ratestream up` uses 30 unless this is set.",
    )

    migrate: bool = Field(
        default=True,
        description="Whether db_loader brings the schema up to date when it starts; if not, "
        "`ratestream db upgrade` has to.",
    )
    loader_role: str | None = Field(
        default=None,
        min_length=1,
        max_length=_ROLE_NAME_LENGTH,
        description="Role to which an upgrade of the schema grants what db_loader needs.",
    )
    gateway_role: str | None = Field(
        default=None,
        min_length=1,
        max_length=_ROLE_NAME_LENGTH,
        description="Role to which an upgrade of the schema grants what api_gateway needs.",
    )

    def dsn(self) -> str:
        """One libpq URL that says everything above about the connection, with the password."""
        url = re.sub(r"^postgres(ql)?(\+asyncpg)?:", "postgresql:", self.url.get_secret_value())
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        query |= {name: value for name, value in self._parameters().items() if value is not None}
        netloc = parts.netloc
        if self.password is not None:
            user, _, hosts = netloc.rpartition("@")
            netloc = f"{user.partition(':')[0]}@{hosts}"
            query["password"] = self.password.get_secret_value()
        return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query, quote_via=quote)))

    def roles(self) -> Roles:
        """For `Database.upgrade`."""
        from ratestream.storage.roles import Roles  # loads SQLAlchemy: only when needed

        return Roles(self.loader_role, self.gateway_role)

    def _parameters(self) -> dict[str, str | None]:
        return {
            "sslmode": self.ssl_mode,
            "sslrootcert": self.ssl_ca_location,
            "sslcert": self.ssl_certificate_location,
            "sslkey": self.ssl_key_location,
        }

    @field_validator("url")
    @classmethod
    def _is_postgres(cls, url: SecretStr) -> SecretStr:
        if not _POSTGRES_URL.fullmatch(url.get_secret_value()):
            raise ValueError(
                "must be a postgresql:// URL; in a password write %2F for /, %3A for :, %40 for @ "
                "and so on, or give it as postgres.password"
            )
        ports = re.findall(r":(\d+)(?=,|$)", urlsplit(url.get_secret_value()).netloc)
        if any(int(port) > _MAX_PORT for port in ports):
            raise ValueError(f"a port must be at most {_MAX_PORT}")
        return url

    @model_validator(mode="after")
    def _certificates_are_complete(self) -> Self:
        query = dict(parse_qsl(urlsplit(self.dsn()).query))
        if ("sslcert" in query) != ("sslkey" in query):
            raise ValueError("ssl_certificate_location and ssl_key_location need each other")
        if self.ssl_mode in ("verify-ca", "verify-full") and "sslrootcert" not in query:
            raise ValueError(f"ssl_mode {self.ssl_mode} also needs ssl_ca_location")
        return self


class TopicSettings(Section):
    """What topics are like when ratestream makes them; existing ones stay as they are."""

    partitions: int = Field(
        default=8, ge=1, le=10_000, description="Partitions: as many instances can share the work."
    )
    replication_factor: int = Field(
        default=1, ge=1, le=15, description="Brokers that have each record."
    )
    retention_hours: int = Field(
        default=168,
        ge=0,
        le=876_000,
        description="Hours after which records are deleted; 0 keeps them for ever.",
    )
    max_message_bytes: int = Field(
        default=1_048_576,
        ge=65_536,
        le=67_108_864,
        description="Largest record, bytes. The dead-letter topic takes 131072 more.",
    )

    def options(self) -> dict[str, Any]:
        """Keywords for `App.topic`."""
        forever = self.retention_hours == 0
        return {
            "partitions": self.partitions,
            "retention_ms": -1 if forever else self.retention_hours * _HOUR_MS,
            "max_message_bytes": self.max_message_bytes,
        }

    def dead_letter_options(self) -> dict[str, Any]:
        """Keywords for `App.topic`: room for any record of another topic, and for the reason."""
        larger = self.max_message_bytes + _DEAD_LETTER_EXTRA_BYTES
        return {**self.options(), "max_message_bytes": larger}


class RuntimeSettings(Section):
    """How every service's worker runs; the fields of `ratestream.streaming.WorkerConfig`."""

    batch_max_records: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Records read at once, at most."
    )
    commit_interval: float = Field(
        default=0.1, gt=0, le=60, description="Seconds between two commits, at most."
    )
    commit_max_records: int = Field(
        default=50_000,
        ge=1,
        le=1_000_000,
        description="Records after which a commit does not wait.",
    )
    output_max_records: int = Field(
        default=50_000,
        ge=1,
        le=1_000_000,
        description="Records that agents may have ready to be sent.",
    )
    output_max_bytes: int = Field(
        default=33_554_432, ge=1_048_576, le=1_073_741_824, description="Bytes of those records."
    )
    table_cache_entries: int = Field(
        default=20_000,
        ge=1,
        le=100_000_000,
        description="Decoded entries of a table kept in memory, shared by its partitions.",
    )
    drain_timeout: float = Field(
        default=3.0,
        gt=0,
        le=300,
        description="Seconds that a rebalance or a stop waits for agents; what they have not "
        "finished then is read again.",
    )
    session_timeout: float = Field(
        default=10.0,
        ge=1,
        le=300,
        description="Seconds without a heartbeat after which others take the partitions over.",
    )
    heartbeat_interval: float = Field(
        default=1.0, ge=0.1, le=60, description="Seconds between two heartbeats."
    )
    max_poll_interval: float = Field(
        default=300.0,
        ge=1,
        le=3600,
        description="Seconds between two polls after which the partitions are given to others. "
        "Slow agents are polled for: only a process that stands still takes so long.",
    )
    fetch_buffer_bytes: int = Field(
        default=2_097_152,
        ge=1_048_576,
        le=1_073_741_824,
        description="Bytes of records read ahead; librdkafka needs up to three times as much.",
    )
    delivery_timeout: float = Field(
        default=60.0,
        ge=1,
        le=600,
        description="Seconds after which an unacknowledged record has failed.",
    )
    transaction_timeout: float = Field(
        default=10.0,
        ge=1,
        le=900,
        description="Seconds after which Kafka aborts a transaction that a dead instance left "
        "open; readers wait for it.",
    )
    progress_timeout: float = Field(
        default=300.0,
        ge=5,
        le=86_400,
        description="Seconds without a commit, against a lag and for no reason that is known, "
        "after which a service ends; after half of them it is not ready.",
    )
    standby: bool = Field(
        default=False,
        description="Every instance also keeps the tables of the partitions that it does not own, "
        "so that it takes them over in seconds.",
    )
    static_membership: bool = Field(
        default=False,
        description="An instance that comes back within `session_timeout` gets its partitions "
        "again, and no others are moved meanwhile.",
    )
    retry_backoff_min: float = Field(
        default=0.5, gt=0, le=60, description="Seconds before the first attempt after a failure."
    )
    retry_backoff_max: float = Field(
        default=30.0, gt=0, le=600, description="Seconds between attempts, at most."
    )
    create_topics: bool = Field(default=True, description="Make topics that do not exist.")
    max_instances: int = Field(
        default=16,
        ge=1,
        le=1000,
        description="Instances of one service that may share a data folder.",
    )

    @model_validator(mode="after")
    def _orders_hold(self) -> Self:
        _not_above(self, "heartbeat_interval", "session_timeout")
        _not_above(self, "session_timeout", "max_poll_interval")
        _not_above(self, "retry_backoff_min", "retry_backoff_max")
        return self


class LogSettings(Section):
    """What is logged, and how. Times are UTC."""

    format: Literal["console", "json"] = Field(
        default="console",
        description="`console` for people, `json` for machines: one object a line.",
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least serious level that is logged."
    )
    file_max_bytes: int = Field(
        default=10_485_760,
        ge=65_536,
        le=1_073_741_824,
        description="Size of one log file, bytes. Files are written while `ratestream up` "
        "shows its table, in `<data_dir>/logs`.",
    )
    file_count: int = Field(
        default=5, ge=2, le=100, description="Log files kept, the current included."
    )


class DemoServerSettings(ServiceSection):
    """A small rate source to try ratestream on."""

    port: int = _port(8002)
    mode: Literal["replay", "random", "walk"] = Field(
        default="replay",
        description="`replay`: real ECB reference rates, a day per tick; `random`: unrelated "
        "numbers; `walk`: a random walk.",
    )
    start_date: date = Field(
        default=date(2005, 4, 1),
        ge=date(1999, 1, 4),
        description="First day to replay, and again after the last. RUB starts on 2005-04-01.",
    )
    tick_seconds: float = Field(
        default=1.0, ge=0.001, le=86_400, description="Seconds from one set of rates to the next."
    )
    seed: int = Field(
        default=1,
        ge=0,
        le=2**32 - 1,
        description="Start of `random` and `walk`: the same, the same rates.",
    )
    pairs: tuple[PairName, ...] = Field(
        default=DEFAULT_PAIRS,
        min_length=1,
        max_length=1000,
        description="Pairs to serve: base then quote currency, six capital letters.",
    )


class DataRequesterSettings(ServiceSection):
    """Asks each source on its own timer."""

    port: int = _port(8003)
    sources: tuple[SourceSettings, ...] = Field(
        default=(DemoSource(),),
        max_length=100,
        description="What to ask. `ratestream up` asks demo_server unless this is set. "
        "As an environment variable: YAML or JSON.",
    )

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"each source needs a name of its own; used twice: {', '.join(twice)}")
        return sources


class ExactlyOnceSection(ServiceSection):
    """A service whose input, tables and output are Kafka's."""

    processing_guarantee: ProcessingGuarantee = Field(
        default="exactly_once",
        description="`exactly_once` needs transactions of the broker; with `at_least_once` some "
        "records are repeated after a failure.",
    )


class DataProcessorSettings(ExactlyOnceSection):
    """Checks snapshots and splits them into quotes."""

    port: int = _port(8004)
    max_pairs_per_snapshot: int = Field(
        default=1000, ge=1, le=100_000, description="Rates of one answer; one with more is refused."
    )
    max_digits: int = Field(
        default=30, ge=1, le=200, description="Digits of one rate; one with more is refused."
    )


class DataAggregatorSettings(ExactlyOnceSection):
    """Keeps the mean of each pair's last quotes."""

    port: int = _port(8005)
    window: int = Field(
        default=10, ge=1, le=10_000, description="Quotes that an average is the mean of."
    )


class DbLoaderSettings(ServiceSection):
    """Writes quotes and averages to Postgres."""

    port: int = _port(8006)
    batch_max_rows: int = Field(
        default=5000, ge=1, le=100_000, description="Rows written in one transaction, at most."
    )
    batch_seconds: float = Field(
        default=0.01,
        gt=0,
        le=60,
        description="Seconds to wait for more rows, at most: rows are stored later by so much, in "
        "fewer transactions.",
    )


class ApiGatewaySettings(ServiceSection):
    """Answers questions over HTTP and serves the dashboard."""

    port: int = _port(8007)
    default_limit: int = Field(
        default=10, ge=1, le=100_000, description="Rows in an answer when none are asked for."
    )
    max_limit: int = Field(
        default=1000,
        ge=200,
        le=100_000,
        description="Rows in an answer, however many are asked for; the dashboard asks for 200.",
    )
    max_age: float = Field(
        default=0.2,
        ge=0,
        le=60,
        description="Seconds for which an answer is given again to whoever asks the same; 0 asks "
        "Postgres each time.",
    )

    @model_validator(mode="after")
    def _orders_hold(self) -> Self:
        _not_above(self, "default_limit", "max_limit")
        return self


class Settings(BaseSettings):
    """All settings, checked and frozen. `Settings()` is the defaults; `load` reads the rest."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
    )

    data_dir: Path = Field(
        default=Path(".ratestream"), description="Folder for everything that is kept on disk."
    )
    kafka: KafkaSettings = KafkaSettings()
    postgres: PostgresSettings = PostgresSettings()
    topics: TopicSettings = TopicSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    log: LogSettings = LogSettings()
    demo_server: DemoServerSettings = DemoServerSettings()
    data_requester: DataRequesterSettings = DataRequesterSettings()
    data_processor: DataProcessorSettings = DataProcessorSettings()
    data_aggregator: DataAggregatorSettings = DataAggregatorSettings()
    db_loader: DbLoaderSettings = DbLoaderSettings()
    api_gateway: ApiGatewaySettings = ApiGatewaySettings()

    _provenance: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load` merges the sources, to know what came from where."""
        return (init_settings,)

    @property
    def provenance(self) -> Mapping[str, str]:
        """Where the value of each setting (dotted name) came from, in words."""
        return {name: self._provenance.get(name, "default") for name in leaves()}

    def is_set(self, name: str) -> bool:
        """Whether somebody gave this setting (dotted name) a value."""
        return name in self._provenance and not self._provenance[name].startswith("default")

    def in_force(self) -> dict[str, Any]:
        """Each setting's dotted name and its value as plain data, secrets masked."""
        return {name: shown(_value_at(self, name)) for name in leaves()}

    def worker_config(self, service: str) -> WorkerConfig:
        """How to run this service's app."""
        section: ServiceSection = getattr(self, service)
        return WorkerConfig(
            host=section.host,
            port=section.port,
            data_dir=str(self.data_dir / "state"),
            replication_factor=self.topics.replication_factor,
            **self.runtime.model_dump(),
        )


def load(
    path: Path | None = None,
    command_line: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Read, merge and check all settings. Raises `SettingsError` with every problem found.

    `path` is the YAML file; None means the one that RATESTREAM_CONFIG names, or ratestream.yaml
    in the current folder if there is one. `command_line` and `defaults` (which come before the
    defaults of this module and after everything else) map dotted names to values.
    """
    problems = _unknown_variables()
    environment = _environment(problems)
    origin: dict[str, str] = {}
    data: dict[str, Any] = {}
    for layer in (
        _plain_layer(defaults or {}, "default of this command"),
        _file_layer(path or _default_file(), problems),
        _environment_layer(environment),
        _plain_layer(command_line or {}, "command line"),
    ):
        for name, (value, where) in layer.items():
            origin[name] = where
            _put(data, name, value)
    try:
        settings = Settings(**data)
    except ValidationError as error:
        problems += [_problem(detail, origin) for detail in error.errors(include_url=False)]
    if problems:
        raise SettingsError(problems)
    settings._provenance.update(origin)
    return settings


def leaves(model: type[BaseModel] = Settings, prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting's dotted name, in order, with its declaration."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if _is_section(field):
            found |= leaves(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            found[prefix + name] = field
    return found


def variable(name: str) -> str:
    """The environment variable that sets this setting."""
    return ENV_PREFIX + name.replace(".", "__").upper()


def runtime_folder() -> Path | None:
    """This user's own folder for sockets, where nobody tidies up (`XDG_RUNTIME_DIR`), if there is
    one."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    return folder if folder.is_absolute() and folder.is_dir() else None


def shown(value: Any) -> Any:
    """A value as plain data that may be shown to anybody."""
    match value:
        case SecretStr():
            return MASK
        case BaseModel():
            return {name: shown(getattr(value, name)) for name in type(value).model_fields}
        case dict():
            return {str(key): shown(item) for key, item in value.items()}
        case tuple() | list() | set() | frozenset():
            return [shown(item) for item in value]
        case None | bool() | int() | float():
            return value
    return _masked_credentials(str(value))


_Layer = dict[str, tuple[Any, str]]
"""Dotted name: value, and where it came from."""


def _plain_layer(values: Mapping[str, Any], where: str) -> _Layer:
    return {name: (value, where) for name, value in values.items()}


def _default_file() -> Path | None:
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def _file_layer(path: Path | None, problems: list[str]) -> _Layer:
    if path is None:
        return {}
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        return {} if root is None else dict(_entries(path, root, "", problems))
    except OSError as error:
        problems.append(f"{path}: the settings file cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        problems.append(f"{path}: the settings file is not UTF-8 text")
    except yaml.YAMLError as error:
        problems.append(f"{path}: the settings file is not YAML ({_one_line(error)})")
    return {}


def _entries(
    path: Path, node: yaml.Node, prefix: str, problems: list[str]
) -> Iterator[tuple[str, tuple[Any, str]]]:
    """The settings below a YAML node. A section without any is fine: all may be commented out."""
    where = f"{path}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        if not prefix:
            problems.append(f"{where}: the settings file must be a mapping of names to values")
        elif not _is_null(node):
            problems.append(f"{prefix[:-1]} ({where}): must be a group of settings")
        return
    seen: set[str] = set()
    for key, child in node.value:
        name = f"{prefix}{key.value}"
        if name in seen:
            problems.append(f"{path}:{key.start_mark.line + 1}: {name} is there twice")
        seen.add(name)
        if name in _sections():
            yield from _entries(path, child, f"{name}.", problems)
        else:
            yield name, (_constructed(child), f"{path}:{key.start_mark.line + 1}")


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"


def _constructed(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


_Variables = dict[str, tuple[str, str]]
"""Variable of a setting, in capitals: its value, and the variable that it came from."""


def _environment(problems: list[str]) -> _Variables:
    """What the environment says of our settings, some of it in files that it names."""
    known = {variable(name): name for name in leaves()}
    ours = {name.upper(): name for name in os.environ if name.upper().startswith(ENV_PREFIX)}
    found = {each: (os.environ[ours[each]], ours[each]) for each in known if each in ours}
    for each, setting in known.items():
        if (given := ours.get(each + _FILE_SUFFIX)) is None:
            continue
        if each in found:
            problems.append(f"{setting}: set {found[each][1]} or {given}, not both")
        elif not os.environ[given]:
            problems.append(f"{setting} ({given}): names no file")
        elif (value := _value_in(Path(os.environ[given]), f"{setting} ({given})", problems)) != "":
            found[each] = (value, given)
    return found


def _value_in(path: Path, name: str, problems: list[str]) -> str:
    """Without the line's end; empty when there is a problem."""
    try:
        if not S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            problems.append(f"{name}: {path} is no regular file")
            return ""
        with path.open("rb") as file:
            content = file.read(_VALUE_FILE_BYTES + 1)
        value = content.decode().rstrip("\r\n")
    except OSError as error:
        problems.append(f"{name}: the file {path} cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        problems.append(f"{name}: the file {path} is not UTF-8 text")
    else:
        if len(content) > _VALUE_FILE_BYTES:
            problems.append(f"{name}: the file {path} has more than {_VALUE_FILE_BYTES} bytes")
        elif not value:
            problems.append(f"{name}: the file {path} is empty")
        else:
            return value
    return ""


class _Decoder(EnvSettingsSource):
    """Lists in environment variables may be YAML, of which JSON is a part."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError:
            return value


def _environment_layer(variables: _Variables) -> _Layer:
    decoder = _Decoder(Settings)
    decoder.env_vars = {name.lower(): value for name, (value, _) in variables.items()}
    return {
        name: (value, variables[variable(name)][1]) for name, value in _flattened(decoder(), "")
    }


def _flattened(data: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if name in _sections() and isinstance(value, dict):
            yield from _flattened(value, f"{name}.")
        else:
            yield name, value


def _unknown_variables() -> list[str]:
    plain = [variable(name) for name in leaves()]
    known = [CONFIG_VARIABLE, *plain, *(f"{name}{_FILE_SUFFIX}" for name in plain)]
    ours = sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX))
    return [
        f"{name} (environment variable): no such setting{_nearest(name.upper(), known)}"
        for name in ours
        if name.upper() not in known and not _NOT_OURS.fullmatch(name.upper())
    ]


def _problem(detail: Any, origin: Mapping[str, str]) -> str:
    """One line for one error of pydantic's."""
    location: tuple[str | int, ...] = detail["loc"]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)[1:]
    where = _origin_of(name, origin)
    if detail["type"] == "extra_forbidden":
        return f"{name}{where}: no such setting{_nearest(name, [*leaves(), *_sections()])}"
    value = _shown_input(location, detail.get("input"))
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
    return _masked_credentials(f"{name}{value}{where}: {message}")


def _origin_of(name: str, origin: Mapping[str, str]) -> str:
    for setting, where in origin.items():
        if name == setting or name.startswith((f"{setting}.", f"{setting}[")):
            return f" ({where})"
    return ""


def _shown_input(location: tuple[str | int, ...], value: Any) -> str:
    """The value as given, unless it is a secret, may hold one, or is too long to help."""
    field = _field_at(location)
    if field is None or isinstance(value, BaseModel | dict | list | tuple):
        return ""
    if "SecretStr" in str(field.annotation):
        return f" = {MASK}"
    text = shown(value) if isinstance(value, str) else value
    return f" = {text!r:.80}" if isinstance(text, str | int | float | None) else f" = {text!s:.80}"


def _field_at(location: tuple[str | int, ...]) -> FieldInfo | None:
    models: list[type[BaseModel]] = [Settings] if location else []
    field: FieldInfo | None = None
    for part in (part for part in location if isinstance(part, str)):
        holders = [model for model in models if part in model.model_fields]
        if holders:
            field = holders[0].model_fields[part]
            models = list(_models_in(field.annotation))
    return field if field is not None and not models else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _sections() -> frozenset[str]:
    return frozenset(name for name, field in Settings.model_fields.items() if _is_section(field))


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _masked_credentials(text: str) -> str:
    return _URL_CREDENTIALS.sub(f"://{MASK}@", text)


def _put(data: dict[str, Any], name: str, value: Any) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        data = data.setdefault(section, {})
    data[leaf] = value


def _value_at(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _revealed(value: Any) -> Any:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case BaseModel():
            return {name: _revealed(getattr(value, name)) for name in type(value).model_fields}
        case dict():
            return {key: _revealed(item) for key, item in value.items()}
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
