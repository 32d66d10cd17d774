"""Journal entries and their bytes: claims, deltas and snapshots of one source partition.

An entry is sealed (``tables.record.sealed``): a format byte, a checksum, then the MessagePack array
of the entry, whose first element names its kind. A reader that meets another format, or a damaged
entry, stops: ignoring it would make readers disagree on history.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import msgspec

from tables.model.errors import JournalRefusedError
from tables.model.ledger import Ledger
from tables.model.window import NEVER_MS
from tables.record.sealed import DamagedError, seal, unpacked, unsealed
from tables.state.block import check_block

FORMAT = 3
"""The format: since 2, small blocks are MessagePack; since 3, entries are sealed. Older ones are
read once the structure of their blocks is checked."""

_UNSEALED = (b"\x01", b"\x02")


class Announcement(NamedTuple):
    """Times of a sender: windows that end at or below are closed, or final, and all sent."""

    closed_ms: int
    final_ms: int


NOTHING_ANNOUNCED = Announcement(NEVER_MS, NEVER_MS)


class EntryFingerprint(NamedTuple):
    """Length and CRC-32 of a journal entry, by which it is recognised."""

    length: int
    crc32: int


class RecordFingerprint(NamedTuple):
    """Append time and CRC-32 of a source record's value, by which it is recognised."""

    append_time_ms: int
    crc32: int


class Claim(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """A new owner: it sets the epoch to its own offset.

    ``base`` is the first offset that the source partition had when it was claimed; the state of an
    empty journal begins there. ``partitions`` counts the partitions of the input topic.

    ``layers`` and ``ids`` are all that the state has under this claim, whoever reads: by layer,
    combiners too, the accumulator columns, and how many ids are remembered at most, 0 for none.
    ``shapes`` are those of all layers of the map (``tables.model.shape``). Claims of formats 1 and
    2 say nothing of it.

    ``archive`` is the id of the archive that the writer has, empty if it is away. ``history`` is
    a new id: that of the first claim becomes the journal's. ``cluster`` is the id of Kafka's
    cluster, ``group`` and ``node`` are the writer's: they decide nothing, but say who it was.
    """

    revision: int
    digest: str
    partitions: int
    base: int
    layers: dict[str, list[str]] | None = None
    ids: int | None = None
    shapes: dict[str, dict[str, str]] | None = None
    archive: str = ""
    history: str = ""
    cluster: str = ""
    group: str = ""
    node: str = ""


class Claimant(msgspec.Struct, frozen=True):
    """The claiming worker: its node and consumer group, and the id of its Kafka cluster."""

    group: str = ""
    node: str = ""
    cluster: str = ""


class Delta(msgspec.Struct, frozen=True, array_like=True, tag="delta"):
    """The change of one chunk to the state of a source partition, for offsets ``[start, stop)``.

    ``floors`` are by layer; ``announced`` by sender partition (coarser layers only); ``blocks`` by
    layer, as bytes of ``tables.state.block``; ``evicted`` are window starts by layer; ``tail`` is
    the fingerprint of record ``stop - 1``, None if it carried no record.
    ``snapshot`` is the journal offset of the latest snapshot that the writer knows, -1 for none: a
    hint for readers, which decides nothing. ``has_events`` is another: whether an event, and not
    heartbeats alone, has moved stream time up to ``stop``. ``ids_gone`` is how many of the oldest
    remembered ids have gone since the claim; deltas of formats 1 and 2 say how many go, in
    ``evicted``.
    ``whole`` is, by sender with new times, from when on its cells are whole, by
    column (coarser layers only).
    """

    epoch: int
    revision: int
    start: int
    stop: int
    stream_time_ms: int
    floors: dict[str, int]
    announced: dict[int, Announcement]
    ledger: Ledger
    blocks: dict[str, bytes]
    evicted: dict[str, list[int]]
    tail: RecordFingerprint | None
    snapshot: int
    has_events: bool
    ids_gone: int = 0
    whole: dict[int, dict[str, int]] = {}


class SnapshotPart(msgspec.Struct, frozen=True, array_like=True, tag="part"):
    """A part of a snapshot, which means nothing without the snapshot that names it.

    ``meta`` is MessagePack of ``tables.state.partition_meta.Meta`` in the first part, empty in the
    others. ``blocks`` are ``(layer, sequence, bytes)``; a large block comes in pieces, in order.
    """

    meta: bytes
    blocks: list[tuple[str, int, bytes]]


class Snapshot(msgspec.Struct, frozen=True, array_like=True, tag="snapshot"):
    """The whole state that the entries before journal offset ``covers`` make.

    It is true wherever it lands and whoever wrote it. ``parts`` refer to its parts.
    """

    covers: int
    parts: list[PartReference]


PartReference = tuple[int, int, int]
"""Journal offset of a snapshot's part, and its fingerprint: length and CRC-32."""

Entry = Claim | Delta | SnapshotPart | Snapshot

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """Return the journal record's value."""
    return seal(FORMAT, _encoder.encode(entry))


def decode_entry(value: bytes) -> Entry:
    """Return the entry of a journal record's value.

    Raises:
        JournalRefusedError: the format is a newer one, or the bytes are not those of an entry.
    """
    try:
        if value[:1] in _UNSEALED:
            entry = unpacked(_decoder, memoryview(value)[1:])
            for block in _blocks_of(entry):
                check_block(block)
            return entry
        content = unsealed(value)
        if value[0] == FORMAT:
            return unpacked(_decoder, content)
    except DamagedError as error:
        raise JournalRefusedError(
            f"cannot read journal entry: got format {value[0] if value else 'none'}: {error}; the "
            "entry is damaged, or of another program; restore the journal topic from a copy"
        ) from error
    raise JournalRefusedError(
        f"cannot read journal entry: got format {value[0]}; want {FORMAT}; "
        "run the version that wrote it"
    )


def _blocks_of(entry: Entry) -> list[bytes]:
    match entry:
        case Delta():
            return list(entry.blocks.values())
        case SnapshotPart():
            return [data for _, _, data in entry.blocks]
    return []


def fingerprint_of(value: bytes) -> EntryFingerprint:
    """Return the fingerprint of a journal entry."""
    return EntryFingerprint(len(value), zlib.crc32(value))
