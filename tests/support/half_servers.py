"""Servers that let a Kafka client come half of the way."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from tests.support.certificates import Certificate

METADATA, SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 3, 17, 18, 36


@contextmanager
def tls_server(certificate: Certificate) -> Iterator[str]:
    """Yields the address of one that shows this certificate and then hangs up."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    def shake_hands(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True).close()

    with serving(shake_hands) as address:
        yield address


@contextmanager
def server_that_hangs_up_at_the_login() -> Iterator[str]:
    """Yields the address of one that says what it can, waits for the SASL handshake, and then
    hangs up, as a broker does that is killed at this moment."""
    with serving(_hang_up_at_the_login) as address:
        yield address


def _hang_up_at_the_login(connection: socket.socket) -> None:
    versions = _versions(
        (METADATA, 9), (SASL_HANDSHAKE, 1), (API_VERSIONS, 3), (SASL_AUTHENTICATE, 0)
    )
    for key, answer in _requests(connection):
        if key != API_VERSIONS:
            return
        answer(versions)


@contextmanager
def server_without_transactions() -> Iterator[str]:
    """Yields the address of one that says where it is, and can do nothing else."""
    with serving(_say_where_it_is) as address:
        yield address


def _say_where_it_is(connection: socket.socket) -> None:
    host, port = connection.getsockname()
    metadata = struct.pack(f">iih{len(host)}si", 1, 1, len(host), host.encode(), port)
    metadata += struct.pack(">hii", -1, 1, 0)  # no rack; the controller; no topics
    answers = {API_VERSIONS: _versions((METADATA, 1), (API_VERSIONS, 3)), METADATA: metadata}
    for key, answer in _requests(connection):
        answer(answers[key])


def _requests(connection: socket.socket) -> Iterator[tuple[int, Callable[[bytes], None]]]:
    """The key of each request, and what answers it."""
    with connection.makefile("rwb") as stream:
        while size := stream.read(4):
            request = stream.read(struct.unpack(">i", size)[0])
            key, _, correlation = struct.unpack(">hhi", request[:8])

            def answer(body: bytes, correlation: int = correlation) -> None:
                stream.write(struct.pack(">ii", len(body) + 4, correlation) + body)
                stream.flush()

            yield key, answer


def _versions(*newest: tuple[int, int]) -> bytes:
    """The answer to `API_VERSIONS`: requests, and the newest version of each."""
    ranges = b"".join(struct.pack(">hhhb", key, 0, version, 0) for key, version in newest)
    return struct.pack(">hb", 0, len(newest) + 1) + ranges + struct.pack(">ib", 0, 0)


@contextmanager
def serving(meet: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yields "127.0.0.1:port", where each client is met in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def meet_one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            meet(connection)

    def meet_all() -> None:
        with suppress(OSError):  # the end
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=meet_one, args=(connection,), daemon=True).start()

    accepting = threading.Thread(target=meet_all)
    accepting.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
