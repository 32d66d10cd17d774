"""The schema registry: the answers that are schemas, those of unknown ids, and all others."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.decode.avro_schema import AvroError
from agents.decode.schemas import ID_MAX, UNKNOWN_S, RegistryAwayError, Schemas
from app.config.settings import Settings, load_settings
from app.host.reloads import Reloads
from app.kafka.schema_registry import SchemaRegistry, schemas_of
from app.verify.errors import VerifyError
from app.verify.registry import registry_of
from tables.model.errors import SettingError
from tests.support.map_text import read
from tests.support.pki import LOCAL, Authority
from tests.support.schema_registry import FakeRegistry
from tests.support.waiting import until

LONG = '{"type": "record", "name": "E", "fields": [{"name": "n", "type": "long"}]}'
AVRO = ("partitions = 12", 'partitions = 12\nformat = "avro"')


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """Start a registry with one schema."""
    with FakeRegistry({7: LONG}) as started:
        yield started


def settings_of(url: str, **more: str) -> Settings:
    """Return the settings of a registry."""
    return load_settings({"schema_registry_url": url, **more}, {})


async def test_a_schema_is_asked_for_by_its_id(registry: FakeRegistry) -> None:
    """The path of the URL stays before the path of the interface."""
    settings = settings_of(registry.url + "/")
    assert await SchemaRegistry(settings).schema(7) == LONG
    verify = registry_of(settings)
    assert verify is not None
    assert await asyncio.to_thread(verify, 7) == LONG
    assert registry.asked == ["/schemas/ids/7"] * 2


UNUSABLE: dict[int, tuple[int, bytes, dict[str, str]]] = {
    1: (404, b'{"error_code": 40403, "message": "Schema not found"}', {}),
    2: (200, json.dumps({"schema": LONG, "schemaType": "PROTOBUF"}).encode(), {}),
    3: (200, json.dumps({"schema": LONG, "references": [{"name": "x"}]}).encode(), {}),
    13: (404, b'{"error_code": 40401, "message": "No such artifact"}', {}),
}
AWAY = {
    4: (404, b"<html></html>", {}),
    5: (500, b'{"error_code": 50001, "message": "Error in the backend"}', {}),
    6: (302, b"", {"Location": "/schemas/ids/7"}),
    8: (200, b"no JSON", {}),
    9: (401, b'{"error_code": 401}', {}),
    10: (429, b"", {}),
    11: (404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}', {}),
    12: (404, b'{"error_code": "40403"}', {}),
    14: (404, b"[40403]", {}),
    15: (404, b'{"error_code": 0, "message": "Could not find resource for full path"}', {}),
}


@pytest.mark.parametrize("number", [*UNUSABLE, *AWAY])
async def test_an_answer_without_schema_is_an_unknown_id_or_an_outage(
    number: int, registry: FakeRegistry
) -> None:
    """A wrong path of the URL, or a proxy, must not make dead letters of good records."""
    registry.answers = UNUSABLE | AWAY
    settings = settings_of(registry.url)
    verify = registry_of(settings)
    assert verify is not None
    if number in UNUSABLE:
        with pytest.raises(AvroError):
            await SchemaRegistry(settings).schema(number)
        assert await asyncio.to_thread(verify, number) is None
    else:
        with pytest.raises(RegistryAwayError, match=f"schema {number}"):
            await SchemaRegistry(settings).schema(number)
        with pytest.raises(VerifyError, match=f"schema {number}"):
            await asyncio.to_thread(verify, number)


async def test_a_registry_that_ends_connections_is_away(registry: FakeRegistry) -> None:
    """So is one that nobody runs."""
    registry.is_away = True
    for url in (registry.url, "http://127.0.0.1:1"):
        with pytest.raises(RegistryAwayError):
            await SchemaRegistry(settings_of(url)).schema(7)
        verify = registry_of(settings_of(url))
        assert verify is not None
        with pytest.raises(VerifyError):
            await asyncio.to_thread(verify, 7)


async def test_the_registry_may_want_a_login_and_have_a_certificate(tmp_path: Path) -> None:
    """Of an authority of its own; without it nothing is sent."""
    authority = Authority(tmp_path)
    with FakeRegistry({7: LONG}, authority.issue("registry", *LOCAL)) as registry:
        registry.login = "reader:pässword"
        login = {"schema_registry_username": "reader", "schema_registry_password": "pässword"}
        ca = {"schema_registry_ca_file": str(authority.ca_file)}
        settings = settings_of(registry.url, **login, **ca)
        assert await SchemaRegistry(settings).schema(7) == LONG
        verify = registry_of(settings)
        assert verify is not None
        assert await asyncio.to_thread(verify, 7) == LONG
        registry.asked.clear()
        with pytest.raises(RegistryAwayError, match="certificate"):
            await SchemaRegistry(settings_of(registry.url, **login)).schema(7)
        assert not registry.asked
        with pytest.raises(RegistryAwayError, match="Unauthorized"):
            await SchemaRegistry(settings_of(registry.url, **ca)).schema(7)


async def test_records_wait_for_a_registry_that_is_away(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of the log when it goes, one when it is back; a schema is asked for once."""
    monkeypatch.setattr("agents.decode.schemas.AGAIN_S", (0.02, 0.05))
    monkeypatch.setattr("agents.outage.GRACE_S", 0.1)
    schemas = Schemas(SchemaRegistry(settings_of(registry.url)))
    registry.is_away = True
    task = asyncio.create_task(schemas.learn({7, 8}))

    async def is_away() -> bool:
        return schemas.outage.is_away and len(registry.asked) > 5

    await until(is_away)
    assert not task.done()
    registry.is_away = False
    await task
    assert schemas.lacking({7, 8}) == set()
    with pytest.raises(AvroError, match="cannot read schema 8 of the registry: it has no schema"):
        schemas.get(8)
    schemas.get(7)
    said = [record.getMessage() for record in caplog.records if "registry" in record.getMessage()]
    assert ["does not answer" in said[0], "answers again" in said[1]] == [True, True]
    assert len(said) == 2


