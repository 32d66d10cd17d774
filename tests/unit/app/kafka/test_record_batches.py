"""Batches of a fetch: no bytes end a reader, and every offset gets its record or a fault."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c

from app.kafka import inflate, record_batches
from app.kafka.record_batches import Batches

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
COMPRESSED = {name: codec for name, codec in CODECS.items() if codec}
Value = bytes | None
Headers = list[tuple[str, bytes | None]]


def batch(values: list[Value], codec: int = 0, headers: Headers | None = None) -> bytearray:
    """Return a record batch from offset 0; all records have the headers."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=-1, batch_size=1 << 30,
    )  # fmt: skip
    for offset, value in enumerate(values):
        builder.append(offset, timestamp=5 + offset, key=b"k", value=value, headers=headers or [])
    return bytearray(builder.build())


def sealed(raw: bytearray) -> bytes:
    """Return a batch with the checksum of its bytes, as after a broker took it."""
    struct.pack_into(">I", raw, 17, calc_crc32c(bytes(raw[21:])))
    return bytes(raw)


def read(raw: bytes) -> tuple[list[Any], dict[int, str]]:
    """Return the records of the first batch, and why some cannot be used."""
    found = Batches(raw).next_batch()
    assert found is not None
    assert found.validate_crc()
    records = found.records()
    offsets = [record.offset for record in records]
    if offsets[-1] - offsets[0] + 1 != len(offsets):
        assert offsets == sorted(set(offsets))
    return records, {offset: fault.reason for offset, fault in found.faults.items()}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_plain_batch_is_read_as_aiokafka_reads_it(codec: int) -> None:
    """Offsets, times, keys, values and headers are equal, for every compression."""
    raw = bytes(
        batch([b"a" * 500, None, b"", b"b"], codec, [("trace", b"\xc3\x28"), ("none", None)])
    )
    records, faults = read(raw)
    theirs = MemoryRecords(raw).next_batch()
    assert theirs is not None
    fields = ("offset", "timestamp", "timestamp_type", "key", "value", "headers")
    assert [[getattr(one, name) for name in fields] for one in records] == [
        [getattr(one, name) for name in fields] for one in theirs
    ]
    assert faults == {}


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [0, 1, 2])
def test_old_formats_are_read(magic: int, codec: int) -> None:
    """Messages of brokers before 0.11, also in each other."""
    builder = LegacyRecordBatchBuilder(magic=magic, compression_type=codec, batch_size=1 << 20)
    for offset in range(3):
        builder.append(offset, timestamp=7, key=None, value=b"%d" % offset)
    batches = Batches(bytes(builder.build()))
    values = []
    while found := batches.next_batch():
        assert found.validate_crc()
        values += [record.value for record in found.records()]
        assert found.faults == {}
    assert values == [b"0", b"1", b"2"]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_header_name_that_is_not_utf8_costs_its_record_only(codec: int) -> None:
    """Kafka takes any bytes as a name; the other records of the batch are read."""
    plain = batch([b"a", b"b", b"c"], 0, [("ZZZZ", b"x")])
    at = plain.index(b"ZZZZ", plain.index(b"ZZZZ") + 1)
    plain[at : at + 4] = b"Gr\xfcn"
    raw = compressed(plain, codec)
    records, faults = read(raw)
    assert [record.value for record in records] == [b"a", b"b", b"c"]
    assert faults == {1: "header"}
    assert records[0].headers == [("ZZZZ", b"x")]


def compressed(plain: bytearray, codec: int) -> bytes:
    """Return a batch whose records, as they are, are compressed with a codec."""
    if codec:
        import cramjam  # noqa: PLC0415

        body = bytes(plain[61:])
        packed = {
            1: lambda: cramjam.gzip.compress(body),
            2: lambda: cramjam.snappy.compress_raw(body),
            3: lambda: cramjam.lz4.compress(body),
            4: lambda: cramjam.zstd.compress(body),
        }[codec]()
        plain = plain[:61] + bytearray(bytes(packed))
        struct.pack_into(">i", plain, 8, len(plain) - 12)
        plain[22] |= codec
    return sealed(plain)


