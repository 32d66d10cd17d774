"""The transport against brokers: the chunks it hands over, when it stops, how it resumes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError

from app.kafka.transport_options import TransportError
from tables.model.errors import (
    FencedError,
    JournalRefusedError,
    OutcomeUnknownError,
    TreasureMapError,
)
from tables.record.chunk import Chunk, Run
from tests.integration import soak_transport
from tests.support import servers
from tests.support.transport_harness import SECONDS_MAX, Benches, Memory, TransportHarness, until


async def topic_on(brokers: str, partitions: int = 2) -> str:
    """Create a topic of its own and return its name."""
    name = f"t{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1)])
    finally:
        await admin.close()
    return name


async def produce(
    brokers: str, topic: str, values: list[bytes | None], partitions: int = 2
) -> None:
    """Write values in turn to the partitions; a None value gets a header."""
    async with AIOKafkaProducer(bootstrap_servers=brokers, linger_ms=5) as producer:
        sent = [
            await producer.send(
                topic, value, key=b"key", partition=index % partitions,
                headers=[("treasure-map-time", b"7")] if value is None else [],
            )
            for index, value in enumerate(values)
        ]  # fmt: skip
        await asyncio.gather(*sent)


def numbers(first: int, stop: int) -> list[bytes | None]:
    """Return the numbers as values."""
    return [b"%d" % number for number in range(first, stop)]


async def test_every_record_is_handed_over_once_in_order(brokers: str, benches: Benches) -> None:
    """Both kinds of input reach their own agent, whole, with headers of records without value."""
    raw, layer = await topic_on(brokers), await topic_on(brokers)
    bench = await benches(brokers, {"ingest": raw, "rollup": layer}, Memory())
    await produce(brokers, raw, [*numbers(0, 199), None])
    await produce(brokers, layer, numbers(1000, 1100))
    await until(lambda: len(bench.values()) == 300, "all records")
    for records in bench.seen.values():
        assert [offset for offset, _ in records] == list(range(len(records)))
    from_raw = [value for number in (0, 1) for _, value in bench.seen[raw, number]]
    assert sorted(from_raw, key=str) == sorted([*numbers(0, 199), None], key=str)
    headers = [run.headers for chunk in bench.chunks for run in chunk.runs if run.headers]
    assert [list(found.values()) for found in headers] == [[(("treasure-map-time", b"7"),)]]
    for chunk in bench.chunks:
        assert len({run.topic for run in chunk.runs}) == 1
        assert len({run.partition for run in chunk.runs}) == len(chunk.runs)


async def test_a_chunk_keeps_its_bounds_and_loses_nothing(embedded: str, benches: Benches) -> None:
    """Records that a chunk has no room for wait for the next one."""
    raw = await topic_on(embedded)
    await produce(embedded, raw, numbers(100, 400))
    bench = await benches(
        embedded, {"ingest": raw}, Memory(), chunk_records_max=7, chunk_bytes_max=15
    )
    await until(lambda: len(bench.values()) == 300, "all records")
    assert sorted(bench.values(), key=str) == sorted(numbers(100, 400), key=str)
    for chunk in bench.chunks:
        assert sum(len(run.values) for run in chunk.runs) <= 5


async def test_an_agent_has_one_chunk_and_the_other_kind_goes_on(
    embedded: str, benches: Benches
) -> None:
    """A raw agent that is busy gets nothing more, while layer topics are read."""
    raw, layer = await topic_on(embedded), await topic_on(embedded)
    bench = await benches(
        embedded, {"ingest": raw, "rollup": layer}, Memory(), chunk_records_max=10
    )
    handle, bench.gate = bench._handle, asyncio.Event()
    stuck: list[Chunk] = []

    async def slow_for_raw(chunk: Chunk) -> None:
        if chunk.runs[0].topic == raw:
            stuck.append(chunk)
            await bench.gate.wait()
        else:
            bench.gate, kept = asyncio.Event(), bench.gate
            bench.gate.set()
            await handle(chunk)
            bench.gate = kept

    bench._handle = slow_for_raw  # type: ignore[method-assign]
    await produce(embedded, raw, numbers(0, 100))
    await until(lambda: bool(stuck), "the raw agent is busy")
    await produce(embedded, layer, numbers(0, 100))
    await until(lambda: len(bench.values()) == 100, "all of the layer topic")
    assert len(stuck) == 1


async def test_it_goes_on_from_the_owners_position_and_not_from_commits(
    brokers: str, benches: Benches
) -> None:
    """The position is the journal's alone; the group's committed offset is never read."""
    raw = await topic_on(brokers)
    await produce(brokers, raw, numbers(0, 100))
    group = uuid.uuid4().hex
    first = await benches(brokers, {"ingest": raw}, Memory(), group=group, commit_seconds=0.05)
    await until(lambda: len(first.values()) == 100, "all records")
    await first.close()
    # The second has no journal, so it must read all of it again; the third resumes in the middle.
    second = await benches(brokers, {"ingest": raw}, Memory(), group=group)
    await until(lambda: len(second.values()) == 100, "all records again")
    await second.close()
    owners = Memory({(raw, 0): 20, (raw, 1): 49})
    third = await benches(brokers, {"ingest": raw}, owners, group=group)
    await until(lambda: len(third.values()) == 31, "the rest")
    assert third.seen[raw, 1] == [(49, b"99")]


async def test_positions_are_committed_for_lag_displays(brokers: str, benches: Benches) -> None:
    """The group's commits follow the handled records."""
    raw = await topic_on(brokers)
    await produce(brokers, raw, numbers(0, 100))
    group = uuid.uuid4().hex
    bench = await benches(brokers, {"ingest": raw}, Memory(), group=group, commit_seconds=0.05)
    await until(lambda: len(bench.values()) == 100, "all records")
    await bench.close()
    consumer = AIOKafkaConsumer(bootstrap_servers=brokers, group_id=group)
    await consumer.start()
    try:
        committed = [await consumer.committed(TopicPartition(raw, number)) for number in (0, 1)]
    finally:
        await consumer.stop()
    assert committed == [50, 50]
    assert bench.transport.statistics().commit_failures == 0


