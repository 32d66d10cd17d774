"""A worker process and whatever bytes producers write to a source: none of them ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c
from click.testing import CliRunner

from app.__main__ import group
from app.kafka.inflate import INFLATED_BYTES_MAX
from tests.support.common import flight
from tests.support.waiting import until
from tests.support.worker_process import SECONDS_MAX, Process, apply

MIB = 1 << 20


async def send_batch(
    brokers: str, topic: str, values: list[bytes], headers: list[list[tuple[str, bytes]]]
) -> None:
    """Send records in one batch, in which a header name ``ZZZZ`` becomes Latin-1 bytes."""
    async with AIOKafkaProducer(bootstrap_servers=brokers, acks="all") as producer:
        await producer.partitions_for(topic)
        batch = producer.create_batch()
        for value, some in zip(values, headers, strict=True):
            now_ms = time.time_ns() // 1_000_000
            batch.append(key=None, value=value, timestamp=now_ms, headers=some)
        raw = bytearray(batch._build())
        if b"ZZZZ" in raw:
            at = raw.index(b"ZZZZ")
            raw[at : at + 4] = b"Gr\xfcn"
        raw[17:21] = calc_crc32c(bytes(raw[21:])).to_bytes(4)
        batch._buffer = bytes(raw)
        await (await producer.send_batch(batch, topic, partition=0))


async def read_up_to(worker: Process, offset: int) -> dict[str, Any]:
    """Return the ledger once partition 0 of the source was read so far."""
    found: dict[str, Any] = {}

    async def is_read() -> bool:
        nonlocal found
        assert worker.running.poll() is None, worker.log()
        _, found = await worker.get("/v1/ledger")
        row = found["records"].get(f"{worker.map_name}.raw", {}).get("0", {})
        return bool(row.get("position") == offset)

    await until(is_read, SECONDS_MAX)
    return found


def letters_of(worker: Process) -> list[dict[str, Any]]:
    """Return the letters that the command lists."""
    words = ["--map", str(worker.map_file), "--brokers", worker.settings["brokers"]]
    result = CliRunner().invoke(group, ["deadletters", "list", "--json", *words])
    assert result.exit_code == 0, result.output
    return [orjson.loads(line) for line in result.stdout.splitlines()]


async def test_records_that_cannot_be_read_are_set_aside(
    brokers: str, processes: Callable[..., Process]
) -> None:
    """A header name that is not UTF-8, last in the log: also when the worker starts again."""
    worker = processes(brokers)
    await apply(worker)
    topic = f"{worker.map_name}.raw"
    await worker.send(topic, (0, flight(0)))
    headers = [[("trace", b"\xc3\x28")], [("ZZZZ", b"x")], []]
    await send_batch(brokers, topic, [flight(1), flight(2), flight(3)], headers)
    await send_batch(brokers, topic, [flight(4)], [[("ZZZZ", b"x")]])
    for _ in range(2):
        worker.start()
        await worker.ready()
        ledger = await read_up_to(worker, 5)
        assert ledger["balanced"], ledger["problems"]
        row = ledger["records"][topic]["0"]
        assert (row["with_events"], row["unreadable"]) == (3, 2)
        assert await worker.stop() == 0
    letters = await asyncio.to_thread(letters_of, worker)
    assert [(one["offset"], one["reason"]) for one in letters] == [(2, "header"), (4, "header")]
    assert orjson.loads(letters[0]["value"])["at"] == 2
    assert letters[0]["detail"] == "the name of a header is not UTF-8; got b'Gr\\xfcn'"


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_what_inflates_too_far_is_set_aside_within_a_bound(
    embedded: str, processes: Callable[..., Process], codec: str
) -> None:
    """Up to a MiB, which brokers take, that inflates to three times the bound, between events.

    Snappy inflates to twenty times at most.
    """
    await check_bomb(embedded, processes, codec)


@pytest.mark.kafka
async def test_so_is_what_comes_from_kafka(kafka: str, processes: Callable[..., Process]) -> None:
    """It stores batches as they were sent."""
    await check_bomb(kafka, processes, "zstd")


async def check_bomb(brokers: str, processes: Callable[..., Process], codec: str) -> None:
    """Send a bomb between two events; the worker takes these, and stays small."""
    worker = processes(brokers)
    await apply(worker)
    topic = f"{worker.map_name}.raw"
    worker.start()
    await worker.ready()
    before = _peak_bytes(worker)
    bomb = b" " * (15 * MIB if codec == "snappy" else 3 * INFLATED_BYTES_MAX)
    await worker.send(topic, (0, flight(0)))
    async with AIOKafkaProducer(
        bootstrap_servers=brokers, compression_type=codec, max_request_size=1 << 30,
        max_batch_size=1 << 30,
    ) as producer:  # fmt: skip
        await producer.send_and_wait(topic, bomb, partition=0)
    await worker.send(topic, (0, flight(1)))
    ledger = await read_up_to(worker, 3)
    row = ledger["records"][topic]["0"]
    assert (row["with_events"], row["oversized"]) == (2, 1)
    assert _peak_bytes(worker) - before < 3 * INFLATED_BYTES_MAX
    assert await worker.stop() == 0


def _peak_bytes(worker: Process) -> int:
    """Return how much memory a process has had at most."""
    status = Path(f"/proc/{worker.running.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
