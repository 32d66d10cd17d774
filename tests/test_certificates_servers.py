"""A real broker and a real node that want certificates: encrypted keys, and renewed ones."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import servers
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from pki import PASSPHRASE, Authority, Certificate
from secure_servers import SecureCassandra, SecureKafka
from support import small_map, until

from app.connections import cassandra_settings, kafka_options
from app.reloads import Reloads
from app.settings import Settings
from tables.errors import ArchiveError


def put(made: Certificate, folder: Path) -> None:
    """Put a certificate and its encrypted key where settings name them."""
    (folder / "c.crt").write_bytes(made.cert_file.read_bytes())
    (folder / "c.key").write_bytes(made.locked_key_file.read_bytes())
    (folder / "c.password").write_text(f"{PASSPHRASE}\n")


def files(of: str, authority: Authority, folder: Path) -> dict[str, str]:
    """Return the settings of one client."""
    return {
        f"{of}_ca_file": str(authority.ca_file),
        f"{of}_cert_file": str(folder / "c.crt"),
        f"{of}_key_file": str(folder / "c.key"),
        f"{of}_key_password_file": str(folder / "c.password"),
    }


@pytest.mark.kafka
async def test_a_renewed_certificate_opens_a_broker_without_a_restart(tmp_path: Path) -> None:
    """For the next connection that is made with the options of the start."""
    if (missing := servers.why_missing("kafka")) is not None:
        pytest.skip(missing)
    authority = Authority(tmp_path)
    put(Authority(tmp_path / "other").issue("worker"), tmp_path)
    looks = Reloads(lambda _: None)
    with SecureKafka(tmp_path / "kafka", authority) as kafka:
        options = kafka_options(Settings(**files("kafka", authority, tmp_path)), looks)

        async def connect() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=kafka.at["MUTUAL"], **options)
            try:
                await producer.start()
            finally:
                await producer.stop()

        with pytest.raises(KafkaConnectionError):
            await connect()
        put(authority.issue("worker"), tmp_path)
        looks.look()
        assert looks.warnings() == []
        await connect()


@pytest.mark.cassandra
async def test_a_renewed_certificate_opens_a_node_without_a_restart(tmp_path: Path) -> None:
    """Likewise, by the archive that the settings make."""
    if (missing := servers.why_missing("cassandra")) is not None:
        pytest.skip(missing)
    from tables.archive_cassandra import CassandraArchive  # noqa: PLC0415 - an extra

    authority = Authority(tmp_path)
    put(Authority(tmp_path / "other").issue("worker"), tmp_path)
    looks = Reloads(lambda _: None)
    with SecureCassandra(tmp_path / "cassandra", authority, mutual=True) as node:
        settings = Settings(
            cassandra_port=node.port, cassandra_hosts=(node.host,),
            cassandra_username="cassandra", cassandra_password="cassandra",  # noqa: S106
            **files("cassandra", authority, tmp_path),
        )  # fmt: skip
        archive = CassandraArchive(cassandra_settings(settings, looks))
        with pytest.raises(ArchiveError):
            await archive.open(small_map())
        put(authority.issue("worker"), tmp_path)
        looks.look()
        assert looks.warnings() == []

        async def is_open() -> bool:
            # The superuser is made soon after the start.
            try:
                await archive.open(small_map())
            except ArchiveError:
                await asyncio.sleep(1)
            return archive.is_open

        await until(is_open, 60)
        await archive.check()
        await archive.close()
