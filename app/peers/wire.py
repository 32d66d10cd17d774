"""The bytes between workers: reads of live cells, and the rows that answer them, in MessagePack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import polars as pl

from tables.model.errors import QueryError
from tables.model.layer import Layer, Map, Scalar, combiner_of
from tables.model.limits import INT64_MAX, INT64_MIN
from tables.query.facts import PartitionFacts
from tables.query.family import KeyFilter
from tables.query.live import FollowerPosition, LiveJob, LiveRead, LiveRows
from tables.record.sealed import DamagedError, seal, unpacked, unsealed
from tables.state.block import decode_block, encode_block
from tables.state.cell import archive_schema
from tables.state.rollup_table import rollup_schema

PATH = "/v1/worker/live"
CONTENT_TYPE = "application/msgpack"
ANSWER_FORMAT = 1

ANSWER_BYTES_MAX = 128 << 20
"""The size of an answer, which is read before its signature can be checked. No worker sends more:
its endpoint ends connections for which more than that waits."""


class WireRead(msgspec.Struct, frozen=True, array_like=True):
    """One :class:`tables.query.live.LiveRead` on its way; ``layer`` may be a combiner's name."""

    layer: str
    from_ms: int
    to_ms: int
    values: dict[str, list[Scalar]]
    prefixes: dict[str, str]
    parts: bool
    partitions: list[int] | None
    after: dict[int, FollowerPosition] | None


class WireReads(msgspec.Struct, frozen=True, array_like=True):
    """A request: all reads are answered from one state. ``digest`` is that of the asker's map."""

    digest: str
    reads: list[WireRead]


class WireRows(msgspec.Struct, frozen=True, array_like=True):
    """One :class:`tables.query.live.LiveRows`; ``block`` is empty if there are no rows."""

    facts: list[PartitionFacts]
    block: bytes


_reads = msgspec.msgpack.Decoder(WireReads)
_rows = msgspec.msgpack.Decoder(list[WireRows])


def encode_reads(themap: Map, reads: Iterable[LiveRead]) -> bytes:
    """Return the body of a request."""
    wire = [
        WireRead(
            read.layer.name,
            read.from_ms,
            read.to_ms,
            {name: list(values) for name, values in read.keys.values.items()},
            dict(read.keys.prefixes),
            read.parts,
            None if read.partitions is None else sorted(read.partitions),
            None if read.after is None else dict(read.after),
        )
        for read in reads
    ]
    return msgspec.msgpack.encode(WireReads(themap.digest, wire))


def decode_reads(themap: Map, body: bytes) -> list[LiveRead]:
    """Return the reads of a request.

    Raises:
        QueryError: the body is not a request, or belongs to another map.
    """
    try:
        wire = unpacked(_reads, body)
    except DamagedError as error:
        raise QueryError(
            f"cannot read live cells: the body is not a valid request: {error}"
        ) from error
    if wire.digest != themap.digest:
        raise QueryError(
            "cannot read live cells: the worker that asks runs another map; want the same revision"
            " on all workers of a group; it is so once all have been restarted"
        )
    layers = _layers(themap)
    unknown = sorted({read.layer for read in wire.reads} - layers.keys())
    if unknown:
        raise QueryError(f"cannot read live cells: no such layer; got {', '.join(unknown)}")
    for read in wire.reads:
        _check(layers[read.layer], read)
    return [
        LiveRead(
            layers[read.layer],
            read.from_ms,
            read.to_ms,
            KeyFilter({n: tuple(values) for n, values in read.values.items()}, read.prefixes),
            read.parts,
            None if read.partitions is None else frozenset(read.partitions),
            read.after,
        )
        for read in wire.reads
    ]


def _check(layer: Layer, read: WireRead) -> None:
    """Refuse requests that no worker makes.

    Raises:
        QueryError: it names fields that the layer does not have, values of other types, or
            contributions of a layer without any.
    """
    types = {"string": str, "int": int, "bool": bool}
    fields = {field.name: types[field.type] for field in layer.key}
    texts = [name for name, kind in fields.items() if kind is str]
    numbers = [read.from_ms, read.to_ms, *(read.partitions or ())]
    numbers += [n for one in (read.after or {}).values() for n in msgspec.structs.astuple(one)]
    numbers += [v for values in read.values.values() for v in values if type(v) is int]
    if (
        not all(
            name in fields and values and all(type(value) is fields[name] for value in values)
            for name, values in read.values.items()
        )
        or not all(name in texts for name in read.prefixes)
        or not all(INT64_MIN <= number <= INT64_MAX for number in numbers)
        or (read.parts and not layer.merged)
    ):
        raise QueryError(
            f"cannot read live cells: no worker asks for {layer.name} like this; want a request of"
            " a worker of this version"
        )


def encode_jobs(jobs: Iterable[LiveJob]) -> bytes:
    """Return the body of an answer, with the rows that the jobs make."""
    wire = []
    for job in jobs:
        frames = job.frames()
        block = encode_block(pl.concat(frames)) if frames else b""
        wire.append(WireRows(list(job.facts.values()), block))
    return seal(ANSWER_FORMAT, msgspec.msgpack.encode(wire))


def decode_rows(reads: Sequence[LiveRead], body: bytes) -> list[LiveRows]:
    """Return a worker's answer to ``reads``.

    Raises:
        DamagedError: it is not an answer to them, or has another version.
    """
    content = unsealed(body)
    if body[0] != ANSWER_FORMAT:
        raise DamagedError(f"got format {body[0]}; want {ANSWER_FORMAT}")
    answers = unpacked(_rows, content)
    if len(answers) != len(reads):
        raise DamagedError(f"got {len(answers)} answers to {len(reads)} reads")
    found = []
    for read, wire in zip(reads, answers, strict=True):
        schema = archive_schema(read.layer)
        if read.parts:
            schema = rollup_schema(read.layer) | {"held_by": pl.Int32()}
        rows = [decode_block(wire.block, schema)] if wire.block else []
        found.append(LiveRows({facts.partition: facts for facts in wire.facts}, rows))
    return found


def _layers(themap: Map) -> dict[str, Layer]:
    layers = {layer.name: layer for layer in themap.layers}
    for layer in themap.layers:
        if layer.merged:
            assert layer.source is not None
            combiner = combiner_of(themap.source(layer.source), layer)
            layers[combiner.name] = combiner
    return layers