@pytest.mark.parametrize("kind", [FencedError, OutcomeUnknownError])
async def test_a_fenced_restore_is_tried_again(
    embedded: str, benches: Benches, kind: type[Exception]
) -> None:
    """Another owner was there for a moment; the worker goes on."""
    raw = await topic_on(embedded, 1)
    await produce(embedded, raw, numbers(0, 10), 1)
    owners = Memory()
    owners.errors = [kind("once"), kind("twice")]
    bench = await benches(embedded, {"ingest": raw}, owners)
    await until(lambda: len(bench.values()) == 10, "all records")
    assert bench.transport.statistics().restore_retries == 2
    assert bench.transport.failure is None


@pytest.mark.parametrize("error", [JournalRefusedError("no"), RuntimeError("bug")])
async def test_a_refused_restore_stops_the_worker_with_its_reason(
    embedded: str, benches: Benches, error: Exception
) -> None:
    """A wrong map must not be served, and a bug must not be hidden."""
    raw = await topic_on(embedded, 1)
    owners = Memory()
    owners.errors = [error]
    bench = await benches(embedded, {"ingest": raw}, owners)
    await until(lambda: bench.transport.crash_reason is error, "the crash")
    assert bench.transport.failure is error
    assert bench.transport.ready == {}


async def test_an_error_of_an_agent_stops_the_worker(embedded: str, benches: Benches) -> None:
    """Its chunk is not skipped: nothing more is handed over."""
    raw = await topic_on(embedded, 1)
    bench = await benches(embedded, {"ingest": raw}, Memory())
    bench.wrong = ValueError("a bug")
    await produce(embedded, raw, numbers(0, 10), 1)
    await until(lambda: bench.transport.crash_reason is bench.wrong, "the crash")
    assert bench.transport.ready == {}
    assert bench.transport.positions() == {}


async def test_a_restarted_partition_is_read_again_from_its_owner(
    embedded: str, benches: Benches
) -> None:
    """Fenced: the partition stops at once, is restored, and the others go on meanwhile."""
    raw = await topic_on(embedded)
    owners = Memory()
    bench = await benches(embedded, {"ingest": raw}, owners)
    await produce(embedded, raw, numbers(0, 20))
    await until(lambda: len(bench.values()) == 20, "the first records")
    owners.positions[raw, 0] = 4
    owners.restore_gate.clear()
    bench.transport.restart(raw, 0, "fenced")
    assert set(bench.transport.ready) == {(raw, 1)}
    await produce(embedded, raw, numbers(20, 40))
    await until(lambda: len(bench.seen[raw, 1]) == 20, "the other partition")
    assert len(bench.seen[raw, 0]) == 10
    owners.restore_gate.set()
    await until(lambda: len(bench.seen[raw, 0]) == 26, "the partition again")
    assert [offset for offset, _ in bench.seen[raw, 0]] == [*range(10), *range(4, 20)]
    assert bench.transport.statistics().restarts == 1


