"""Peers: the owners of all partitions, on this worker and on the others of its group.

The group's map says who owns what. A worker answers for its own partitions only, so no question is
ever passed on twice. Whoever does not answer soon is asked a second time, over another connection;
a partition that is on its way from one worker to another is asked for again until it is there or
the time for it has passed: then it is missing from the answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus

import aiohttp
import msgspec
import polars as pl

from agents.outage import Outage
from app.assignor import TopicPartition
from tables.block import decode_block, encode_block
from tables.cell import archive_schema
from tables.cost import QueryCost
from tables.errors import QueryError
from tables.facts import PartitionFacts
from tables.family import KeyFilter
from tables.layer import Layer, Map, Scalar, combiner_of
from tables.live import LiveJob, LiveRead, LiveRows, Told
from tables.parameters import INT64_MAX, INT64_MIN
from tables.rollup_table import rollup_schema
from tables.sealed import DamagedError, seal, unpacked, unsealed
from tables.threads import THREADS, Threads

PATH = "/v1/worker/live"
CONTENT_TYPE = "application/msgpack"
ANSWER_FORMAT = 1

HEDGE_S = 0.15
"""A worker answers in milliseconds; one that collects garbage or stands on its disk may not, and
what a second try finds instead is often the next owner."""

LAST_TRY_S = 0.25
"""How long a worker has for its answer at least, when others have used up the time for all."""

AGAIN_S = 0.05

DECODE = "decode"
"""The kind of attempt that reading an answer is; see :class:`agents.outage.Outage`."""

AT_ONCE_ROWS_MAX = 10_000
"""Tables of so few rows are read in some 5 ms; of more, in a thread."""

AT_ONCE_BYTES_MAX = 1 << 18
"""Answers of so few bytes are decoded in some 2 ms."""


class WireRead(msgspec.Struct, frozen=True, array_like=True):
    """One :class:`tables.live.LiveRead` on its way; ``layer`` may be a combiner's name."""

    layer: str
    from_ms: int
    to_ms: int
    values: dict[str, list[Scalar]]
    prefixes: dict[str, str]
    parts: bool
    partitions: list[int] | None
    after: dict[int, Told] | None


class WireReads(msgspec.Struct, frozen=True, array_like=True):
    """A request: all reads are answered from one state. ``digest`` is that of the asker's map."""

    digest: str
    reads: list[WireRead]


class WireRows(msgspec.Struct, frozen=True, array_like=True):
    """One :class:`tables.live.LiveRows`; ``block`` is empty where there are no rows."""

    facts: list[PartitionFacts]
    block: bytes


_reads = msgspec.msgpack.Decoder(WireReads)
_rows = msgspec.msgpack.Decoder(list[WireRows])

Local = Callable[[LiveRead], LiveJob]


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
        QueryError: it is none, or of another map.
    """
    try:
        wire = unpacked(_reads, body)
    except DamagedError as error:
        raise QueryError(f"cannot read live cells: the request is none: {error}") from error
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
    """Refuse what no worker asks for.

    Raises:
        QueryError: it names fields that the layer has not, values of other types, or contributions
            of a layer that has none.
    """
    types = {"string": str, "int": int, "bool": bool}
    fields = {field.name: types[field.type] for field in layer.key}
    texts = [name for name, kind in fields.items() if kind is str]
    numbers = [read.from_ms, read.to_ms, *(read.partitions or ())]
    numbers += [n for told in (read.after or {}).values() for n in msgspec.structs.astuple(told)]
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
    """Return what a worker answered to ``reads``.

    Raises:
        DamagedError: it is no answer to them, or one of another version.
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


