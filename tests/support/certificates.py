"""Certificates for a test: an authority, and what it issues to servers and clients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


@dataclass(frozen=True)
class Certificate:
    """PEM files: the certificates up to the authority's, the key (PKCS #8, readable only by its
    owner), and both in one file."""

    certificate: Path
    key: Path
    both: Path


class Authority:
    """A certificate authority of its own. Its files are in `folder`; `ca` is what to trust."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, *hosts: str) -> Certificate:
        """A certificate for servers at `hosts` and for the client `name`, its common name."""
        issued = self._authority.issue_cert(*(hosts or ("client.test",)), common_name=name)
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        key = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return Certificate(
            certificate=self._written(f"{name}.crt", chain),
            key=self._written(f"{name}.key", key_pem),
            both=self._written(f"{name}.pem", key_pem + chain),
        )

    def _written(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return path