async def test_reading_is_set_to_the_owners_offset(
    embedded: str, benches: Benches, caplog: pytest.LogCaptureFixture
) -> None:
    """A chunk that does not begin at the owner's position is counted, logged and read again."""
    raw = await topic_on(embedded, 1)
    bench = await benches(embedded, {"ingest": raw}, Memory())
    await produce(embedded, raw, numbers(0, 10), 1)
    await until(lambda: len(bench.values()) == 10, "the first records")
    for position in (4, 6):
        bench.seen.clear()
        bench.transport.realign(raw, 0, position)
        await until(lambda: len(bench.values()) == 10 - position, "the rest again")  # noqa: B023
        assert [offset for offset, _ in bench.seen[raw, 0]] == list(range(position, 10))
    assert bench.transport.statistics().seeks_back == 2
    assert caplog.text.count(f"reading was not at the owner's offset of {raw}[0]") == 1


async def test_what_waits_of_a_restarted_partition_does_not_reach_its_next_owner(
    embedded: str, benches: Benches
) -> None:
    """It is taken out of the chunk in the channel too; the other partitions stay in it."""
    raw = await topic_on(embedded)
    bench = await benches(embedded, {"ingest": raw}, Memory())
    await until(lambda: len(bench.transport.ready) == 2 and bench.lanes["ingest"].is_idle, "both")
    runs = [Run(raw, number, 0, 1, range(1), [b"1"], [0], {}) for number in (0, 1)]
    await bench.lanes["ingest"].offer(chunk := Chunk(1, list(runs)))
    bench.transport.restart(raw, 0, "fenced")
    assert chunk.runs == runs[1:]


async def test_partitions_move_to_a_new_member_and_back(brokers: str, benches: Benches) -> None:
    """Two members share; each knows the other's partitions; nothing is lost or doubled."""
    raw = await topic_on(brokers, 4)
    group = uuid.uuid4().hex
    journal: dict[tuple[str, int], int] = {}
    one = await benches(
        brokers, {"ingest": raw}, Memory(journal), group=group, web_url="http://one"
    )
    await until(lambda: len(one.transport.ready) == 4, "all partitions")
    await produce(brokers, raw, numbers(0, 40), 4)
    await until(lambda: len(one.values()) == 40, "the first records")
    two = await benches(
        brokers, {"ingest": raw}, Memory(journal), group=group, web_url="http://two", node="b"
    )
    await until(lambda: len(two.transport.ready) == 2 == len(one.transport.ready), "the share")
    assert one.transport.group.urls == two.transport.group.urls
    urls = {"http://one": one, "http://two": two}
    for tp, url in one.transport.group.urls.items():
        assert tp in urls[url].transport.ready
    await produce(brokers, raw, numbers(40, 80), 4)
    await until(lambda: len(one.values()) + len(two.values()) == 80, "the next records")
    await two.close()
    await until(lambda: len(one.transport.ready) == 4, "all partitions again")
    await produce(brokers, raw, numbers(80, 120), 4)
    await until(lambda: len(one.values()) + len(two.values()) == 120, "the last records")
    assert sorted([*one.values(), *two.values()], key=str) == sorted(numbers(0, 120), key=str)
    assert set(one.transport.group.urls.values()) == {"http://one"}


async def test_revoked_partitions_stop_at_once_and_a_late_release_delays_only_them(
    embedded: str, benches: Benches
) -> None:
    """Restores under way are cancelled; a hanging release is bounded; restores wait for it."""
    raw = await topic_on(embedded, 1)
    owners = Memory()
    bench = await benches(embedded, {"ingest": raw}, owners)
    await until(lambda: bool(bench.transport.ready), "the partition")
    owners.restore_gate.clear()
    bench.transport.restart(raw, 0, "to have a restore under way")
    await until(lambda: owners.calls[-1][0] == "restore" and len(owners.calls) > 2, "the restore")
    owners.release_gate.clear()
    before = len(owners.calls)
    revoked = asyncio.create_task(bench.transport.revoked())
    await until(lambda: len(owners.calls) > before, "the release")
    assert bench.transport.ready == {}
    assert owners.cancelled == 1
    await revoked
    assert bench.transport.statistics().slow_releases == 1
    owners.restore_gate.set()
    await bench.transport.assigned({(raw, 0)})
    await asyncio.sleep(0)
    assert [call for call, _ in owners.calls[before:]] == ["release"]
    owners.release_gate.set()
    await until(lambda: bool(bench.transport.ready), "the partition again")


