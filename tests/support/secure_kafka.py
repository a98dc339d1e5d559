"""An Apache Kafka that asks who one is: TLS, passwords, certificates, and ACLs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported in fact
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from ratestream.streaming.kafka import KafkaConfig
from tests.support.certificates import Authority
from tests.support.kafka_servers import KafkaCluster, start_kafka

ADMIN = "admin"
USERS = (ADMIN, "topics", "data_requester", "data_processor", "data_aggregator", "db_loader")


def password_of(user: str) -> str:
    return f"{user}-secret"


@dataclass(frozen=True)
class SecureKafka:
    """Its users are `ADMIN`, who may do everything, and the others, who may do nothing until
    they are allowed to; each is known by a password and by a certificate."""

    cluster: KafkaCluster
    authority: Authority

    def with_password(self, user: str, **changes: Any) -> KafkaConfig:
        config = KafkaConfig(
            self.cluster.bootstrap,
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_username=user,
            sasl_password=password_of(user),
            ssl_ca_location=str(self.authority.ca),
            request_timeout=5.0,
        )
        return replace(config, **changes)

    def with_certificate(self, user: str, **changes: Any) -> KafkaConfig:
        own = self.authority.issue(user)
        config = KafkaConfig(
            self.cluster.tls_bootstrap,
            security_protocol="SSL",
            ssl_ca_location=str(self.authority.ca),
            ssl_certificate_location=str(own.certificate),
            ssl_key_location=str(own.key),
            request_timeout=5.0,
        )
        return replace(config, **changes)

    def allow(self, user: str, kind: str, name: str, *operations: str) -> None:
        """`kind` is "topic", "group", or "transactional_id", of which `name` is the prefix;
        operations are named as `kafka-acls` names them."""
        bindings = [acl(user, kind, name, operation) for operation in operations]
        with self._admin() as admin:
            for future in admin.create_acls(bindings).values():
                future.result()

    def forbid(self, user: str) -> None:
        """Take back all that the user was allowed."""
        everything = AclBindingFilter(
            ResourceType.ANY,
            None,  # type: ignore[arg-type]  # any name
            ResourcePatternType.ANY,
            f"User:{user}",
            None,  # type: ignore[arg-type]  # any host
            AclOperation.ANY,
            AclPermissionType.ANY,
        )
        with self._admin() as admin:
            for future in admin.delete_acls([everything]).values():
                future.result()

    def set_password(self, user: str, password: str) -> None:
        credential = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 8192)
        change = UserScramCredentialUpsertion(user, credential, password.encode())
        with self._admin() as admin:
            for future in admin.alter_user_scram_credentials([change]).values():
                future.result()

    def _admin(self) -> AdminClient:
        return AdminClient(self.with_certificate(ADMIN).settings(ADMIN))


def acl(user: str, kind: str, name: str, operation: str) -> AclBinding:
    is_prefix = kind == "transactional_id"
    return AclBinding(
        ResourceType[kind.upper()],
        name,
        ResourcePatternType.PREFIXED if is_prefix else ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        AclOperation[operation],
        AclPermissionType.ALLOW,
    )


@contextmanager
def start_secure_kafka(folder: Path) -> Iterator[SecureKafka]:
    """Yields it with its certificates in `folder`."""
    authority = Authority(folder)
    server = authority.issue("kafka", "127.0.0.1")
    (folder / "server.pem").write_bytes(server.both.read_bytes())
    lines = [f"{user}={password_of(user)}" for user in USERS]
    (folder / "users.properties").write_text("\n".join(lines))
    with start_kafka(secure=folder) as cluster:
        yield SecureKafka(cluster, authority)
