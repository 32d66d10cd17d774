"""The decoder: one definition of malformed, for every path and every chunking."""

import orjson
from hypothesis import given
from hypothesis import strategies as st

from agents.decode.event_batch import INDEX_COLUMN, RECORD_SPAN, EventBatch
from agents.decode.records import Decoder
from agents.partition.letters import letters_of
from agents.partition.owner import tail_of
from tables.model import ledger
from tables.model.ledger import EVENT_COLUMNS, RECORD_COLUMNS
from tables.record.chunk import RecordFault
from tests.support.common import dataclasses_replace, flight, run_of, small_map

SOURCE = small_map().source("flights")
DECODER = Decoder(dataclasses_replace(SOURCE, record_bytes_max=1_000))

FRAGMENTS = st.sampled_from(
    [
        b'{"at":1,"type":"a"}',
        b'{"at":1,"type":"a"}{"at":2,"type":"b"}',
        b'{"at":1,"type":"a"}\n{"at":2,"type":"b"}',
        b'{"at":1',
        b'"type":"a"}',
        b'{"at":1,"type":"a","x":"}',
        b'{"}',
        b"{",
        b"}",
        b"\n",
        b" ",
        b'{"at":1.5,"type":"a"}',
        b'{"at":9223372036854775808,"type":"a"}',
        b'{"at":1,"type":null}',
        b'{"at":1,"type":"a","origin":7}',
        b'{"at":1,"type":"\xff"}',
        b'{"at":1,"type":"a","skipped":"\xff"}',
        b"[" * 2_000,
    ]
)
GOOD = st.sampled_from([b'{"at":1,"type":"a"}', b'{"at":2,"type":"b","delay":3}'])
BAD = st.one_of(FRAGMENTS, st.lists(FRAGMENTS, max_size=3).map(b"".join))
EMPTY = st.one_of(st.none(), st.integers(0, 9))
VALUES = st.one_of(
    st.lists(st.one_of(BAD, EMPTY), min_size=1, max_size=8),
    st.lists(st.one_of(GOOD, GOOD, EMPTY), min_size=1, max_size=12),
)


def events(batch: EventBatch) -> list[tuple[object, ...]]:
    """Return the events of a batch without their indexes."""
    return batch.frame.drop(INDEX_COLUMN).rows()


