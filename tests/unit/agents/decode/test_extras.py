"""Formats whose packages are extras: without them maps are refused with the command to run."""

from __future__ import annotations

import sys

import pytest

from agents.decode.avro_schema import NoAvroError, fastavro_module
from agents.decode.protobuf_message import NoProtobufError, ProtobufMessage
from agents.decode.records import Decoder
from app.config.settings import load_settings
from app.host.reloads import Reloads
from app.kafka.schema_registry import schemas_of
from app.load.avro_container import has_avro_names
from app.load.plan import MAP_FILE, SOURCE
from app.load.writers import writers_for
from app.mapfile.load import load_map
from app.verify.errors import VerifyError
from app.verify.records import Record, RecordReader
from tables.model.errors import SettingError
from tests.support.common import flight, run_of, small_map
from tests.support.map_text import read

AVRO = 'run: pip install "treasure-map[avro]"'
CONTAINER = b"Obj\x01\x00" + bytes(16)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the packages away."""
    for name in ("fastavro", "fastavro.read", "google.protobuf"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("missing")
def test_the_command_that_installs_a_package_is_named() -> None:
    """By every part that needs one."""
    with pytest.raises(NoAvroError) as avro:
        fastavro_module()
    assert AVRO in str(avro.value)
    with pytest.raises(NoProtobufError) as protobuf:
        ProtobufMessage("", "a.B")
    assert 'run: pip install "treasure-map[protobuf]"' in str(protobuf.value)
    needing = read(("partitions = 12", 'partitions = 12\nformat = "avro"'))
    settings = load_settings({"schema_registry_url": "http://127.0.0.1:1"}, {})
    with pytest.raises(SettingError) as refused:
        schemas_of(settings, needing, Reloads())
    assert AVRO in str(refused.value)


@pytest.mark.usefixtures("missing")
def test_a_worker_without_them_reads_all_other_records() -> None:
    """A container in a source that does not declare Avro is unreadable, with the command."""
    source = small_map().sources[0]
    batch = Decoder(source).decode([run_of([flight(1), CONTAINER, flight(2)])])
    assert batch.frame["time"].to_list() == [1, 2]
    (item,) = batch.aside
    assert item.reason == "avro"
    assert AVRO in item.detail
    reader = RecordReader(source, lambda _: None)
    with pytest.raises(VerifyError) as refused:
        reader.read(Record(0, 0, CONTAINER), many=lambda: False)
    assert AVRO in str(refused.value)


def test_a_mix_of_a_load_has_no_avro_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor events whose names Avro does not have."""
    source = load_map(MAP_FILE).source(SOURCE)
    assert has_avro_names(source)
    assert [one.name for one in writers_for("mixed", source)][-1] == "avro"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert [one.name for one in writers_for("mixed", source)][-1] == "csv"