class Peers:
    """``agents.reader.LiveSource`` over a group of workers.

    Args:
        themap: the map that all of them run.
        local: reads the partitions of this worker.
        members: returns the endpoint of each partition's owner, as of the last assignment.
        own_url: this worker's endpoint.
        token: what requests carry; all workers of a group have the same.
        tls: checks the certificates of other workers; None where they have none.
        threads: where long steps are made.

    Attributes:
        asked_total: requests to other workers.
        hedged_total: those of them that were second tries.
        failed_total: requests that were not answered.
    """

    def __init__(
        self,
        themap: Map,
        local: Local,
        members: Callable[[], Mapping[TopicPartition, str]],
        *,
        own_url: str,
        token: str = "",
        tls: ssl.SSLContext | None = None,
        threads: Threads | None = None,
    ) -> None:
        self._map = themap
        self._local = local
        self._members = members
        self._own_url = own_url
        self._headers = {"Content-Type": CONTENT_TYPE}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._tls = tls
        self._threads = threads or Threads(THREADS, "query")
        self._session: aiohttp.ClientSession | None = None
        self._outages: dict[str, Outage] = {}
        self.asked_total = 0
        self.hedged_total = 0
        self.failed_total = 0

    async def close(self) -> None:
        """Close the connections to other workers."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def read(
        self, reads: Sequence[LiveRead], cost: QueryCost, until: float
    ) -> list[LiveRows]:
        """Return what owners have; see :class:`agents.reader.LiveSource`."""
        found = [LiveRows() for _ in reads]
        loop = asyncio.get_running_loop()
        while lacking := self._lacking(reads, found):
            owners: dict[str, set[TopicPartition]] = {}
            members = self._members()
            for place in lacking:
                owners.setdefault(members.get(place, ""), set()).add(place)
            owners.pop("", None)
            # What is here first: the state may move while others are waited for.
            if (mine := owners.pop(self._own_url, None)) is not None:
                _add(found, await self._made([self._local(one) for one in self._of(reads, mine)]))
            left_s = max(LAST_TRY_S, until - loop.time())
            asks = [
                self._ask(url, self._of(reads, places), left_s, cost)
                for url, places in owners.items()
            ]
            for answer in await asyncio.gather(*asks):
                if answer is not None:
                    _add(found, answer)
            if not self._lacking(reads, found) or loop.time() + AGAIN_S >= until:
                break
            await asyncio.sleep(AGAIN_S)
        return found

    def _lacking(self, reads: Sequence[LiveRead], found: Sequence[LiveRows]) -> set[TopicPartition]:
        return {
            (self._map.input_topic(read.layer), partition)
            for read, rows in zip(reads, found, strict=True)
            for partition in read.asked - rows.facts.keys()
        }

    def _of(self, reads: Sequence[LiveRead], places: set[TopicPartition]) -> list[LiveRead]:
        """Return the same reads of these partitions only."""
        asked: dict[str, set[int]] = {}
        for topic, partition in places:
            asked.setdefault(topic, set()).add(partition)
        return [
            dataclasses.replace(
                read,
                partitions=read.asked & asked.get(self._map.input_topic(read.layer), set()),
            )
            for read in reads
        ]

    async def _ask(
        self, url: str, reads: list[LiveRead], patience_s: float, cost: QueryCost
    ) -> list[LiveRows] | None:
        """Ask one worker, and once more if it does not answer soon; None where it does not."""
        loop = asyncio.get_running_loop()
        until = loop.time() + patience_s
        body = encode_reads(self._map, reads)
        tries = {asyncio.create_task(self._post(url, body, cost))}
        hedge_s = HEDGE_S
        try:
            while tries and loop.time() < until:
                done, tries = await asyncio.wait(
                    tries,
                    timeout=min(hedge_s, until - loop.time()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    if (answer := task.result()) is not None:
                        return await self._decoded(url, reads, answer)
                if not done and hedge_s < math.inf:
                    hedge_s = math.inf
                    self.hedged_total += 1
                    tries.add(asyncio.create_task(self._post(url, body, cost)))
            return None
        finally:
            for task in tries:
                task.cancel()

    def _outage(self, url: str) -> Outage:
        """Return whether a worker answers; of those that have left nothing is remembered."""
        if url not in self._outages:
            there = set(self._members().values())
            self._outages = {at: known for at, known in self._outages.items() if at in there}
            self._outages[url] = Outage(f"worker {url}", "answers lack its live cells")
        return self._outages[url]

    async def _made(self, jobs: list[LiveJob]) -> list[LiveRows]:
        """Return the rows of this worker, made in a thread if they are many."""
        if sum(job.height for job in jobs) <= AT_ONCE_ROWS_MAX:
            return [job.make() for job in jobs]
        return await self._threads.run(lambda: [job.make() for job in jobs])

    async def _decoded(
        self, url: str, reads: list[LiveRead], answer: bytes
    ) -> list[LiveRows] | None:
        """Return what a worker answered, None where it is damaged or of another version."""
        try:
            if len(answer) <= AT_ONCE_BYTES_MAX:
                rows = decode_rows(reads, answer)
            else:
                rows = await self._threads.run(decode_rows, reads, answer)
        except DamagedError as error:
            self.failed_total += 1
            self._outage(url).failed(f"cannot read its live cells: {error}", DECODE)
            return None
        self._outage(url).answered(DECODE)
        return rows

    async def _post(self, url: str, body: bytes, cost: QueryCost) -> bytes | None:
        """Return the body of one answer, None where there is none."""
        self.asked_total += 1
        cost.workers_asked += 1
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers)
        try:
            async with self._session.post(
                f"{url}{PATH}", data=body, ssl=self._tls or True
            ) as response:
                answer = await response.read()
                if response.status == HTTPStatus.OK:
                    self._outage(url).answered()
                    return answer
                what = answer.decode(errors="replace")[:200]
                self._outage(url).failed(f"it refused to tell its live cells: {what}")
        except (aiohttp.ClientError, OSError) as error:
            self._outage(url).failed(repr(error))
        self.failed_total += 1
        return None


def _add(found: Sequence[LiveRows], answer: Sequence[LiveRows]) -> None:
    for rows, more in zip(found, answer, strict=True):
        rows.add(more)
