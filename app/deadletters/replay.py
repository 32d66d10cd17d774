"""Letters: lists them, and sends them again.

Dead letters go to their source, after a fix. Late ones go to a topic of their own, for a layer
whose allowed lateness includes them: in their source they would only be late again.

A letter is replayed once, whatever dies in between: a replay writes a mark of the letters that
it will send into the side topic, sends them with the letter's position in a header, and writes a
last mark. If the last mark is missing, the target topic is searched for letters that arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import msgspec

from app.cluster.rights import Right
from app.cluster.rights_check import check_rights
from app.cluster.topic_specs import topics_of
from app.cluster.topics import topics_found
from app.deadletters.side_topic import MARK_HEADER, Entry, Mark, read_entries, read_records
from app.kafka.log import KafkaLog
from tables.model.clock import wall_clock_ms
from tables.model.errors import RecordTooLargeError, TreasureMapError
from tables.model.layer import Map, SideKind
from tables.record.letter import Letter

warnings = logging.getLogger(__name__)

LETTER_HEADER = "letter"
"""The header of a replayed record with the position of its letter: ``partition:offset`` in the side
topic; ``late:partition:offset`` for a late one, so that one topic may hold both."""

SENDS_MAX = 500
ALONE_BYTES_MIN = 64 << 10
"""Bytes from which a letter is the last of its requests, because its topic may refuse it."""

_NOT_WHOLE = ("record", "batch")
"""Reasons of letters whose value is not the record's: bytes of a batch, or nothing."""

Wanted = Callable[[Letter], bool]


class ReplayError(TreasureMapError):
    """A replay that must not begin, or could not be brought to its end."""


@dataclasses.dataclass(slots=True)
class Known:
    """The marks of replays in a side topic: replayed letters, and those under way."""

    done: dict[int, set[int]] = dataclasses.field(default_factory=dict)
    planned: dict[tuple[int, str], Mark] = dataclasses.field(default_factory=dict)
    problems: int = 0

    def take(self, partition: int, mark: Mark) -> None:
        """Register a mark."""
        if mark.state == "planned":
            self.planned[partition, mark.replay] = mark
        else:
            self.planned.pop((partition, mark.replay), None)
            self.done.setdefault(partition, set()).update(mark.offsets)


@dataclasses.dataclass(slots=True)
class Replayed:
    """The letters of a replay: sent now, found in the source already, left out.

    ``cut`` are those that do not hold their record, ``foreign`` those of no source of the map,
    ``large`` those too large for their topic with one more header: they stay letters.
    """

    sent: int = 0
    landed: int = 0
    cut: int = 0
    foreign: int = 0
    large: int = 0


