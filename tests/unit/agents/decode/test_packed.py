"""Packed values and arrays: gzip within bounds, whatever is inside, and letters of elements."""

from __future__ import annotations

import gzip
import io
import json
import random
import tracemalloc
import zlib
from typing import Any

import polars as pl
import pytest

from agents.decode import json_format
from agents.decode.event_batch import INDEX_COLUMN, RECORD_SPAN, EventBatch
from agents.decode.json_events import elements_of
from agents.decode.records import Decoder
from agents.partition import letters
from app.verify.arrow import ArrowRows
from app.verify.documents import inflated
from app.verify.records import Record, RecordReader
from tables.record.chunk import Headers
from tables.record.gzip import GzipError, inflate_gzip
from tables.record.heartbeat import HEARTBEAT_HEADER
from tests.support.common import dataclasses_replace, flight, run_of, small_map

LIMIT = 100_000
SOURCE = dataclasses_replace(
    small_map().sources[0], compression="gzip", arrays=True, record_bytes_max=LIMIT
)
ARROW: Headers = (("content-type", b"application/vnd.apache.arrow.stream"),)
NDJSON: Headers = (("content-type", b"application/x-ndjson"),)


def stream(count: int) -> bytes:
    """Return flights as an Arrow stream."""
    columns = {"at": range(count), "type": ["flight.x"] * count, "origin": ["JFK"] * count}
    file = io.BytesIO()
    pl.DataFrame(columns).write_ipc_stream(file)
    return file.getvalue()


def decode(*records: tuple[bytes | None, Headers], **changes: Any) -> EventBatch:
    """Return the batch of records with headers."""
    run = run_of([value for value, _ in records])
    run.headers = {index: headers for index, (_, headers) in enumerate(records) if headers}
    return Decoder(dataclasses_replace(SOURCE, **changes)).decode([run])


def test_every_format_may_be_packed() -> None:
    """Its header or first bytes identify it; values that are not packed lie between."""
    batch = decode(
        (flight(1), ()),
        (gzip.compress(flight(2)), ()),
        (gzip.compress(stream(3)), ()),
        (gzip.compress(stream(2)), ARROW),
        (gzip.compress(b"\n".join([flight(4), flight(5)])), NDJSON),
        (gzip.compress(b"[" + flight(6) + b"]"), (("x", b"y"),)),
        (stream(1), ()),
        (gzip.compress(b""), ((HEARTBEAT_HEADER, b"7"),)),
        (flight(8), ()),
    )
    assert batch.frame["time"].to_list() == [1, 2, 0, 1, 2, 0, 1, 4, 5, 6, 0, 7, 8]
    assert batch.aside == []
    assert batch.ledgers[0].counts == {
        "records.with_events": 8, "records.heartbeat": 1, "events.decoded": 12,
    }  # fmt: skip


def test_packed_values_are_found_between_plain_ones_without_headers() -> None:
    """A chunk without headers is decoded at once."""
    values = [(flight(1), ()), (gzip.compress(flight(2)), ()), (flight(3), ())]
    assert decode(*values).frame["time"].to_list() == [1, 2, 3]
    assert decode(*values[1:]).frame["time"].to_list() == [2, 3]


BOMB = gzip.compress(b"[" + b" " * (64 << 20) + b"]")
REFUSED = [
    (BOMB, (), "oversized"),
    (gzip.compress(b" " * (LIMIT + 1)), (), "oversized"),
    (gzip.compress(b" " * LIMIT), (), "empty"),
    (gzip.compress(b""), (), "empty"),
    (gzip.compress(b"[ ]"), (), "empty"),
    (gzip.compress(flight(1))[:-1], (), "gzip"),
    (gzip.compress(flight(1))[:-8] + bytes(8), (), "gzip"),
    (gzip.compress(flight(1)) + b"x", (), "gzip"),
    (b"\x1f\x8b", (), "gzip"),
    (gzip.compress(gzip.compress(flight(1))), (), "gzip"),
    (gzip.compress(flight(1)), (("content-type", b"image/png"),), "content_type"),
    (gzip.compress(stream(1)[:-9]), (), "arrow"),
]


