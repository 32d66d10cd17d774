"""Topics as verify reads them: from real batches, whatever is in them."""

from __future__ import annotations

import gc
import warnings

import pytest
from aiokafka import AIOKafkaProducer

from app.cluster.topics import apply_topics
from app.kafka import inflate
from app.kafka.scan import Scan, ScanError
from app.verify import record_of
from app.verify.database import Database
from app.verify.events import Events
from app.verify.letters import Letters
from app.verify.records import Record
from tests.support.common import flight, small_map
from tests.support.servers import free_ports

MAP = small_map()
RAW = "flights.raw"
BOUND = 2 << 20


async def read(broker: str) -> list[Record]:
    """Return all records of the first partition."""
    taken: list[Record] = []
    async with Scan(broker, {}, "cannot read topics", committed=True) as scan:
        starts = await scan.starts({RAW: 2})
        async for _, records in scan.read(starts, await scan.ends(starts)):
            taken += map(record_of, records)
    return taken


async def send(broker: str, *batches: list[bytes | None], codec: str | None = None) -> None:
    """Write each list of values as one batch."""
    await apply_topics(broker, MAP)
    async with AIOKafkaProducer(
        bootstrap_servers=broker, compression_type=codec, max_batch_size=1 << 30,
        max_request_size=1 << 30,
    ) as producer:  # fmt: skip
        for values in batches:
            builder = producer.create_batch()
            for value in values:
                assert builder.append(key=None, value=value, timestamp=2 * 10**12) is not None
            sent = await producer.send_batch(builder, RAW, partition=0)
            await sent


async def test_every_record_is_read_once_and_in_order(broker: str) -> None:
    """Batches of many and of one, values that are null or empty."""
    values: list[bytes | None] = [flight(at) for at in range(2_000)]
    await send(broker, values[:1_500], [None, b""], values[1_500:])
    found = await read(broker)
    assert [one.offset for one in found] == list(range(2_002))
    assert [one.value for one in found] == [*values[:1_500], None, b"", *values[1_500:]]
    assert {one.time_ms for one in found} == {2 * 10**12}


@pytest.mark.parametrize("before", [BOUND // 2, BOUND - 200, BOUND - 65])
async def test_a_record_that_a_batch_cuts_is_as_large_as_it_is(
    broker: str, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """However little of it is read; the worker's letters say oversized too."""
    monkeypatch.setattr(inflate, "INFLATED_BYTES_MAX", BOUND)
    source = MAP.sources[0]
    first = b" " * (source.record_bytes_max // 2)
    count, rest = divmod(before, len(first))
    await send(broker, [flight(5)], [*[first] * count, b" " * rest, b"x" * (3 << 20)], codec="gzip")
    found = await read(broker)
    assert len(found) == count + 3
    assert found[-1].cut == found[-1].size == 3 << 20
    with Database() as database:
        events = Events(database, source, MAP.base_layers("flights"), Letters(database))
        events.take(0, found)
        events.load()
        events.settle()
        ledger = events.partitions[0].ledger
        assert ledger["records.oversized"] == 1
        assert ledger["records.with_events"] == ledger["events.classified"] == 1
        assert ledger["records.unreadable"] == ledger["events.malformed"] == 0
        assert [(one.where, one.want) for one in events.letters_differing()][-1] == (
            f"dead letter of {RAW}[0] offset {found[-1].offset}", "oversized",
        )  # fmt: skip


async def test_offsets_that_never_come_end_the_scan(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that was made anew meanwhile is shorter than before; nobody waits for it for ever."""
    await send(broker, [flight(5)])
    place = (RAW, 0)
    async with Scan(broker, {}, "cannot read topics", committed=True) as scan:
        assert await scan.ends([place]) == {place: 1}
        monkeypatch.setattr("app.kafka.scan.ANSWER_SECONDS", 5.0)
        found = scan.read({place: 0}, {place: 9})
        _, records = await anext(found)
        assert [record.offset for record in records] == [0]
        with pytest.raises(ScanError, match=r"nothing came within 5 s; .*want up to .*9"):
            await anext(found)


async def test_no_broker_ends_with_one_message_and_nothing_open() -> None:
    """A consumer that could not connect is closed all the same."""
    (port,) = free_ports(1)
    topics = Scan(f"127.0.0.1:{port}", {}, "cannot read topics", committed=True)
    with pytest.raises(ScanError, match="cannot read topics: nothing listens at ") as raised:
        async with topics:
            pass
    assert str(raised.value).count("nothing listens") == 1
    del raised
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del topics
        gc.collect()
    assert [one for one in told if "Unclosed" in str(one.message)] == []