def records_of(batch: EventBatch) -> list[int]:
    """Return the record index of each event."""
    return (batch.frame[INDEX_COLUMN] // RECORD_SPAN).to_list()


@given(VALUES)
def test_any_chunking_gives_the_same_events_and_ledger(values: list[bytes | None]) -> None:
    """Records decoded together and one by one are the same events, counted alike."""
    together = DECODER.decode([run_of(values)])
    alone = [DECODER.decode([run_of([value], first_offset=i)]) for i, value in enumerate(values)]
    assert events(together) == [event for batch in alone for event in events(batch)]
    assert records_of(together) == [i for i, batch in enumerate(alone) for _ in events(batch)]
    counted = ledger.total(batch.ledgers[0].counts for batch in alone)
    nonzero = {name: count for name, count in together.ledgers[0].counts.items() if count}
    assert nonzero == {name: count for name, count in counted.items() if count}


@given(VALUES)
def test_every_record_is_in_exactly_one_column(values: list[bytes | None]) -> None:
    """The record columns add up to the offsets read."""
    batch = DECODER.decode([run_of(values)])
    assert sum(batch.ledgers[0].counts.get(f"records.{name}", 0) for name in RECORD_COLUMNS) == len(
        values
    )


def test_each_fault_is_counted_under_its_reason() -> None:
    """Faults that can be told apart are counted apart; the ledger adds up."""
    values = [flight(1), b'{"at":"x","type":"a"}', b"{nonsense", b"", None, b" ", b"x" * 1_001]
    counts = DECODER.decode([run_of(values)]).ledgers[0].counts
    assert {name: count for name, count in counts.items() if count} == {
        "records.with_events": 3,
        "records.empty": 2,
        "records.tombstone": 1,
        "records.oversized": 1,
        "events.decoded": 3,
        "events.malformed": 2,
        "malformed.out_of_range": 1,
        "malformed.json": 1,
    }


def test_times_outside_the_calendar_are_malformed_and_move_nothing() -> None:
    """Year 0 and year 10000 have no month; a heartbeat of such a time is unreadable."""
    batch = DECODER.decode([run_of([flight(-(10**17)), flight(10**15), -(10**17), flight(5)])])
    assert batch.frame["time"].to_list() == [5]
    assert batch.ledgers[0].counts["malformed.out_of_range"] == 2
    assert batch.ledgers[0].counts["unreadable.heartbeat"] == 1


def test_what_cannot_be_used_is_set_aside_with_its_reason() -> None:
    """Each bad record is named with its place and why; the good ones are kept."""
    batch = DECODER.decode([run_of([flight(1), b"{", flight(2)])])
    (item,) = batch.aside
    assert (item.kind, item.record, item.events, item.reason) == ("dead", 1, (0,), "json")
    assert "truncated" in item.detail
    assert batch.frame["time"].to_list() == [1, 2]


def test_offsets_without_record_count_as_gaps() -> None:
    """Transaction markers and compacted records leave offsets without record."""
    run = run_of([flight(1), flight(2)])
    run.next_offset = 5
    assert DECODER.decode([run]).ledgers[0].counts["records.gap"] == 3


def test_heartbeats_are_rows_without_type_at_their_place() -> None:
    """A heartbeat moves stream time at its offset in the log."""
    batch = DECODER.decode([run_of([flight(1), 5_000, flight(2)])])
    assert batch.frame.select("time", "type").rows() == [
        (1, "flight.departed"),
        (5_000, None),
        (2, "flight.departed"),
    ]
    assert batch.ledgers[0].counts["records.heartbeat"] == 1


def test_a_heartbeat_that_is_no_number_is_unreadable() -> None:
    """Junk in the header moves nothing."""
    run = run_of([7])
    run.headers[0] = (("treasure-map-time", b"soon"),)
    batch = DECODER.decode([run])
    assert batch.frame.height == 0
    assert batch.ledgers[0].counts["records.unreadable"] == 1


def test_events_too_far_ahead_of_their_append_time_are_set_aside() -> None:
    """One clock gone wrong must not close every window."""
    now_ms = 1_700_000_000_000
    ahead = now_ms + SOURCE.future_skew_ms + 1
    run = run_of([flight(1), flight(ahead), ahead, flight(2)], append_time_ms=now_ms)
    batch = DECODER.decode([run])
    assert batch.frame["time"].to_list() == [1, 2]
    assert batch.bounds == [(0, 2)]
    assert batch.ledgers[0].counts["events.future"] == 1
    assert batch.ledgers[0].counts["records.heartbeat"] == 0
    assert sorted(item.reason for item in batch.aside) == ["future", "heartbeat"]


def test_runs_keep_their_own_bounds_and_partitions() -> None:
    """One frame holds all partitions of a fetch."""
    runs = [run_of([flight(1), flight(2)], 0), run_of([flight(3)], 1)]
    batch = DECODER.decode(runs)
    assert batch.bounds == [(0, 2), (2, 3)]
    assert batch.frame["partition"].to_list() == [0, 0, 1]


def test_every_event_column_is_counted_by_someone() -> None:
    """Decoded events are malformed here or classified by the next step; nothing else is left."""
    batch = DECODER.decode([run_of([flight(1), orjson.dumps({"at": 1})])])
    counts = batch.ledgers[0].counts
    here = sum(counts.get(f"events.{name}", 0) for name in EVENT_COLUMNS)
    assert here + batch.frame.height == counts["events.decoded"]


def test_a_record_with_a_fault_is_set_aside_whatever_its_value_is() -> None:
    """Its fault gives the reason; its size decides if only its beginning was read."""
    run = run_of([flight(0), flight(1), b" " * 10, flight(3), b""])
    run.faults = {
        1: RecordFault("header", "why"),
        2: RecordFault("cut", "why", 5_000),
        3: RecordFault("cut", "why", 900),
        4: RecordFault("batch", "why"),
    }
    batch = DECODER.decode([run])
    assert records_of(batch) == [0]
    assert [(a.record, a.reason, a.events) for a in batch.aside] == [
        (1, "header", None), (2, "oversized", None), (3, "batch", None), (4, "batch", None),
    ]  # fmt: skip
    assert batch.aside[1].detail == "got 5000 bytes; want at most 1000"
    (counts,) = (delta.counts for delta in batch.ledgers)
    assert ledger.imbalances(counts | {"events.classified": 1}, 5, []) == []
    assert (counts["records.oversized"], counts["records.unreadable"]) == (1, 3)
    assert counts["unreadable.batch"] == 2
    ((value, headers),) = letters_of(run, batch.aside[1], DECODER.part_of)
    assert value == b" " * 10
    run.faults[2] = RecordFault("cut", "why", 1 << 30)
    ((_, headers),) = letters_of(run, batch.aside[1], DECODER.part_of)
    assert dict(headers)["cut"] == b"%d" % (1 << 30)


def test_the_last_record_identifies_a_log_unless_it_has_a_fault() -> None:
    """Its value may not be all there, and another version may read more of it."""
    run = run_of([flight(0)])
    assert tail_of(run) is not None
    run.faults[0] = RecordFault("cut", "why")
    assert tail_of(run) is None


def test_faults_stay_with_their_records_when_a_run_is_cut_or_extended() -> None:
    """Faults move with their records, as headers do."""
    run = run_of([flight(0), flight(1), flight(2)])
    fault = RecordFault("header", "why")
    run.faults = {1: fault}
    first, second = run.halves()
    assert (first.faults, second.faults) == ({}, {0: fault})
    first.extend(second)
    assert first.faults == {1: fault}


def test_a_record_without_an_append_time_has_no_event_in_the_future() -> None:
    """Nor one whose time is from before there was Kafka, such as one in seconds."""
    run = run_of([flight(2**44), flight(2**44), flight(2**44), 2**44, flight(2**44)])
    run.append_times_ms = [-1, 1_700_000_000_000, 2**63 - 1, -1, 1_700_000_000]
    batch = DECODER.decode([run])
    assert records_of(batch) == [0, 2, 3, 4]
    assert [item.record for item in batch.aside] == [1]
    assert batch.ledgers[0].counts["events.future"] == 1
    assert batch.ledgers[0].counts["records.heartbeat"] == 1


def test_a_time_in_the_wrong_unit_has_a_hint() -> None:
    """Milliseconds instead of seconds lie beyond year 9999."""
    decoder = Decoder(dataclasses_replace(SOURCE, time_unit_ms=1_000))
    batch = decoder.decode([run_of([flight(1_699_920_000_000), flight(1_699_920_000)])])
    assert records_of(batch) == [1]
    assert batch.aside[0].detail.endswith("are these milliseconds instead of seconds?")