@pytest.mark.parametrize(("value", "headers", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_a_packed_value_that_cannot_be_used_is_one_letter(
    value: bytes, headers: Headers, reason: str
) -> None:
    """The whole record as it came; the worker and verify say the same."""
    batch = decode((value, headers))
    (item,) = batch.aside
    assert (item.reason, item.events) == (reason, None)
    run = run_of([value])
    run.headers = {0: headers} if headers else {}
    part, _ = Decoder(SOURCE).part_of(run, item)
    assert part == value
    if reason != "arrow":  # verify tries broken streams elsewhere
        reader = RecordReader(SOURCE, ArrowRows(SOURCE))
        assert reader.read(Record(0, 0, value, headers), many=lambda: False).reason == reason


def test_a_bomb_is_inflated_up_to_the_bound_and_no_further() -> None:
    """64 KiB of gzip hold 64 MiB."""
    assert len(BOMB) < LIMIT
    tracemalloc.start()
    try:
        batch = decode(*[(BOMB, ())] * 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [item.reason for item in batch.aside] == ["oversized"] * 20
    assert peak < 20 * LIMIT


def test_without_the_option_gzip_is_not_json() -> None:
    """No value is inflated that the map does not say to be packed."""
    (item,) = decode((gzip.compress(flight(1)), ()), compression="").aside
    assert item.reason == "json"
    (item,) = decode((b"[" + flight(1) + b"]", ()), arrays=False).aside
    assert item.reason == "json"


def test_a_letter_of_an_array_has_its_elements_and_nothing_else() -> None:
    """As lines, although they are written over several; packed or not."""
    events = [json.loads(flight(n)) | {"at": [n, "x", True][n % 3]} for n in range(6)]
    value = json.dumps([*events, 7], indent=2).encode()
    for one in (value, gzip.compress(value)):
        run = run_of([one])
        decoder = Decoder(SOURCE)
        batch = decoder.decode([run])
        assert (batch.frame[INDEX_COLUMN] % RECORD_SPAN).to_list() == [0, 3]
        parts = {item.reason: (item.events, decoder.part_of(run, item)) for item in batch.aside}
        assert {reason: at for reason, (at, _) in parts.items()} == {
            "out_of_range": (1, 4), "wrong_type": (2, 5), "json": (6,),
        }  # fmt: skip
        for at, (part, content_type) in parts.values():
            assert content_type == "application/x-ndjson"
            found = [json.loads(line) for line in part.split(b"\n")]
            assert found == [[*events, 7][index] for index in at or ()]


def test_a_record_of_many_letters_is_read_once_for_all_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 12 MiB with a million scattered faults, each letter took more than a second."""
    monkeypatch.setattr(letters, "LETTER_INDEX_BYTES_MAX", 10)
    read: list[bytes] = []

    def counted(value: bytes) -> list[bytes] | None:
        read.append(value)
        return elements_of(value)

    value = b"[" + b",".join([flight(1), b"7"] * 50) + b"]"
    run = run_of([value])
    decoder = Decoder(SOURCE)
    (item,) = decoder.decode([run]).aside
    monkeypatch.setattr(json_format, "elements_of", counted)
    for _ in range(2):
        found = list(letters.letters_of(run, item, decoder.part_of))
        assert b"\n".join(part for part, _ in found).split() == [b"7"] * 50
        assert len(found) > 10
    assert len(read) == 1
    other = run_of([b"[7,8]"])
    (item,) = decoder.decode([other]).aside
    assert decoder.part_of(other, item)[0] == b"7\n8"


@pytest.mark.parametrize("end", [b"", b",]", b",NaN]", b"]]", b",\xff]"])
def test_a_letter_of_a_broken_array_says_that_it_is_broken(end: bytes) -> None:
    """That it is an array is no fault in this source."""
    (item,) = decode((b"[" + flight(1) + end, ())).aside
    assert (item.reason, item.events) == ("json", (0,))
    assert item.detail.startswith("an array that is broken: ")


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11])
def test_the_bound_is_exact(size: int) -> None:
    """Members may follow each other, with zeros between them."""
    data = gzip.compress(b"x" * (size // 2)) + bytes(3) + gzip.compress(b"x" * (size - size // 2))
    found, is_whole = inflate_gzip(data, 10, head=b"head")
    assert (bytes(found), is_whole) == (b"head" + b"x" * min(size, 10), size <= 10)


@pytest.mark.parametrize("seed", range(20))
def test_members_of_any_sizes_follow_each_other(seed: int) -> None:
    """The worker and verify inflate all of them, and none if the last one is cut off."""
    chance = random.Random(seed)
    texts = [chance.randbytes(chance.choice([0, 1, 90, 5_000])) for _ in range(60)]
    pads = [bytes(chance.choice([0, 0, 1, 5_000])) for _ in texts]
    members = list(map(gzip.compress, texts))
    data = b"".join(member + pad for member, pad in zip(members, pads, strict=True))
    whole = b"".join(texts)
    found, is_whole = inflate_gzip(data, len(whole))
    assert (bytes(found), is_whole) == (whole, True)
    assert inflated(data, len(whole)) == whole
    most = len(whole) // 2
    found, is_whole = inflate_gzip(data, most)
    assert (bytes(found), is_whole) == (whole[:most], False)
    assert inflated(data, most) == whole[: most + 1]
    broken = data[: len(data) - len(pads[-1]) - chance.randrange(1, len(members[-1]))]
    with pytest.raises(GzipError):
        inflate_gzip(broken, len(whole))
    assert inflated(broken, len(whole)) is None


def test_a_member_costs_no_copy_of_all_that_follow_it() -> None:
    """With copies a record of 12 MiB takes minutes, longer than a test may run."""
    data = gzip.compress(b"") * 600_000
    found, is_whole = inflate_gzip(data, 1)
    assert (bytes(found), is_whole) == (b"", True)
    assert inflated(data, 1) == b""


def test_broken_gzip_is_an_error() -> None:
    """Cut off, of another sum, of zlib's form."""
    good = gzip.compress(b"x" * 100)
    for data in (good[:-1], good[:12], good[:-8] + bytes(8), zlib.compress(b"x"), b"x"):
        with pytest.raises(GzipError):
            inflate_gzip(data, 1_000)