async def test_an_unknown_id_is_asked_for_again_after_a_while(registry: FakeRegistry) -> None:
    """A copy of a registry may be behind; the schema of an id never changes."""
    now_s = 100.0
    schemas = Schemas(SchemaRegistry(settings_of(registry.url)), lambda: now_s)
    await schemas.learn({7, 8})
    assert schemas.lacking({7, 8, 9}) == {9}
    registry.schemas[8] = LONG
    now_s += UNKNOWN_S
    assert schemas.lacking({7, 8}) == {8}
    await schemas.learn({8})
    schemas.get(8)
    now_s += 10 * UNKNOWN_S
    assert schemas.lacking({7, 8}) == set()


def test_an_id_that_no_registry_can_have_is_not_asked_for(registry: FakeRegistry) -> None:
    """The answer would be that of a wrong path, and the source would wait for ever."""
    settings = settings_of(registry.url)
    schemas = Schemas(SchemaRegistry(settings))
    assert schemas.lacking({7, ID_MAX, ID_MAX + 1, 2**32 - 1}) == {7, ID_MAX}
    with pytest.raises(AvroError, match="ids end at 2147483647"):
        schemas.get(ID_MAX + 1)
    verify = registry_of(settings)
    assert verify is not None
    assert verify(ID_MAX + 1) is None
    assert registry.asked == []


def test_a_map_that_needs_a_registry_wants_its_url() -> None:
    """Other maps want none."""
    assert schemas_of(Settings(), read(), Reloads()) is None
    with pytest.raises(SettingError, match="set schema_registry_url, or write format"):
        schemas_of(Settings(), read(AVRO), Reloads())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schema_registry_url": "http://registry:8081"}, "beyond loopback without TLS"),
        ({"schema_registry_url": "registry:8081"}, "want a URL"),
        ({"schema_registry_username": "reader"}, "without schema_registry_password"),
    ],
)
def test_settings_of_a_registry_that_are_not_safe_are_refused(
    given: dict[str, str], said: str
) -> None:
    """A login would go over the network as it is."""
    with pytest.raises(SettingError, match=said):
        load_settings(given, {})
