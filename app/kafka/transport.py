"""The transport: one aiokafka consumer as a service, which hands the agents one chunk per fetch.

It decides when a partition may be read and from which offset; the owners' journal decides which
records and deltas stand. One event loop, no locks. ``ready`` says which partitions are live,
and in which generation; it is emptied, without waiting, at the moment partitions are revoked.

    assigned -> paused -> restore -> seek, resume, ready -> drained into chunks -> agent
                 ^          |                                    |
                 `- 1..3 s -'  fenced or unknown outcome <-------'
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka.errors import InconsistentGroupProtocolError, KafkaError
from mode import Service

from agents.supervised import supervised
from agents.tasks import end, within
from app.kafka.aiokafka_close import abandon, stop
from app.kafka.aiokafka_private import Fetched, UnreadableError
from app.kafka.assignor import GroupMap, Member
from app.kafka.brokers import connect_error, patiently
from app.kafka.lane import Lane
from app.kafka.membership import Membership, protocol_error
from app.kafka.moves import Listener, Moves, PartitionLifecycle
from app.kafka.offset_commits import OffsetCommits
from app.kafka.statistics import Statistics
from app.kafka.transport_options import TransportError, TransportOptions
from app.kafka.wakeup import Wakeup
from tables.model.errors import TreasureMapError
from tables.model.topic_partition import TopicPartition
from tables.record.chunk import Chunk

log = logging.getLogger(__name__)
coordinator_log = logging.getLogger(f"{__name__}.coordinator")

NO_GENERATION = -1
STOP_SECONDS_MAX = 3.0
# Wakes the loop when nothing else does, so that errors of aiokafka's own tasks are seen.
IDLE_SECONDS_MAX = 0.5


class Transport(Service):  # type: ignore[misc]  # mode comes without types
    """Reads the input topics in a consumer group and feeds the lanes.

    Owners report to the transport that reads for them, and it restores and releases them. So it is
    made first, owners are made with its methods, and :meth:`serve` names them before the start.
    ``purge`` empties the queues between this service and the agents.

    Attributes:
        ready: the partitions that are live, with the generation they were restored in.
        group: which member owns which partitions.
        membership: whether the group gives this worker something, and who the others are.
    """

    _owners: PartitionLifecycle
    _moves: Moves

    def __init__(self, options: TransportOptions, purge: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.options = options
        self.ready: dict[TopicPartition, int] = {}
        self.group = GroupMap()
        self.failure: BaseException | None = None
        self._lanes: tuple[Lane, ...] = ()
        self._purge = purge
        self._consumer: Any = None
        self._fetched: Fetched | None = None
        self._generation = NO_GENERATION
        self._owned: tuple[int, set[TopicPartition]] = (NO_GENERATION, set())
        self._positions: dict[TopicPartition, int] = {}
        self._hints = OffsetCommits(options.commit_seconds)
        self._realigned: set[TopicPartition] = set()
        self._crashing: asyncio.Future[Any] | None = None
        self._loop_tasks: list[asyncio.Task[None]] = []
        self.membership = Membership(options, self.group, self._describe, self.fail)
        self._counts = Statistics()
        self._alarm = Wakeup()

    def serve(self, owners: PartitionLifecycle, lanes: Iterable[Lane]) -> None:
        """Read for these; called once, before the start. A topic belongs to exactly one lane."""
        self._owners = owners
        self._lanes = tuple(lanes)
        self._moves = Moves(
            owners,
            self.options.retry_seconds,
            stands=self._stands,
            live=self._live,
            failed=self.fail,
        )

    # Methods for the owners and the endpoint.

    def restart(self, topic: str, partition: int, reason: str) -> None:
        """Stop reading a partition that was fenced, or whose append is unknown; restore later."""
        tp = (topic, partition)
        generation = self._generation if tp in self.unserved() else self.ready.pop(tp, None)
        if generation is None or generation != self._generation:
            return
        self._positions.pop(tp, None)
        self._hints.forget(tp)
        self._consumer.pause(KafkaPartition(*tp))
        assert self._fetched is not None
        self._fetched.discard(*tp)
        for lane in self._lanes:
            lane.forget(tp)
        self._counts.restarts += 1
        log.warning("a partition is claimed again: %s[%d]: %s", topic, partition, reason)
        self._moves.restore(tp, generation, later=True)

    def realign(self, topic: str, partition: int, position: int) -> None:
        """Resume a ready partition at its owner's next offset if a chunk did not begin there."""
        tp = (topic, partition)
        if not self._stands(self.ready.get(tp, NO_GENERATION)):
            # Its restore, which is still to come, seeks as well.
            return
        assert self._fetched is not None
        self._counts.seeks_back += 1
        if tp not in self._realigned:
            self._realigned.add(tp)
            log.warning(
                "reading was not at the owner's offset of %s[%d] and resumes at it, %d; "
                "nothing is lost, further times are only counted", topic, partition, position,
            )  # fmt: skip
        for lane in self._lanes:
            lane.refetch(tp)
        self._fetched.discard(*tp)
        self._positions[tp] = position
        self._consumer.seek(KafkaPartition(*tp), position)
        self._alarm.ring()

    def fail(self, reason: BaseException) -> None:
        """Stop the worker with ``reason``; the first reason is the one that is logged."""
        if self.failure is None:
            self.failure = reason
            # mode logs a crash without its traceback; an operating error needs none.
            bug = None if isinstance(reason, TreasureMapError) else reason
            log.critical("the worker stops: %s", reason, exc_info=bug)
            self._halt()
            self._crashing = asyncio.ensure_future(self.crash(reason))

    def restoring(self) -> list[TopicPartition]:
        """Return the partitions that are assigned here and not live yet."""
        return self._moves.restoring()

    def unserved(self) -> list[TopicPartition]:
        """Return the partitions that are assigned here and neither live nor being restored.

        There should be none: a restore ends with a live partition, or with the worker.
        """
        generation, owned = self._owned
        if not owned or not self._stands(generation):
            return []
        return sorted(owned - self.ready.keys() - set(self.restoring()))

    async def ends(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the ends of logs that can be read now; without partitions, ask any broker.

        Raises:
            KafkaError: a leader, or every broker, does not answer.
        """
        wanted = [KafkaPartition(*tp) for tp in partitions]
        if not wanted:
            await self._consumer.topics()
            return {}
        found = await self._consumer.end_offsets(wanted)
        return {(tp.topic, tp.partition): end for tp, end in found.items()}

    def positions(self) -> dict[TopicPartition, int]:
        """Return the next offset to hand over of each ready partition."""
        return dict(self._positions)

    def lag_records(self) -> dict[TopicPartition, int | None]:
        """Return the offsets not handed over, by ready partition; None before its first fetch."""
        lags: dict[TopicPartition, int | None] = {}
        for tp, position in self._positions.items():
            end = self._consumer.highwater(KafkaPartition(*tp))
            lags[tp] = None if end is None else max(0, end - position)
        return lags

    def fresh_ms(self, topic: str, partition: int, position: int) -> int | None:
        """Return the wall-clock time up to which all appended records lie below ``position``.

        None if the log is known to be longer, or its end is not known.
        """
        tp = KafkaPartition(topic, partition)
        end = self._consumer.highwater(tp) if (topic, partition) in self._positions else None
        if end is None or position < end:
            return None
        return self._consumer.last_poll_timestamp(tp)  # type: ignore[no-any-return]

    def statistics(self) -> Statistics:
        """Return a copy of the counts."""
        return dataclasses.replace(
            self._counts,
            generation=self._generation,
            ready=len(self.ready),
            restoring=len(self.restoring()),
            restore_retries=self._moves.retries,
            slow_releases=self._moves.slow_releases,
            commit_failures=self._hints.failures,
        )

    # Start and stop.

    async def on_start(self) -> None:
        """Connect, join the group, start to read.

        Raises:
            TransportError: an input topic does not exist.
            TreasureMapError: no broker answers.
        """
        topics = {topic for lane in self._lanes for topic in lane.topics}
        known = await patiently(self._connect)
        if missing := sorted(topics - known):
            await self._consumer.stop()
            raise TransportError(
                f"cannot read {', '.join(missing)}: the brokers at {self.options.brokers} show this"
                " user no such topic; make it with `map apply`, or grant the rights of `map acl`"
            )
        self._fetched = Fetched(self._consumer)
        self._consumer.subscribe(
            sorted(topics), listener=Listener(self.revoked, self.assigned, self.fail)
        )
        self._loop_tasks = [
            asyncio.create_task(supervised(self._read(self._fetched), self.fail)),
            asyncio.create_task(supervised(self._hints.run(self._consumer), self.fail)),
        ]

    async def _connect(self) -> set[str]:
        """Start a consumer; return all topics there are."""
        self._consumer = AIOKafkaConsumer(
            partition_assignment_strategy=[self.membership.assignor],
            **self.options.consumer_options(),
        )
        try:
            await self._consumer.start()
            self.membership.attach(self._consumer)
            return set(await self._consumer.topics())
        except KafkaError as error:
            await self._consumer.stop()
            raise await connect_error(
                error, "cannot connect to Kafka", self.options.brokers, self.options.client_options
            ) from error

    async def on_stop(self) -> None:
        """Release partitions, commit the positions as a last hint, leave the group."""
        handled = self._hints.take()
        self.membership.stop()
        await self._let_go()
        await asyncio.gather(*(end(task) for task in self._loop_tasks))
        if self._consumer is None:
            return
        await self._hints.commit(self._consumer, handled, STOP_SECONDS_MAX)
        stopping = asyncio.create_task(stop(self._consumer))
        done, _ = await asyncio.wait([stopping], timeout=STOP_SECONDS_MAX)
        if not done:
            log.warning("the group is left without an answer to the join that was under way")
            stopping.cancel()
            try:
                await within(STOP_SECONDS_MAX, abandon(self._consumer))
            except TimeoutError:
                log.warning("the connections to Kafka did not close; the process ends all the same")
        if self._crashing is not None and self._crashing is not asyncio.current_task():
            # The crash itself may be stopping this service; it is not awaited here.
            self._crashing.cancel()

    def _halt(self) -> None:
        """Stop handing over chunks; it does not wait, so nothing can come in between."""
        self.ready = {}
        self._generation = NO_GENERATION
        self._positions.clear()
        self._hints.take()
        self._purge()
        for lane in self._lanes:
            lane.forget_all()

    # The group.

    async def revoked(self) -> None:
        """Stop handing over chunks before a rebalance, and give owners a bounded time to finish."""
        self._counts.rebalances += 1
        await self._let_go()

    async def assigned(self, partitions: set[TopicPartition]) -> None:
        """Restore the new partitions. It does not await them: no heartbeat is sent meanwhile."""
        assert self._fetched is not None
        if self.should_stop or self.failure is not None:
            # The join was under way when everything was released; nobody would release again.
            return
        self.options.check(sorted(partitions))
        self.membership.look()
        self._generation = self._fetched.generation()
        if not self.membership.refusal:
            self._owned = (self._generation, set(partitions))
        for tp in partitions:
            # A position of its own keeps aiokafka from asking for the group's commits.
            self._consumer.pause(KafkaPartition(*tp))
            self._consumer.seek(KafkaPartition(*tp), 0)
        for tp in sorted(partitions):
            self._moves.restore(tp, self._generation)
        log.info("generation %d: %d partitions assigned", self._generation, len(partitions))

    async def _let_go(self) -> None:
        self._halt()
        await self._moves.release(set(self._owned[1]))

    def _describe(self) -> Member:
        return self.options.member(*self._owned, self._owners.held())

    def _live(self, tp: TopicPartition, generation: int, position: int) -> None:
        """Read a partition that has been restored, from its owner's position."""
        self._consumer.seek(KafkaPartition(*tp), position)
        self._consumer.resume(KafkaPartition(*tp))
        self._positions[tp] = position
        self.ready[tp] = generation
        self._realigned.discard(tp)
        self._counts.restores += 1
        self._alarm.ring()

    def _stands(self, generation: int) -> bool:
        """Return whether a generation is still the one that this member reads in."""
        assert self._fetched is not None
        return (
            generation == self._generation
            and generation == self._fetched.generation()
            and not self._fetched.rebalancing()
        )

    # Reading.

    async def _read(self, fetched: Fetched) -> None:
        with fetched.reading():
            while True:
                self._check_errors(fetched)
                arrival = fetched.arrival()
                arrival.add_done_callback(self._arrived)
                took = self._take_in(fetched)
                if not await self._hand_over() and not took:
                    self._alarm.ring_in(IDLE_SECONDS_MAX)
                    await self._alarm.wait()
                arrival.cancel()
                # aiokafka's tasks get their turn even if data never ends.
                await asyncio.sleep(0)

    def _take_in(self, fetched: Fetched) -> bool:
        """Move fetched records into the lanes, up to a chunk for each; return whether any came.

        Fetches continue meanwhile, so the next chunk has all records of the cycle before it.
        """
        some = False
        if not self._stands(self._generation):
            return False
        for lane in self._lanes:
            room = lane.room(self.options.chunk_bytes_max, self.options.chunk_records_max)
            try:
                runs = fetched.drain(lane.next_offsets(self._positions), *room, self._seek_back)
            except UnreadableError as error:
                raise TransportError(
                    f"cannot read {error}; a broker refuses it, or the log is damaged; the worker"
                    " stops, and reads on from its journal when it is started again; if it stays"
                    " so, check the broker's log and disk, and let another copy lead"
                ) from error
            lane.take_in(runs)
            some = some or bool(runs)
        return some

    async def _hand_over(self) -> bool:
        """Give every idle lane its chunk if it is due; return whether there was any."""
        some = False
        for lane in self._lanes:
            due_in = lane.due_in()
            if due_in is None or not self._stands(self._generation):
                continue
            if due_in > 0:
                self._alarm.ring_in(due_in)
                continue
            chunk = lane.next_chunk(self._generation)
            if chunk is None:
                continue
            some = True
            for run in chunk.runs:
                self._positions[run.topic, run.partition] = run.next_offset
                self._counts.records += len(run.values)
            self._counts.chunks += 1
            # The channel has room, since its lane is idle, so this does not wait.
            await lane.offer(chunk)
        return some

    def _arrived(self, arrival: asyncio.Future[None]) -> None:
        """Wake the loop: more was fetched, or the wait for more has ended."""
        if not arrival.cancelled():
            if error := arrival.exception():
                # The coordinator's, which check_errors() raises next; here it only wakes the loop.
                log.debug("a wait for records ended with %r", error)
            self._alarm.ring()

    def _check_errors(self, fetched: Fetched) -> None:
        try:
            fetched.check_errors()
        except KafkaError as error:
            if isinstance(error, InconsistentGroupProtocolError):
                raise TransportError(protocol_error(self.options.group)) from error
            if not error.retriable:
                raise TransportError(
                    f"cannot stay in group {self.options.group}: {error!r}; mend it on the brokers,"
                    " then start the worker again"
                ) from error
            self._counts.retried_errors += 1
            coordinator_log.warning("Kafka's group coordinator is asked again: %r", error)

    def _seek_back(self, topic: str, partition: int) -> None:
        self.realign(topic, partition, self._positions[topic, partition])

    def lane_idle(self, chunk: Chunk | None) -> None:
        """Note that a lane has done a chunk, or that its agent has started."""
        if chunk is not None and chunk.generation == self._generation:
            for run in chunk.runs:
                if (run.topic, run.partition) in self.ready:
                    self._hints.note((run.topic, run.partition), run.next_offset)
        self._alarm.ring()