async def test_a_chunk_that_waits_is_dropped_when_partitions_are_revoked(
    embedded: str, benches: Benches
) -> None:
    """One that the agent holds cannot be recalled; one in the channel can."""
    raw = await topic_on(embedded, 1)
    bench = await benches(embedded, {"ingest": raw}, Memory())
    lane = bench.lanes["ingest"]
    await until(lambda: lane.is_idle, "the agent")
    dropped = Chunk(1, [])
    await lane.offer(dropped)
    assert not lane.is_idle
    await bench.transport.revoked()
    assert lane.is_idle
    await lane.handle(dropped, bench._handle)
    assert bench.chunks == []


async def test_a_missing_topic_and_a_missing_broker_are_named(embedded: str) -> None:
    """A worker that cannot read ends with the remedy."""
    bench = TransportHarness(embedded, {"ingest": "no-such-topic"}, Memory())
    with pytest.raises(TransportError, match=r"cannot read no-such-topic: .*map apply"):
        await bench.transport.start()
    await bench.close()
    bench = TransportHarness("127.0.0.1:1", {"ingest": "t"}, Memory())
    with pytest.raises(TreasureMapError, match=r"cannot connect to Kafka: .*127.0.0.1:1") as raised:
        await bench.transport.start()
    assert isinstance(raised.value.__cause__, KafkaConnectionError)
    await bench.close()


@pytest.mark.kafka
async def test_a_position_outside_the_log_stops_the_worker(kafka: str, benches: Benches) -> None:
    """Kafka would start elsewhere without a word under another reset policy."""
    raw = await topic_on(kafka, 1)
    bench = await benches(kafka, {"ingest": raw}, Memory({(raw, 0): 1_000}))
    await until(lambda: bench.transport.failure is not None, "the crash")
    assert isinstance(bench.transport.failure, TransportError)
    assert "OffsetOutOfRange" in str(bench.transport.failure)


@pytest.mark.kafka
async def test_aborted_transactions_leave_no_records_and_no_gap_in_the_chain(
    kafka: str, benches: Benches
) -> None:
    """Markers and aborted records take offsets; runs follow each other without a hole."""
    raw = await topic_on(kafka, 1)
    async with AIOKafkaProducer(
        bootstrap_servers=kafka, transactional_id=uuid.uuid4().hex
    ) as producer:
        for number in range(6):
            await producer.begin_transaction()
            await producer.send_and_wait(raw, b"%d" % number, partition=0)
            await (producer.commit_transaction() if number % 2 else producer.abort_transaction())
    bench = await benches(kafka, {"ingest": raw}, Memory(), chunk_records_max=1)
    await until(lambda: bench.transport.positions().get((raw, 0)) == 12, "the end of the log")
    await until(lambda: bench.values() == [b"1", b"3", b"5"], "the committed records")
    runs = [run for chunk in bench.chunks for run in chunk.runs]
    assert [run.first_offset for run in runs[1:]] == [run.next_offset for run in runs[:-1]]


