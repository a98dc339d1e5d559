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
    keys = ((METADATA, 9), (SASL_HANDSHAKE, 1), (API_VERSIONS, 3), (SASL_AUTHENTICATE, 0))
    ranges = b"".join(struct.pack(">hhhb", key, 0, newest, 0) for key, newest in keys)
    versions = struct.pack(">hb", 0, len(keys) + 1) + ranges + struct.pack(">ib", 0, 0)
    with connection.makefile("rwb") as stream:
        while size := stream.read(4):
            request = stream.read(struct.unpack(">i", size)[0])
            key, _, correlation = struct.unpack(">hhi", request[:8])
            if key != API_VERSIONS:
                return
            answer = struct.pack(">i", correlation) + versions
            stream.write(struct.pack(">i", len(answer)) + answer)
            stream.flush()


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
