"""The format that a source declares: its forms in the map, and every way in which it is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from agents.decode.avro_schema import AvroSchema
from app.mapfile.compare import compare
from app.mapfile.load import load_map, parse_map
from tables.model.errors import MapError
from tables.model.layer import RecordForm, needs_registry
from tests.support.map_text import BASE, changed, problems_of, read

AT = "partitions = 12"
COLUMNS = ("@timestamp", "type", "orderId", "vip", "amount", "store", "country", "weight")


def declared(form: str) -> tuple[str, str]:
    """Return the change of the map by which its source declares a format."""
    return AT, f"{AT}\nformat = {form}"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('"csv"', RecordForm("csv")),
        ('{name = "csv"}', RecordForm("csv")),
        ('{name = "csv", delimiter = ";"}', RecordForm("csv", delimiter=";")),
        (
            f"{{name = 'csv', columns = {[*COLUMNS]}}}",
            RecordForm("csv", COLUMNS),
        ),
    ],
)
def test_a_format_is_a_name_or_a_table(text: str, form: RecordForm) -> None:
    """A map without it keeps its digest."""
    assert read(declared(text)).sources[0].format == form
    assert read(declared(text)).digest != read().digest


REFUSED = [
    ('"xml"', "format", "unknown format; got 'xml'"),
    ('"cvs"', "format", "did you mean 'csv'?"),
    ("3", "format", "wrong type; got 3"),
    ("{}", "format.name", "missing; want a text"),
    ('{name = "xml", columns = ["a"]}', "format.name", "unknown format; got 'xml'"),
    ('{name = "avro", columns = ["a"]}', "format.columns", "unknown field"),
    ('{name = "avro", schema = "/nowhere.avsc"}', "format.schema", "cannot read /nowhere.avsc: No"),
    ('{name = "avro", schema = 3}', "format.schema", "wrong type; got 3"),
    ('{name = "csv", separator = ";"}', "format.separator", "unknown field"),
    ('{name = "csv", delimiter = "::"}', "format.delimiter", "got '::'; want ',' or ';'"),
    ('{name = "csv", columns = []}', "format.columns", "want a list of at least one text"),
    ('{name = "csv", columns = ["a", "a"]}', "format.columns", "listed twice: a"),
    (f"{{name = 'csv', columns = {[one for one in COLUMNS if one != 'vip']}}}", "fields.vip",
     "reads 'vip', which is not one of the format's columns"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where", "said"), REFUSED)
def test_a_format_that_cannot_be_used_is_refused_where_it_stands(
    text: str, where: str, said: str
) -> None:
    """One mistake is one problem, or one for each field that reads a column."""
    found = [one for one in problems_of(changed(declared(text))) if f"{where}: " in one]
    assert len(found) == 1
    assert found[0].startswith(f"sources.orders.{where}: ")
    assert said in found[0]


def test_csv_has_no_values_in_values() -> None:
    """A path into one would be null in every event."""
    deep = ('vip = "bool"', 'vip = {path = "who.vip", type = "bool"}')
    (problem,) = problems_of(changed(declared('"csv"'), deep))
    assert problem.startswith("sources.orders.fields.vip: reads 'who.vip', but values of CSV")


def test_a_change_of_the_format_is_told() -> None:
    """It holds for later events."""
    old, new = parse_map(BASE, "a"), read(declared('{name = "csv", delimiter = ";"}'))
    parts = compare(old, new).parts
    (line,) = parts["source orders"]
    assert line.startswith('~ format: none -> {"name":"csv","delimiter":";"}: holds for events')


def test_a_schema_is_read_from_a_file_beside_the_map(tmp_path: Path) -> None:
    """The map's meaning is what the file has, not its name or layout."""
    fields = [{"name": "@timestamp", "type": "long"}]
    (tmp_path / "event.avsc").write_text(
        json.dumps({"type": "record", "name": "E", "fields": fields}, indent=2)
    )
    text = changed(declared('{name = "avro", schema = "event.avsc"}'))
    (tmp_path / "map.toml").write_text(text)
    themap = load_map(tmp_path / "map.toml")
    form = themap.sources[0].format
    assert form is not None
    assert AvroSchema(form.schema).read(io.BytesIO(b"\6")) == {"@timestamp": 3}
    (tmp_path / "event.avsc").write_text(form.schema)
    assert load_map(tmp_path / "map.toml").digest == themap.digest
    (tmp_path / "event.avsc").write_text('{"type": "array", "items": "null"}')
    with pytest.raises(
        MapError, match=r"sources\.orders\.format\.schema: cannot use schema: an array"
    ):
        load_map(tmp_path / "map.toml")


def test_avro_without_a_schema_is_that_of_a_registry() -> None:
    """Values may lie deep in it."""
    source = read(declared('"avro"'), ('vip = "bool"', 'vip = {path = "a.b", type = "bool"}'))
    assert needs_registry(source.sources[0])
    assert not needs_registry(read(declared('"csv"')).sources[0])


def test_frames_of_a_registry_are_not_in_gzip() -> None:
    """The ids of schemas are read before values are inflated."""
    packed = '"avro"\ncompression = "gzip"'
    (problem,) = problems_of(changed(declared(packed)))
    assert problem.startswith("sources.orders.compression: the frames of a schema registry")
    assert read(declared('"csv"\ncompression = "gzip"')).sources[0].compression == "gzip"