@pytest.mark.parametrize("what", ["_hand_over", "wait", "commit"])
async def test_no_background_task_ends_without_a_word(
    embedded: str, benches: Benches, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A cancellation that nobody asked for, such as of a client that closes, stops the worker."""
    topics = {"ingest": await topic_on(embedded)}
    bench = await benches(embedded, topics, Memory(), commit_seconds=0.05)
    await until(lambda: len(bench.transport.ready) == 2, "both partitions")

    async def lost(*_: Any) -> None:
        raise asyncio.CancelledError

    transport = bench.transport
    part = {"commit": transport._hints, "wait": transport._alarm}.get(what, transport)
    monkeypatch.setattr(part, what, lost)
    await until(lambda: bench.transport.failure is not None, "the failure")
    assert "its awaitable was cancelled" in str(bench.transport.failure)


async def test_a_client_whose_metadata_grow_old_stops_the_worker(
    embedded: str, benches: Benches
) -> None:
    """The task of aiokafka that asks for them would die unseen."""
    bench = await benches(embedded, {"ingest": await topic_on(embedded)}, Memory())
    client = bench.transport._consumer._client

    async def broken(*_: Any) -> bool:
        raise ValueError("no metadata")

    client._metadata_update = broken
    client.force_metadata_update()
    await until(lambda: bench.transport.failure is not None, "the failure")
    assert str(bench.transport.failure) == "no metadata"
    # The client's own stop would raise it once more.
    client._sync_task = None


async def test_while_a_partition_is_restored_the_others_are_read(
    embedded: str, benches: Benches
) -> None:
    """Partitions go live one by one, and missing ones are named."""

    class Slow(Memory):
        async def restore(self, topic: str, partition: int, generation: int) -> int:
            if partition == 1:
                return await super().restore(topic, partition, generation)
            return self.positions.get((topic, partition), 0)

    topic, memory = await topic_on(embedded), Slow()
    memory.restore_gate.clear()
    bench = await benches(embedded, {"ingest": topic}, memory)
    await produce(embedded, topic, numbers(0, 20))
    await until(lambda: len(bench.values()) == 10, "the values of partition 0")
    assert bench.transport.restoring() == [(topic, 1)]
    assert bench.transport.statistics().restoring == 1
    memory.restore_gate.set()
    await until(lambda: len(bench.values()) == 20, "the rest")
    assert bench.transport.restoring() == []


async def test_a_lane_that_admits_nothing_is_paused_and_the_others_are_not(
    embedded: str, benches: Benches
) -> None:
    """Nothing is dropped: it resumes at its position, in the same generation."""
    raw, layer = await topic_on(embedded), await topic_on(embedded)
    bench = await benches(embedded, {"ingest": raw, "rollup": layer}, Memory())
    bench.paused.add("ingest")
    await produce(embedded, raw, numbers(0, 20))
    await produce(embedded, layer, numbers(100, 120))
    await until(lambda: len(bench.values()) >= 20, "the layer's")
    assert {topic for topic, _ in bench.seen} == {layer}
    generation = bench.transport.statistics().generation
    bench.paused.clear()
    await until(lambda: len(bench.values()) == 40, "all records")
    assert sorted(bench.values(), key=str) == sorted([*numbers(0, 20), *numbers(100, 120)], key=str)
    assert bench.transport.statistics().generation == generation


async def test_a_worker_process_exits_with_zero_on_sigterm_and_else_with_its_reason(
    embedded: str, tmp_path: Path
) -> None:
    """The real App: agents on channels, web on loopback without Faust's own views, clean end."""
    topics = {soak_transport.RAW, soak_transport.LAYER}
    admin = AIOKafkaAdminClient(bootstrap_servers=embedded)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 2, 1) for topic in topics])
    await admin.close()
    await produce(embedded, soak_transport.RAW, numbers(0, 100))
    journal = soak_transport.ToyJournal(tmp_path / "journal.db")
    process, port = start_worker(embedded, tmp_path, "good")
    try:
        await until(
            lambda: [journal.read("raw", p)[0].records for p in (0, 1)] == [50, 50], "all records"
        )
        for path in ("/table/", "/router/", "/stats/", "/graph/"):
            assert (await status_of(port, path)) == 404
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, SECONDS_MAX) == 0
    finally:
        process.kill()
    # A value that is not a number is a bug in the toy's handler: the worker ends with it.
    await produce(embedded, soak_transport.RAW, [b"no number"])
    process, _ = start_worker(embedded, tmp_path, "bad")
    try:
        assert await asyncio.to_thread(process.wait, SECONDS_MAX) not in {0, None}
    finally:
        process.kill()
    log = (tmp_path / "bad.log").read_text()
    assert "the worker stops: invalid literal for int()" in log
    assert "Traceback" in log
    journal.close()


def start_worker(brokers: str, folder: Path, node: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the soak's worker as a process; return it and its web port."""
    (port,) = servers.free_ports(1)
    config = json.dumps(
        {
            "brokers": brokers, "folder": str(folder), "node": node, "port": port,
            "restore_seconds": 0,
        }
    )  # fmt: skip
    with (folder / f"{node}.log").open("wb") as log:
        process = subprocess.Popen(
            [*soak_transport.PROGRAM, "--worker", config],
            stdout=log, stderr=subprocess.STDOUT, env=os.environ,
        )  # fmt: skip
    return process, port


async def status_of(port: int, path: str) -> int:
    """Return the HTTP status of a path."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])
