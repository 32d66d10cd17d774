"""Kafka and Cassandra with TLS, logins and rights; listeners for the mistakes of clients."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.pki import Authority, Certificate
from tests.support.servers import CassandraServer, KafkaServer, free_ports, wait_for_port

PASSWORDS = {"worker": "Kafka/Pa55=wörd;ünusual+Zq7"} | {
    user: f"the password of {user}"
    for user in ("admin", "apply", "reset", "verify", "deadletters", "producer", "reader")
}
"""Passwords by user of Kafka: an administrator, and one for each part of the product.

Letters and signs are such as files and protocols have trouble with.
"""

MAP = """
revision = 1
name = "NAME"
[sources.orders]
topic = "NAME.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["shop"]
[sources.orders.fields]
shop = "string"
cents = "int"
[layers.minute]
source = "orders"
events = ["*"]
key = ["shop"]
window = "1m"
measures = ["count", "sum(cents)"]
publish = "json"
[layers.hour]
from = "minute"
key = ["shop"]
window = "1h"
partitions = 2
"""
"""Map of a source, a published layer and a coarser one; NAME is to be replaced."""

SUPERUSER_S_MAX = 60.0
"""How long after the start of a Cassandra node its superuser may be missing."""

_CERTIFICATES = {
    "SECURE": "server", "MUTUAL": "server", "CLEAR_LOGIN": "",
    "WRONG_HOST": "wronghost", "EXPIRED": "expired", "FOREIGN": "foreign",
}  # fmt: skip
"""Listeners of clients under test, each with the certificate that it shows."""

_PROTOCOLS = {"MUTUAL": "SSL", "CLEAR_LOGIN": "SASL_PLAINTEXT"}
_JAAS = "org.apache.kafka.common.security.{} required {};"


class SecureKafka(KafkaServer):
    """One Kafka node that denies every operation that no ACL allows.

    Its own listener, ``bootstrap``, is in clear and may everything: it is the administrator's.
    Clients under test use ``at[...]``:

    - ``SECURE``: TLS, login by SCRAM-SHA-512 or PLAIN;
    - ``MUTUAL``: TLS with a certificate of the client, whose user is its common name;
    - ``CLEAR_LOGIN``: login without TLS;
    - ``WRONG_HOST``, ``EXPIRED``, ``FOREIGN``: as SECURE, with a bad certificate.

    Attributes:
        at: ``host:port`` of these listeners.
        authority: signed its good certificates.
        clients: certificates of clients: ``worker``, and ``expired`` and ``stranger``, of which it
            should take none.

    Args:
        folder: of its data.
        authority: signs its certificates, and those of clients.
        passwords: by user.
        settings: more properties.
    """

    def __init__(
        self,
        folder: Path,
        authority: Authority,
        passwords: Mapping[str, str] = PASSWORDS,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder)
        ports = free_ports(len(_CERTIFICATES))
        at = {n: f"localhost:{port}" for n, port in zip(_CERTIFICATES, ports, strict=True)}
        self.at = at
        self.authority = authority
        certificates = {
            "server": authority.issue("server"),
            "wronghost": authority.issue("wronghost", "kafka.example"),
            "expired": authority.issue("expired", expired=True),
            "foreign": (foreign := Authority(folder / "foreign", "another")).issue("foreign"),
        }
        self.clients = {
            "worker": authority.issue("worker"),
            "expired": authority.issue("expiredclient", expired=True),
            "stranger": foreign.issue("stranger"),
        }
        self._passwords = dict(passwords)
        own = {"INTERNAL": "PLAINTEXT", "LOOPBACK": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        every = {**self.listeners, **at}
        made = {
            "listeners": ",".join(
                f"{name}://{where.replace('localhost', '127.0.0.1')}"
                for name, where in every.items()
            ),
            "advertised.listeners": ",".join(
                f"{name}://{where}" for name, where in every.items() if name != "CONTROLLER"
            ),
            "listener.security.protocol.map": ",".join(
                f"{name}:{(own | _PROTOCOLS).get(name, 'SASL_SSL')}" for name in every
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:admin",
            "allow.everyone.if.no.acl.found": "false",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
        }
        plain = " ".join(f'user_{user}="{word}"' for user, word in passwords.items())
        for name, certificate in _CERTIFICATES.items():
            prefix = f"listener.name.{name.lower()}"
            if certificate:
                made |= {
                    f"{prefix}.ssl.keystore.type": "PEM",
                    f"{prefix}.ssl.keystore.location": str(certificates[certificate].store_file),
                    f"{prefix}.ssl.truststore.type": "PEM",
                    f"{prefix}.ssl.truststore.location": str(authority.ca_file),
                }
            if name == "MUTUAL":
                made[f"{prefix}.ssl.client.auth"] = "required"
            else:
                made[f"{prefix}.scram-sha-512.sasl.jaas.config"] = _JAAS.format(
                    "scram.ScramLoginModule", ""
                )
                made[f"{prefix}.plain.sasl.jaas.config"] = _JAAS.format(
                    "plain.PlainLoginModule", plain
                )
        self.configure({k: _escaped(v) for k, v in {**made, **(settings or {})}.items()})
        self.format_options = [
            f"--add-scram=SCRAM-SHA-512=[name={user},password={word}]"
            for user, word in passwords.items()
        ]

    def wait_until_serving(self) -> None:
        """Return once all listeners take connections."""
        super().wait_until_serving()
        for at in self.at.values():
            wait_for_port(int(at.rpartition(":")[2]))

    def login(
        self, listener: str = "SECURE", user: str = "worker", **changes: str
    ) -> dict[str, str]:
        """Return the settings of a client that does all right, but for ``changes``."""
        right = {"brokers": self.at[listener]}
        if listener != "CLEAR_LOGIN":
            right["kafka_ca_file"] = str(self.authority.ca_file)
        if listener == "MUTUAL":
            right["kafka_cert_file"] = str(self.clients["worker"].cert_file)
            right["kafka_key_file"] = str(self.clients["worker"].key_file)
        else:
            right["kafka_sasl_mechanism"] = "SCRAM-SHA-512"
            right["kafka_username"] = user
            right["kafka_password"] = self._passwords[user]
        return {name: value for name, value in {**right, **changes}.items() if value}


class SecureCassandra(CassandraServer):
    """One Cassandra node with roles, rights and TLS.

    The superuser is ``cassandra`` with the password ``cassandra``; it is made soon after the start.

    Args:
        folder: of its data.
        authority: signs its certificate, and those of clients.
        identities: the hosts and addresses of its certificate; this machine's if empty.
        mutual: whether clients must show a certificate.

    Attributes:
        authority: signed its certificate.
    """

    def __init__(
        self, folder: Path, authority: Authority, *identities: str, mutual: bool = False
    ) -> None:
        super().__init__(folder)
        self.authority = authority
        self._certificate = authority.issue(f"node-{self.port}", *identities)
        self._mutual = mutual

    def run(self, statement: str, certificate: Certificate | None = None) -> list[Any]:
        """Run a statement as the superuser, who is made soon after the node has started.

        The driver is used as it is, and checks no certificate.
        """
        from cassandra import auth, cluster, policies  # noqa: PLC0415 - an extra

        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if certificate is not None:
            context.load_cert_chain(certificate.cert_file, certificate.key_file)
        profile = cluster.ExecutionProfile(
            policies.DCAwareRoundRobinPolicy("datacenter1"), request_timeout=60
        )
        deadline = time.monotonic() + SUPERUSER_S_MAX
        while True:
            administrator = cluster.Cluster(
                [self.host],
                port=self.port,
                execution_profiles={cluster.EXEC_PROFILE_DEFAULT: profile},
                auth_provider=auth.PlainTextAuthProvider("cassandra", "cassandra"),
                ssl_context=context,
                protocol_version=5,
            )
            try:
                return list(administrator.connect().execute(statement))
            except cluster.NoHostAvailable:
                assert time.monotonic() < deadline, self.log_tail()
            finally:
                administrator.shutdown()

    def _command(self) -> list[str]:
        # The superuser is made so long after the start, lest several nodes make it at once.
        *java, main = super()._command()
        return [*java, "-Dcassandra.superuser_setup_delay_ms=0", main]

    def _yaml(self) -> str:
        return (
            super()._yaml()
            + f"""authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
permissions_validity: 100ms
roles_validity: 100ms
credentials_validity: 100ms
client_encryption_options:
  enabled: true
  optional: false
  require_client_auth: {str(self._mutual).lower()}
  keystore: {self._certificate.store_file}
  truststore: {self.authority.ca_file}
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
"""
        )


def _escaped(value: str) -> str:
    """Return a value for a properties file, which Java reads as Latin-1."""
    return value.encode("ascii", "backslashreplace").decode().replace("\\x", "\\u00")


def checks(authority: Authority | None, own: Certificate | None = None) -> ssl.SSLContext:
    """Return a context that trusts an authority, None for the system's, and shows a certificate."""
    context = ssl.create_default_context(cafile=authority.ca_file if authority else None)
    if own is not None:
        context.load_cert_chain(own.cert_file, own.key_file)
    return context
