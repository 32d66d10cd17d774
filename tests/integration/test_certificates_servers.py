"""A real broker and a real node that want certificates: encrypted keys, and renewed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

from app.config.connections import cassandra_settings, kafka_options
from app.config.settings import Settings, load_settings
from app.host.reloads import Reloads
from tables.model.errors import ArchiveError, ArchiveRefusedError
from tests.support.common import small_map
from tests.support.pki import PASSPHRASE, Authority, Certificate
from tests.support.secure_servers import SecureCassandra, SecureKafka


def put(made: Certificate, folder: Path) -> None:
    """Put a certificate and its encrypted key at the paths of the settings."""
    (folder / "c.crt").write_bytes(made.cert_file.read_bytes())
    (folder / "c.key").write_bytes(made.locked_key_file.read_bytes())
    (folder / "c.password").write_text(f"{PASSPHRASE}\n")


def files(of: str, authority: Authority, folder: Path) -> dict[str, Any]:
    """Return the settings of one client."""
    return {
        f"{of}_ca_file": str(authority.ca_file),
        f"{of}_cert_file": str(folder / "c.crt"),
        f"{of}_key_file": str(folder / "c.key"),
        f"{of}_key_password_file": str(folder / "c.password"),
    }


def trust(authority: Authority, ca_file: Path) -> None:
    """Have a file of authorities hold this one alone."""
    ca_file.write_bytes(authority.ca_file.read_bytes())


@pytest.mark.kafka
async def test_a_broker_of_an_authority_that_was_taken_out_is_not_connected_to(
    secure_kafka: SecureKafka, tmp_path: Path
) -> None:
    """A connection that is open goes on; the next one is refused, and taken once it is back."""
    ca_file, other = tmp_path / "ca.pem", Authority(tmp_path / "other")
    trust(secure_kafka.authority, ca_file)
    looks = Reloads()
    login = secure_kafka.login(user="admin", kafka_ca_file=str(ca_file))
    options = kafka_options(load_settings(login, {}), looks)
    at = {"bootstrap_servers": secure_kafka.at["SECURE"]} | options
    async with AIOKafkaProducer(**at) as open_before:
        # Its first connection is of the bootstrap; the broker itself gets another.
        assert await open_before.client.fetch_all_metadata()
        trust(other, ca_file)
        looks.look()
        assert await open_before.client.fetch_all_metadata()
        refused = AIOKafkaProducer(**at)
        with pytest.raises(KafkaConnectionError):
            await refused.start()
        await refused.stop()
        assert await open_before.client.fetch_all_metadata()
    trust(secure_kafka.authority, ca_file)
    looks.look()
    async with AIOKafkaProducer(**at) as again:
        assert await again.client.fetch_all_metadata()


@pytest.mark.cassandra
async def test_a_node_of_an_authority_that_was_taken_out_is_not_connected_to(
    secure_cassandra: SecureCassandra, tmp_path: Path
) -> None:
    """Likewise; the archive that is open goes on."""
    from tables.archive.cassandra.archive import CassandraArchive  # noqa: PLC0415 - an extra

    ca_file, other = tmp_path / "ca.pem", Authority(tmp_path / "other")
    trust(secure_cassandra.authority, ca_file)
    looks = Reloads()
    settings = Settings(
        cassandra_port=secure_cassandra.port, cassandra_hosts=("localhost",),
        cassandra_keyspace="taken_out", cassandra_ca_file=str(ca_file),
        cassandra_username="cassandra", cassandra_password="cassandra",  # noqa: S106
    )  # fmt: skip
    made = cassandra_settings(settings, looks)
    archive = CassandraArchive(made)
    await archive.open(small_map())
    trust(other, ca_file)
    looks.look()
    await archive.check()
    refused = CassandraArchive(made)
    with pytest.raises(ArchiveRefusedError, match="not signed by an authority"):
        await refused.open(small_map())
    await refused.close()
    await archive.check()
    await archive.close()


@pytest.mark.kafka
async def test_a_renewed_certificate_opens_a_broker_without_a_restart(
    secure_kafka: SecureKafka, tmp_path: Path
) -> None:
    """The next connection that is made with the options of the start has them."""
    put(secure_kafka.clients["stranger"], tmp_path)
    looks = Reloads()
    settings = Settings(**files("kafka", secure_kafka.authority, tmp_path))
    options = kafka_options(settings, looks)

    async def connect() -> None:
        producer = AIOKafkaProducer(bootstrap_servers=secure_kafka.at["MUTUAL"], **options)
        try:
            await producer.start()
        finally:
            await producer.stop()

    with pytest.raises(KafkaConnectionError):
        await connect()
    put(secure_kafka.clients["worker"], tmp_path)
    looks.look()
    assert looks.warnings() == []
    await connect()


@pytest.mark.cassandra
async def test_a_renewed_certificate_opens_a_node_without_a_restart(
    mutual_cassandra: SecureCassandra, tmp_path: Path
) -> None:
    """Likewise, by the archive that the settings make."""
    from tables.archive.cassandra.archive import CassandraArchive  # noqa: PLC0415 - an extra

    authority = mutual_cassandra.authority
    put(Authority(tmp_path / "other").issue("worker"), tmp_path)
    looks = Reloads()
    settings = Settings(
        cassandra_port=mutual_cassandra.port, cassandra_hosts=(mutual_cassandra.host,),
        cassandra_tls_name="cassandra.example", cassandra_keyspace="renewed",
        cassandra_username="cassandra", cassandra_password="cassandra",  # noqa: S106
        **files("cassandra", authority, tmp_path),
    )  # fmt: skip
    archive = CassandraArchive(cassandra_settings(settings, looks))
    with pytest.raises(ArchiveError):
        await archive.open(small_map())
    put(authority.issue("renewed"), tmp_path)
    looks.look()
    assert looks.warnings() == []
    await archive.open(small_map())
    await archive.check()
    await archive.close()
