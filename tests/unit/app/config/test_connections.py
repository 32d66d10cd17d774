"""Settings as the clients of Kafka and Cassandra want them."""

from __future__ import annotations

import ssl
from typing import Any

import aiokafka
import pytest

from app.config.connections import cassandra_settings, kafka_options
from app.config.settings import Settings
from tables.model.errors import SettingError

LOGIN: dict[str, Any] = {"kafka_username": "worker", "kafka_password": "of the broker"}


@pytest.mark.parametrize(
    ("settings", "protocol"),
    [
        (Settings(), "PLAINTEXT"),
        (Settings(kafka_tls=True), "SSL"),
        (Settings(kafka_sasl_mechanism="PLAIN", **LOGIN), "SASL_PLAINTEXT"),
        (Settings(kafka_tls=True, kafka_sasl_mechanism="SCRAM-SHA-512", **LOGIN), "SASL_SSL"),
    ],
)
async def test_the_protocol_follows_from_tls_and_login(settings: Settings, protocol: str) -> None:
    """Four ways to reach a broker; aiokafka takes the options of each."""
    options = kafka_options(settings)
    assert options["security_protocol"] == protocol
    await aiokafka.AIOKafkaProducer(bootstrap_servers="127.0.0.1:9092", **options).stop()


def test_a_login_has_mechanism_name_and_password() -> None:
    """SCRAM too takes them by the names that aiokafka has for PLAIN."""
    options = kafka_options(Settings(kafka_sasl_mechanism="SCRAM-SHA-256", **LOGIN))
    assert options["sasl_mechanism"] == "SCRAM-SHA-256"
    assert options["sasl_plain_username"] == "worker"
    assert options["sasl_plain_password"] == LOGIN["kafka_password"]


def test_tls_checks_the_broker_and_its_name() -> None:
    """A certificate of somebody else does not count."""
    context = kafka_options(Settings(kafka_tls=True))["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def test_empty_settings_of_cassandra_are_none() -> None:
    """The driver gets no option for a setting that is not set."""
    pytest.importorskip("cassandra")
    settings = cassandra_settings(Settings(cassandra_hosts=("a", "b"), cassandra_port=9043))
    assert (settings.hosts, settings.port) == (("a", "b"), 9043)
    assert (settings.username, settings.password, settings.tls) == (None, None, None)
    assert not settings.tls


@pytest.mark.parametrize(("text", "copies"), [("2", 2), ("east:3", 3)])
def test_replication_is_a_number_of_copies_in_the_own_data_centre(text: str, copies: int) -> None:
    """A number, or one for the data centre that the worker is in."""
    pytest.importorskip("cassandra")
    settings = Settings(cassandra_local_dc="east", cassandra_replication=text)
    assert cassandra_settings(settings).replication == copies


@pytest.mark.parametrize("text", ["west:3", "east:3,west:3", "west:3,east:3"])
def test_replication_over_other_data_centres_is_refused(text: str) -> None:
    """Such a keyspace is made by hand."""
    pytest.importorskip("cassandra")
    settings = Settings(cassandra_local_dc="east", cassandra_replication=text)
    with pytest.raises(SettingError, match="want a number of copies; make the keyspace by hand"):
        cassandra_settings(settings)


@pytest.mark.parametrize("name", ["cassandra_tls_name", "cassandra_ca_file"])
def test_what_only_tls_needs_turns_tls_on(name: str) -> None:
    """A name that is to be checked is never left unchecked."""
    given: dict[str, Any] = {name: "nodes"}
    settings = Settings(**given)
    assert settings.cassandra_uses_tls


def test_the_name_of_all_nodes_reaches_the_archive() -> None:
    """The driver is to check it."""
    pytest.importorskip("cassandra")
    settings = cassandra_settings(Settings(cassandra_tls_name="cassandra.example"))
    assert settings.tls is not None
    assert settings.tls_name == "cassandra.example"