@pytest.mark.parametrize("codec", COMPRESSED.values(), ids=COMPRESSED)
def test_what_inflates_too_far_is_cut(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records before the bound are read, the one across it is cut, the others are not."""
    monkeypatch.setattr(inflate, "INFLATED_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(inflate, "_GUESS_BYTES_MIN", 1 << 10)
    values: list[Value] = [b"a" * 1000, b" " * (3 << 20), b"c"]
    records, faults = read(bytes(batch(values, codec)))
    assert [record.offset for record in records] == [0, 1, 2]
    assert faults == {1: "cut", 2: "batch"}
    assert records[0].value == b"a" * 1000
    assert (1 << 20) - 2000 < len(records[1].value) <= 1 << 20
    assert not records[1].value.strip()
    found = Batches(bytes(batch(values, codec))).next_batch()
    assert found is not None
    found.records()
    assert found.faults[1].size == 3 << 20


@pytest.mark.parametrize("codec", COMPRESSED.values(), ids=COMPRESSED)
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 100])
def test_what_inflates_up_to_the_bound_is_read(
    codec: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader guesses the size again until it fits."""
    monkeypatch.setattr(inflate, "INFLATED_BYTES_MAX", 1 << 20)
    monkeypatch.setattr(inflate, "_GUESS_BYTES_MIN", 16)
    records, faults = read(bytes(batch([b"\n" * size], codec)))
    assert ([record.value for record in records], faults) == ([b"\n" * size], {})


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 5, 7])
def test_bytes_that_cannot_be_inflated_are_a_fault_of_each_record(codec: int) -> None:
    """They are broken, or of a codec that nobody knows; the first record has the bytes."""
    raw = batch([b"a", b"b", b"c"])
    raw[22] |= codec
    records, faults = read(sealed(raw))
    assert faults == dict.fromkeys(range(3), "batch")
    assert [record.value for record in records] == [bytes(raw[61:]), b"", b""]


def test_a_record_that_is_broken_inside_costs_only_itself() -> None:
    """Its length gives the beginning of the next one."""
    raw = batch([b"aaaa", b"bbbb", b"cccc"])
    raw[raw.index(b"bbbb") - 1] = 0x7F
    records, faults = read(sealed(raw))
    assert faults == {1: "record"}
    assert (records[0].value, records[2].value) == (b"aaaa", b"cccc")


def test_without_a_length_the_rest_of_the_batch_is_unread() -> None:
    """Its bytes are with the first record that could not be found."""
    raw = batch([b"aaaa", b"bbbb", b"cccc"])
    length_at = raw.index(b"bbbb") - 7
    raw[length_at] = 0x7F
    records, faults = read(sealed(raw))
    assert faults == {1: "batch", 2: "batch"}
    assert records[0].value == b"aaaa"
    assert records[1].value == bytes(raw[length_at:])


def test_offsets_that_do_not_rise_are_a_fault() -> None:
    """The record keeps a place, so that every offset is counted."""
    raw = batch([b"a", b"b", b"c"])
    at = raw.index(b"c\x00") - 4
    assert raw[at] == 4, "the offset of the last record"
    raw[at] = 0x10
    records, faults = read(sealed(raw))
    assert [record.offset for record in records] == [0, 1, 2]
    assert faults == {2: "record"}


def test_a_count_that_lies_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers refuse it; if one comes all the same it takes no more memory than a bound."""
    monkeypatch.setattr(record_batches, "UNREAD_RECORDS_MAX", 10)
    raw = batch([b"a"])
    struct.pack_into(">i", raw, 23, 2**31 - 2)
    struct.pack_into(">i", raw, 57, 2**31 - 1)
    records, faults = read(sealed(raw))
    assert len(records) == 11
    assert set(faults.values()) == {"batch"}


def test_a_batch_that_is_cut_off_is_left_for_the_next_fetch() -> None:
    """A fetch ends anywhere."""
    raw = bytes(batch([b"a"])) + bytes(batch([b"b"]))
    for size in range(len(raw) // 2, len(raw)):
        batches = Batches(raw[:size])
        assert batches.next_batch() is not None
        assert not batches.has_next()
        assert batches.next_batch() is None


def test_what_no_producer_can_have_written_is_damage() -> None:
    """Such is a length below zero, and a format that does not exist yet."""
    raw = batch([b"a"])
    raw[8:12] = b"\xff\xff\xff\xff"
    with pytest.raises(CorruptRecordException):
        Batches(bytes(raw)).next_batch()
    raw = batch([b"a"])
    raw[16] = 3
    with pytest.raises(CorruptRecordException):
        Batches(bytes(raw)).next_batch()


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_end_nothing(seed: int, codec: int) -> None:
    """Every offset up to the count has one record, for any bytes behind the header."""
    rng = random.Random(seed)
    raw = batch([b'{"at":1}', None, b"x" * 300, b""] * 3, codec, [("name", b"value")])
    for _ in range(rng.randint(1, 8)):
        raw[rng.randrange(61, len(raw))] = rng.randrange(256)
    records, faults = read(sealed(raw))
    assert len(records) == 12
    assert set(faults) <= set(range(12))
