"""Until when certificates hold: those in files that settings name, and those that servers show."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509

from ratestream.settings import KafkaSettings, PostgresSettings

SECONDS = 3.0
"""How long a server may take for each step of a handshake."""

READ_SECONDS = 2 * SECONDS
"""How long a certificate may take in all, finding the server's address included."""

_POSTGRES_PORT = 5432
_POSTGRES_SSL_REQUEST = bytes.fromhex("0000000804d2162f")
_ENCRYPTED = ("require", "verify-ca", "verify-full")


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate, or the reason why it cannot be read. `name` says whose it is: "kafka CA",
    "kafka client", "kafka server host:port", and the same of Postgres. `not_after` is in UTC."""

    name: str
    not_after: datetime | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where there is a certificate to read."""

    name: str
    _not_after: Callable[[], datetime]

    def read(self) -> Certificate:
        """Blocks for `READ_SECONDS` at most; never raises for what it finds. Neither a name server
        nor a file system can be given a limit: what takes longer is left behind in a thread that
        the end of the process does not wait for."""
        found: list[Certificate] = []
        looking = Thread(target=lambda: found.append(self._look()), name=self.name, daemon=True)
        looking.start()
        looking.join(READ_SECONDS)
        if not found:
            return Certificate(self.name, None, f"nothing was read within {READ_SECONDS:g} s")
        return found[0]

    def _look(self) -> Certificate:
        try:
            return Certificate(self.name, self._not_after())
        except (OSError, ValueError, x509.InvalidVersion) as error:
            return Certificate(self.name, None, " ".join(str(error).split()))


def kafka_places(kafka: KafkaSettings) -> list[Place]:
    """What settings name, and each bootstrap server when it is to be spoken to in TLS."""
    places = list(_files("kafka", CA=kafka.ssl_ca_location, client=kafka.ssl_certificate_location))
    if not kafka.security_protocol.endswith("SSL"):
        return places
    password = kafka.ssl_key_password.get_secret_value() if kafka.ssl_key_password else ""
    login = _Login(kafka.ssl_certificate_location, kafka.ssl_key_location, password)
    for server in kafka.bootstrap_servers.split(","):
        host, port = _host_and_port(server.strip())
        show = partial(_shown_by_server, host, port, login)
        places.append(Place(f"kafka server {server.strip()}", show))
    return places


def postgres_places(postgres: PostgresSettings) -> list[Place]:
    """What settings or the url name, and the server when it has to be spoken to in TLS."""
    url = urlsplit(postgres.dsn())
    query = dict(parse_qsl(url.query))
    places = list(_files("postgres", CA=query.get("sslrootcert"), client=query.get("sslcert")))
    if query.get("sslmode") not in _ENCRYPTED or "host" in query:
        return places
    login = _Login(query.get("sslcert"), query.get("sslkey"))
    for server in url.netloc.rpartition("@")[2].split(","):
        host, port = _host_and_port(server, _POSTGRES_PORT)
        show = partial(_shown_by_server, host, port, login, _ask_postgres_for_tls)
        places.append(Place(f"postgres server {server}", show))
    return places


@dataclass(frozen=True, slots=True)
class _Login:
    """The client's certificate, for servers that want one before they show theirs."""

    certificate: str | None
    key: str | None
    password: str = ""


def _files(of: str, **paths: str | None) -> Iterator[Place]:
    for whose, path in paths.items():
        if path is not None:
            yield Place(f"{of} {whose}", partial(_in_file, Path(path)))


def _in_file(path: Path) -> datetime:
    """Of several the first to expire."""
    found = x509.load_pem_x509_certificates(path.read_bytes())
    return min(certificate.not_valid_after_utc for certificate in found)


def _shown_by_server(
    host: str, port: int, login: _Login, prepare: Callable[[socket.socket], None] | None = None
) -> datetime:
    # Not verified: the certificate of interest is also the one that verification would refuse,
    # and nothing is sent over this connection.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if login.certificate is not None:
        # With a password given, even an empty one, OpenSSL does not ask the terminal for it.
        context.load_cert_chain(login.certificate, login.key, login.password)
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        if prepare is not None:
            prepare(connection)
        with context.wrap_socket(connection, server_hostname=host) as encrypted:
            shown = encrypted.getpeercert(binary_form=True)
    if shown is None:
        raise ValueError("the server shows no certificate")
    return x509.load_der_x509_certificate(shown).not_valid_after_utc


def _ask_postgres_for_tls(connection: socket.socket) -> None:
    connection.sendall(_POSTGRES_SSL_REQUEST)
    match connection.recv(1):
        case b"S":
            return
        case b"N":
            raise ValueError("the server does not speak TLS")
    raise ValueError("the server does not answer whether it speaks TLS")


def _host_and_port(server: str, default_port: int = 0) -> tuple[str, int]:
    parts = urlsplit(f"//{server}")
    return parts.hostname or "localhost", parts.port or default_port
