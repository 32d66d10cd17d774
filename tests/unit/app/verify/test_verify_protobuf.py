"""Protobuf: the worker's decoder and verify's plain rules take the same events of any bytes."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest

from agents.decode.protobuf_message import ProtobufError, ProtobufMessage
from app.mapfile.load import load_map
from tables.model.errors import MapError
from tables.model.layer import Field, RecordForm, Source
from tests.support.common import dataclasses_replace, small_map
from tests.support.map_text import changed
from tests.support.protobuf import MESSAGE, broken, descriptor_set, encoded_set, message_of
from tests.support.read_alike import check_alike, worker_reads

FIELDS = (
    Field("delay", "int"),
    Field("vip", "bool"),
    Field("size", "float", ("sizes", 1)),
    Field("price", "float"),
    Field("label", "string", ("labels", "a.b")),
    Field("big", "int"),
    Field("second", "int", ("more", 1, "at_ms")),
)
ODD = (
    Field("delay", "string"), Field("vip", "float"), Field("size", "float", ("sizes",)),
    Field("price", "int"), Field("label", "string", ("labels",)), Field("raw", "string"),
    Field("second", "int", ("more", 2)), Field("deep", "int", ("big", "x")),
    Field("stamp", "int", ("more", 0, "at", "seconds")), Field("none", "int", ("no", "such")),
)  # fmt: skip
PLACES = (
    b"\0", b"\2\0", b"\x04\x02\x00", b"\x02\x02", b"\x06\x02\x02\x00", b"\x84\x00\x02\x02",
    b"\xff\x01",
)  # fmt: skip
"""Indexes of other messages, or that are written in another way."""


def source_of(
    fields: tuple[Field, ...] = FIELDS, *, framed: bool = False, at: str = "at"
) -> Source:
    """Return a source of Protobuf."""
    form = RecordForm("protobuf", descriptor=encoded_set(), message=MESSAGE, framed=framed)
    return dataclasses_replace(
        small_map().sources[0], fields=fields, keyed_by=(), format=form,
        time_field=f"meta.{at}", time_path=("meta", at), type_field="kind", id_field="uid",
    )  # fmt: skip


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("at", ["at", "at_ms"])
@pytest.mark.parametrize(
    "fields", [FIELDS, *((one,) for one in ODD)], ids=lambda some: some[-1].name
)
@pytest.mark.parametrize("seed", range(3))
def test_protobuf_is_read_alike(
    *, seed: int, fields: tuple[Field, ...], at: str, framed: bool
) -> None:
    """Values of every kind, absent ones, other messages' frames, and bytes of no message."""
    chance = random.Random(seed)
    source = source_of(fields, framed=framed, at=at)
    values = []
    for _ in range(400):
        data = message_of(chance).SerializeToString()
        if framed:
            place = b"\x04\x02\x02" if chance.random() < 0.9 else chance.choice(PLACES)
            data = b"\0\0\0\0\x07" + place + data
        values.append(broken(chance, data) if chance.random() < 0.2 else data)
    events, reasons = check_alike(source, [value for value in values if value])
    assert events > 20 or fields is not FIELDS
    assert "protobuf" in reasons


def test_the_first_message_of_a_file_has_a_short_frame() -> None:
    """One byte of zero stands for a list of one zero."""
    form = RecordForm("protobuf", descriptor=encoded_set(), message="shop.First", framed=True)
    source = dataclasses_replace(source_of(), format=form)
    values = [b"\0\0\0\0\1\0", b"\0\0\0\0\1\2\0", b"\0\0\0\0\1\2\2", b"\0\0\0\0", b"\1\0\0\0\1\0"]
    _, reasons = worker_reads(source, values)
    assert [reasons[index, 0 if index < 2 else -1] for index in range(5)] == [
        "missing", "missing", "protobuf", "protobuf", "protobuf",
    ]  # fmt: skip
    check_alike(source, values)


def test_a_length_that_is_a_lie_allocates_nothing() -> None:
    """Nor does a depth that is one, of a message that holds itself."""
    message = ProtobufMessage(encoded_set(), MESSAGE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in (b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01", b"\xff\xff\x7f"):
        for field in (b"\x0a", b"\x1a", b"\x32", b"\x42", b"\x5a"):
            with pytest.raises(ProtobufError):
                message.values(field + length + b"abc", {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 1_024


@pytest.mark.parametrize(
    ("form", "where", "said"),
    [
        ('"protobuf"', "format.descriptor", "missing"),
        ('{name = "protobuf", descriptor = "set.desc"}', "format.message", "missing"),
        ('{name = "protobuf", descriptor = "set.desc", message = "shop.Event"}',
         "format.descriptor", "it has no message 'shop.Event'; got google.protobuf.BoolValue"),
        ('{name = "protobuf", descriptor = "bad.desc", message = "shop.Event"}',
         "format.descriptor", "want a file of protoc --include_imports"),
        ('{name = "protobuf", descriptor = "lacks.desc", message = "shop.First"}',
         "format.descriptor", "want a file of protoc --include_imports"),
    ],
)  # fmt: skip
def test_a_descriptor_that_cannot_be_used_is_refused(
    form: str, where: str, said: str, tmp_path: Path
) -> None:
    """By the name of the field, with the option of the compiler."""
    files = descriptor_set()
    (tmp_path / "set.desc").write_bytes(files.SerializeToString())
    (tmp_path / "bad.desc").write_bytes(b"\x0a\xff")
    del files.file[0]
    (tmp_path / "lacks.desc").write_bytes(files.SerializeToString())
    at = "partitions = 12"
    (tmp_path / "map.toml").write_text(changed((at, f"{at}\nformat = {form}")))
    with pytest.raises(MapError) as caught:
        load_map(tmp_path / "map.toml")
    (problem,) = [one for one in caught.value.problems if one.startswith(f"sources.orders.{where}")]
    assert said in problem