class DeadLetters:
    """The letters of one map's side topic.

    Args:
        brokers: bootstrap servers.
        themap: the map.
        kind: ``dead`` or ``late``.
        options: security options of aiokafka's clients.
    """

    def __init__(self, brokers: str, themap: Map, kind: SideKind, options: dict[str, Any]) -> None:
        self._brokers = brokers
        self._map = themap
        self._kind = kind
        self._topic = themap.side_topic(kind)
        self._options = options

    async def letters(self, wanted: Wanted, *, replayed: bool = False) -> AsyncGenerator[Entry]:
        """Yield each letter that is wanted once, however often it was written.

        Args:
            wanted: returns whether a letter is wanted.
            replayed: also those that were replayed.

        Raises:
            ScanError: the topic cannot be read.
            RightsError: this user may not read it.
        """
        await self._check_rights(Right("topic", self._topic, ("Read",)))
        async with contextlib.aclosing(self._letters(wanted, replayed=replayed)) as letters:
            async for entry in letters:
                yield entry

    async def _letters(self, wanted: Wanted, *, replayed: bool = False) -> AsyncGenerator[Entry]:
        known = await self.known()
        seen: set[int] = set()
        async with contextlib.aclosing(self._entries()) as entries:
            async for entry in entries:
                if entry.letter is None or not wanted(entry.letter):
                    continue
                if entry.offset in known.done.get(entry.partition, ()):
                    # A later copy of a replayed letter is replayed too.
                    seen.add(hash(entry.letter.identity))
                    if not replayed:
                        continue
                elif hash(entry.letter.identity) in seen:
                    continue
                seen.add(hash(entry.letter.identity))
                yield entry

    async def known(self, partitions: Iterable[int] | None = None) -> Known:
        """Return the marks of replays in the topic, or in some of its partitions."""
        known = Known()
        async for entry in self._entries(partitions):
            if entry.mark is not None:
                known.take(entry.partition, entry.mark)
            known.problems += bool(entry.problem)
        return known

    async def replay(self, wanted: Wanted, *, to: str = "", resume: bool = False) -> Replayed:
        """Send letters that are wanted again, each once.

        Args:
            wanted: which letters; of late ones those of one layer.
            to: the topic to send late letters to; dead ones go to their source.
            resume: bring a replay to its end that was cut off before; nothing else is sent.

        Raises:
            ReplayError: another replay is under way or was cut off, or one began at the same time;
                late letters cannot go to that topic.
            ScanError: the topic cannot be read.
            RightsError: this user lacks a right to read or write.
            OutcomeUnknownError: the broker did not answer; run it again with ``resume``.
        """
        if not resume:
            await self._check_target(to)
        targets = [to] if to else [source.topic for source in self._map.sources]
        used = (self._topic, *targets)
        await self._check_rights(*(Right("topic", name, ("Read", "Write")) for name in used))
        known = await self.known()
        if known.planned and not resume:
            started = max(mark.started_ms for mark in known.planned.values())
            age_s = max(0, wall_clock_ms() - started) // 1_000
            raise ReplayError(
                f"cannot replay letters of {self._topic}: a replay begun {age_s} s ago has not "
                "ended; wait for it, or bring it to its end with --resume if nobody runs it"
            )
        log = KafkaLog(self._brokers, 16 << 20, self._options)
        await log.start()
        try:
            result = Replayed()
            if resume:
                for (partition, _), mark in known.planned.items():
                    landed = await self._landed(partition, mark)
                    await self._finish(log, partition, mark, landed, result)
            else:
                await self._replay(log, wanted, to, result)
            return result
        finally:
            await log.stop()

    async def _check_rights(self, *rights: Right) -> None:
        cannot = f"cannot use letters of {self._topic}"
        await check_rights(self._brokers, self._options, rights, cannot=cannot, role="deadletters")

    async def _check_target(self, to: str) -> None:
        """Raise ReplayError if late letters must not go to this topic."""
        assert bool(to) == (self._kind == "late"), "late letters, and no others, go elsewhere"
        if not to:
            return
        cannot = f"cannot replay late letters to {to}"
        sources = {source.topic for source in self._map.sources}
        if to in {spec.name for spec in topics_of(self._map, replication=1)} - sources:
            raise ReplayError(f"{cannot}: workers of map {self._map.name} write it; want a source")
        partitions = (await topics_found(self._brokers, self._options)).get(to, 0)
        wanted = self._map.side_partitions
        if partitions < wanted:
            got = f"{partitions} partitions" if partitions else "no such topic, or none shown"
            raise ReplayError(
                f"{cannot}: got {got}; want at least {wanted} partitions, so that each letter goes"
                " to the partition of the number that its record had"
            )

    async def _replay(self, log: KafkaLog, wanted: Wanted, to: str, result: Replayed) -> None:
        chosen: dict[int, list[int]] = {}
        targets: dict[int, set[tuple[str, int]]] = {}
        sources = {source.topic for source in self._map.sources}
        async with contextlib.aclosing(self._letters(wanted)) as letters:
            async for entry in letters:
                assert entry.letter is not None
                if entry.letter.topic not in sources:
                    result.foreign += 1
                elif entry.letter.topic == to:
                    raise ReplayError(
                        f"cannot replay late letters to {to}: they came from it, and would only be"
                        " late again; want a topic that a layer reads which takes them in"
                    )
                elif entry.letter.cut or entry.letter.reason in _NOT_WHOLE:
                    result.cut += 1
                else:
                    chosen.setdefault(entry.partition, []).append(entry.offset)
                    target = (to or entry.letter.topic, entry.letter.partition)
                    targets.setdefault(entry.partition, set()).add(target)
        name, now_ms = uuid.uuid4().hex, wall_clock_ms()
        for partition, offsets in chosen.items():
            ends = {f"{t}[{p}]": (await log.bounds(t, p))[1] for t, p in targets[partition]}
            mark = Mark("planned", name, now_ms, offsets, ends, to)
            await self._say(log, partition, mark)
            known = await self.known([partition])
            others = {replay for _, replay in known.planned} - {name}
            # Another one may have begun and ended since the letters were chosen.
            if others or not known.done.get(partition, set()).isdisjoint(offsets):
                # Nothing was sent yet, so this replay may end without a trace.
                await self._say(log, partition, msgspec.structs.replace(
                    mark, state="done", offsets=[]
                ))  # fmt: skip
                raise ReplayError(
                    f"cannot replay letters of {self._topic}: another replay began at the same "
                    "time; wait for it, then run this one again"
                )
            await self._finish(log, partition, mark, set(), result)

    async def _finish(
        self, log: KafkaLog, partition: int, mark: Mark, landed: set[int], result: Replayed
    ) -> None:
        """Send the letters of a plan that have not landed, then say that it is done."""
        missing = set(mark.offsets) - landed
        result.landed += len(landed)
        large: set[int] = set()
        sends: list[asyncio.Future[int]] = []
        async with contextlib.aclosing(self._entries([partition])) as entries:
            async for entry in entries:
                if entry.offset not in missing:
                    continue
                assert entry.letter is not None, "a plan names letters"
                sends.append(asyncio.ensure_future(_send(log, entry, entry.letter, mark.to)))
                if len(sends) < SENDS_MAX and len(entry.value) < ALONE_BYTES_MIN:
                    continue
                *others, last = sends
                sends = []
                await asyncio.gather(*others)
                try:
                    await last
                except RecordTooLargeError as error:
                    large.add(entry.offset)
                    warnings.warning("letter %d:%d stays: %s", partition, entry.offset, error)
                    # A producer has numbered the record, and sends no more once one is missing.
                    await log.stop()
                    await log.start()
        await asyncio.gather(*sends)
        result.sent += len(missing) - len(large)
        result.large += len(large)
        done = [offset for offset in mark.offsets if offset not in large]
        await self._say(log, partition, msgspec.structs.replace(mark, state="done", offsets=done))

    async def _landed(self, partition: int, mark: Mark) -> set[int]:
        """Return the letters of a plan that have been sent already."""
        landed: set[int] = set()
        prefix = _prefix(mark.to, partition)
        for name, end in mark.ends.items():
            topic, _, number = name.removesuffix("]").rpartition("[")
            starts = {int(number): end}
            async for _, record in read_records(self._brokers, topic, starts, self._options):
                for header, data in record.headers:
                    text = (data or b"").decode("latin-1")
                    if header == LETTER_HEADER and text.startswith(prefix):
                        landed.add(int(text.removeprefix(prefix)))
        return landed & set(mark.offsets)

    def _entries(self, partitions: Iterable[int] | None = None) -> AsyncGenerator[Entry]:
        chosen = range(self._map.side_partitions) if partitions is None else partitions
        return read_entries(self._brokers, self._topic, chosen, self._options)

    async def _say(self, log: KafkaLog, partition: int, mark: Mark) -> None:
        headers = ((MARK_HEADER, mark.state.encode()),)
        await log.append(self._topic, partition, msgspec.json.encode(mark), headers)


def _prefix(to: str, partition: int) -> str:
    return f"late:{partition}:" if to else f"{partition}:"


async def _send(log: KafkaLog, entry: Entry, letter: Letter, to: str) -> int:
    position = f"{_prefix(to, entry.partition)}{entry.offset}"
    headers = [(LETTER_HEADER, position.encode())]
    if letter.content_type:
        headers.append(("content-type", letter.content_type.encode()))
    return await log.append(to or letter.topic, letter.partition, entry.value, tuple(headers))
