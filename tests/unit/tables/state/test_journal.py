"""The journal: entries, their bytes, and which of them stand; one state for every reader."""

import dataclasses
import random
from typing import Any

import msgspec
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tables.model.errors import JournalRefusedError
from tables.model.window import NEVER_MS
from tables.record.sealed import seal
from tables.state.block_table import BlockWrite
from tables.state.journal import (
    FORMAT,
    Announcement,
    Claim,
    Delta,
    Entry,
    EntryFingerprint,
    RecordFingerprint,
    Snapshot,
    SnapshotPart,
    decode_entry,
    encode_entry,
    fingerprint_of,
)
from tables.state.partition_meta import Meta
from tables.state.partition_state import PartitionState
from tests.support.common import HOUR_MS
from tests.support.state_support import (
    DAY_PLAN,
    RAW_PLAN,
    Journal,
    cells_of,
    claim,
    contents_of,
    day_block,
    delta,
    hour_block,
    keep,
)

INTS = st.integers(-(2**62), 2**63 - 1)
COUNTS = st.integers(0, 2**40)
NAMES = st.text("abc_.", min_size=1, max_size=4)
CLAIMS = st.builds(Claim, COUNTS, st.text(max_size=9), COUNTS, COUNTS)
DELTAS = st.builds(
    Delta,
    epoch=COUNTS,
    revision=COUNTS,
    start=COUNTS,
    stop=COUNTS,
    stream_time_ms=INTS,
    floors=st.dictionaries(NAMES, INTS, max_size=3),
    announced=st.dictionaries(COUNTS, st.tuples(INTS, INTS), max_size=3),
    ledger=st.dictionaries(NAMES, COUNTS, max_size=3),
    blocks=st.dictionaries(NAMES, st.binary(max_size=50), max_size=3),
    evicted=st.dictionaries(NAMES, st.lists(INTS, max_size=3), max_size=3),
    tail=st.none() | st.tuples(INTS, COUNTS),
    snapshot=INTS,
    has_events=st.booleans(),
)


@given(CLAIMS | DELTAS)
def test_an_entry_comes_back_from_its_bytes(entry: Entry) -> None:
    """Every field of claims and deltas comes back, with any value."""
    assert decode_entry(encode_entry(entry)) == entry


def test_the_bytes_are_those_of_the_format_page() -> None:
    """Other programs and later versions read them: they change with the format number only."""
    layers, shapes = {"h": ["events"]}, {"h": {"key": "k"}}
    value = encode_entry(Claim(7, "ab", 2, 40, layers, 9, shapes, "i", "j", "k", "g", "n"))
    assert value[9:] == bytes.fromhex("9d a5") + b"claim" + bytes(
        [
            7, 0xA2, *b"ab", 2, 40, 0x81, 0xA1, *b"h", 0x91, 0xA6, *b"events", 9,
            0x81, 0xA1, *b"h", 0x81, 0xA3, *b"key", 0xA1, *b"k",
            0xA1, *b"i", 0xA1, *b"j", 0xA1, *b"k", 0xA1, *b"g", 0xA1, *b"n",
        ]
    )  # fmt: skip
    entry = Delta(
        3, 7, 40, 41, -1, {"h": 5}, {0: Announcement(1, 2)}, {"a": 1}, {"h": b"x"}, {"h": [6]},
        RecordFingerprint(8, 9), 2,
        True, 4, {0: {"events": 3}},
    )  # fmt: skip
    value = encode_entry(entry)
    assert value[0] == FORMAT == 3
    assert value[1:9] == xxhash.xxh3_64_digest(value[9:], seed=3)
    assert msgspec.msgpack.decode(value[9:], strict=False) == [
        "delta", 3, 7, 40, 41, -1, {"h": 5}, {0: [1, 2]}, {"a": 1}, {"h": b"x"}, {"h": [6]}, [8, 9],
        2, True, 4, {0: {"events": 3}},
    ]  # fmt: skip
    part = encode_entry(SnapshotPart(b"m", [("h", 5, b"x")]))
    assert msgspec.msgpack.decode(part[9:]) == ["part", b"m", [["h", 5, b"x"]]]
    snapshot = encode_entry(Snapshot(9, [(10, 100, 7)]))
    assert msgspec.msgpack.decode(snapshot[9:]) == ["snapshot", 9, [[10, 100, 7]]]


def test_a_claim_of_the_format_before_is_read() -> None:
    """It does not tell the layers of the state under it."""
    told = msgspec.msgpack.encode(["claim", 7, "ab", 2, 40])
    assert decode_entry(b"\x01" + told) == Claim(7, "ab", 2, 40, layers=None, ids=None)


@pytest.mark.parametrize("form", [1, 2])
def test_entries_of_the_formats_before_are_read(form: int) -> None:
    """They have no checksum; those of format 1 differ only in that all their blocks are frames."""
    journal = Journal(RAW_PLAN)
    for entry in (claim(), delta(journal.state, 3, {"hour": hour_block([("J", "U", 0, 1)])})):
        assert decode_entry(bytes((form,)) + encode_entry(entry)[9:]) == entry


def test_an_entry_is_recognised_by_length_and_checksum() -> None:
    """CRC-32 of the standard check value."""
    assert fingerprint_of(b"123456789") == (9, 0xCBF43926)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (b"", "format none: its checksum is wrong"),
        (seal(FORMAT + 1, b"whatever"), f"format {FORMAT + 1}; .*run the version that wrote it"),
        (bytes([FORMAT + 1]) + encode_entry(claim())[1:], f"format {FORMAT + 1}: its checksum"),
        (b'{"a":1}', f"format {ord('{')}: its checksum .* restore the journal topic"),
        (bytes([FORMAT]), "checksum"),
        (encode_entry(claim())[:-1], "checksum"),
        (encode_entry(claim()) + b"\x00", "checksum"),
        (b"\x02" + encode_entry(claim())[9:-1], "truncated"),
        (b"\x02" + encode_entry(claim())[9:] + b"\x00", "trailing"),
        (b"\x02" + b"\x91" * 9_999, "Expected `str`"),
        (b"\x02" + encode_entry(claim(digest="a"))[9:].replace(b"a\x02", b"\xff\x02"), "utf-8"),
        (seal(FORMAT, msgspec.msgpack.encode(["later", 1, 2])), "later"),
        (seal(FORMAT, msgspec.msgpack.encode(["claim", 1])), "length"),
        (seal(FORMAT, msgspec.msgpack.encode(["claim", "1", "d", 2, 0])), "int"),
        (seal(FORMAT, msgspec.msgpack.encode({"type": "claim"})), "array"),
    ],
)
def test_an_unknown_entry_stops_the_reader(value: bytes, got: str) -> None:
    """It is never passed over: old and new readers would disagree on history."""
    with pytest.raises(JournalRefusedError, match=f"^cannot read journal entry: .*{got}"):
        decode_entry(value)


def test_the_first_claim_begins_the_state_at_its_base() -> None:
    """Later ones do not move it."""
    journal = Journal(RAW_PLAN, base=40)
    meta = journal.state.meta
    assert (meta.next_offset, meta.base, meta.epoch) == (40, 40, 0)
    assert (meta.revision, meta.partitions) == (1, 2)
    assert journal.append(delta(journal.state, 50))
    assert journal.append(claim(base=45))
    assert (meta.next_offset, meta.base, meta.epoch) == (50, 40, 2)


@pytest.mark.parametrize(
    ("entry", "stands"),
    [
        (claim(revision=3, digest="third"), True),
        (claim(revision=4, digest="third"), True),
        (claim(revision=4, digest="fourth"), True),
        (claim(revision=3, digest="other"), False),
        (claim(revision=2, digest="third"), False),
        (claim(revision=3, digest="third", partitions=3), False),
        (claim(revision=4, digest="third", partitions=1), False),
    ],
)
def test_claims_stand_by_revision_digest_and_partitions(entry: Claim, *, stands: bool) -> None:
    """A claim that does not stand leaves the owner in place."""
    journal = Journal(RAW_PLAN)
    assert journal.append(claim(revision=3, digest="third"))
    before = fields_of(journal.state.meta)
    assert journal.append(entry) is stands
    meta = journal.state.meta
    assert meta.journal_offset == 3
    assert meta.entry == fingerprint_of(journal.values[-1])
    if stands:
        assert (meta.epoch, meta.revision, meta.digest) == (2, entry.revision, entry.digest)
    else:
        same = {"journal_offset": 3, "entry": meta.entry}
        assert fields_of(meta) == before | same
        assert journal.append(delta(journal.state, 1))


def fields_of(meta: Meta) -> dict[str, Any]:
    """Return a copy of all fields."""
    return msgspec.to_builtins(meta, builtin_types=(bytes,))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("changes", "stands"),
    [
        ({}, True),
        ({"start": 9, "stop": 11}, False),
        ({"start": 11, "stop": 12}, False),
        ({"epoch": 0}, False),
        ({"epoch": 9}, False),
        ({"revision": 0}, False),
        ({"revision": 2}, False),
    ],
)
def test_deltas_stand_by_chain_epoch_and_revision(changes: dict[str, int], *, stands: bool) -> None:
    """Any other is skipped whole."""
    journal = Journal(RAW_PLAN)
    assert journal.append(delta(journal.state, 10))
    assert journal.append(claim())
    block = {"hour": hour_block([("JFK", "UA", 0, 1)])}
    entry = delta(
        journal.state, 11, block, ledger={"records.with_events": 1}, stream_time_ms=HOUR_MS,
        floors={"hour": 0}, tail=(1, 1),
    )  # fmt: skip
    entry = msgspec.structs.replace(entry, **changes)
    before = fields_of(journal.state.meta)
    assert journal.append(entry) is stands
    meta = journal.state.meta
    assert cells_of(journal.state.tables["hour"]) == (
        {("JFK", "UA", 0): (1, 1, 11)} if stands else {}
    )
    if stands:
        assert (meta.next_offset, meta.stream_time_ms, meta.tail) == (11, HOUR_MS, (1, 1))
        assert meta.ledger == {"records.with_events": 1}
    else:
        same = {"journal_offset": 4, "entry": meta.entry}
        assert fields_of(meta) == before | same


def test_a_delta_that_landed_twice_counts_once() -> None:
    """A broker without idempotent producers may repeat an append."""
    journal = Journal(RAW_PLAN)
    entry = delta(journal.state, 5, {"hour": hour_block([("JFK", "UA", 0, 1)])})
    assert journal.append(entry)
    assert not journal.append(entry)
    assert cells_of(journal.state.tables["hour"]) == {("JFK", "UA", 0): (1, 1, 5)}


def test_a_zombie_that_goes_on_after_a_newer_claim_changes_nothing() -> None:
    """The delta of the zombie follows the chain, but not the epoch."""
    journal = Journal(RAW_PLAN)
    zombie = delta(journal.state, 5, {"hour": hour_block([("JFK", "UA", 0, 1)])})
    assert journal.append(claim())
    assert not journal.append(zombie)
    assert journal.append(delta(journal.state, 3))
    assert journal.state.meta.next_offset == 3


def test_a_delta_over_no_records_evicts_and_does_nothing_else() -> None:
    """Idle partitions shrink too; repeated, it changes nothing more."""
    journal = Journal(RAW_PLAN)
    rows = [("JFK", "UA", 0, 1), ("JFK", "UA", HOUR_MS, 1)]
    assert journal.append(delta(journal.state, 5, {"hour": hour_block(rows)}, tail=(3, 4)))
    entry = delta(
        journal.state, 5, evicted={"hour": [0]}, stream_time_ms=9, floors={"hour": 9},
        ledger={"records.gap": 1},
    )  # fmt: skip
    for _ in range(2):
        assert journal.append(entry)
        meta = journal.state.meta
        assert cells_of(journal.state.tables["hour"]) == {("JFK", "UA", HOUR_MS): (1, 1, 5)}
        assert (meta.next_offset, meta.tail, meta.ledger, meta.floors) == (5, (3, 4), {}, {})
        assert meta.stream_time_ms == NEVER_MS


def test_stream_time_never_falls() -> None:
    """An entry with an earlier time does not lower it."""
    journal = Journal(RAW_PLAN)
    assert journal.append(delta(journal.state, 1, stream_time_ms=50))
    assert journal.append(delta(journal.state, 2, stream_time_ms=20))
    assert journal.state.meta.stream_time_ms == 50


def test_a_gap_in_the_journal_is_an_error_of_the_program() -> None:
    """State after entries that were not read would be wrong."""
    journal = Journal(RAW_PLAN)
    entry = delta(journal.state, 1)
    with pytest.raises(AssertionError, match="journal gap"):
        journal.state.apply(7, entry, EntryFingerprint(0, 0))


def test_a_coarser_layer_is_as_far_as_its_slowest_sender() -> None:
    """A sender that was never heard holds it at minus infinity."""
    journal = Journal(DAY_PLAN)
    (day,) = DAY_PLAN.layers
    assert journal.append(delta(journal.state, 1, announced={1: Announcement(70, 60)}))
    assert (journal.state.closed_ms(day), journal.state.floor_ms(day)) == (NEVER_MS, NEVER_MS)
    assert journal.append(delta(journal.state, 2, announced={0: Announcement(90, 50)}))
    assert (journal.state.closed_ms(day), journal.state.floor_ms(day)) == (70, 50)


@dataclasses.dataclass
class Expected:
    """The state after the valid entries, computed in the plainest way."""

    to: int = 0
    epoch: int = -1
    revision: int = 0
    digest: str = ""
    deltas: list[Delta] = dataclasses.field(default_factory=list)

    def take(self, offset: int, entry: Entry) -> bool:
        """Take one entry; partitions are never wrong here."""
        if isinstance(entry, Claim):
            first = self.epoch == -1
            higher = entry.revision > self.revision
            same = entry.revision == self.revision and entry.digest == self.digest
            if not (first or higher or same):
                return False
            self.to = entry.base if first else self.to
            self.epoch, self.revision, self.digest = offset, entry.revision, entry.digest
            return True
        assert isinstance(entry, Delta)
        if entry.start != self.to or entry.epoch != self.epoch or entry.revision != self.revision:
            return False
        self.deltas.append(entry)
        self.to = entry.stop
        return True


def random_entry(rng: random.Random, state: PartitionState, epochs: list[int]) -> Entry:
    """Return an entry as owners and zombies write them: often the next one, often not."""
    if rng.random() < 0.2:
        return claim(rng.randint(1, 3), rng.choice(["a", "a", "b"]), base=rng.randint(0, 5))
    to = max(state.meta.next_offset + rng.choice([0, 0, 0, 0, -1, 1]), 0)
    epoch = state.meta.epoch if rng.random() < 0.8 else rng.choice(epochs)
    rows = {(rng.choice(["UA", "AA"]), rng.randint(0, 5) * HOUR_MS) for _ in range(3)}
    if state.plan is DAY_PLAN:
        blocks = {"day": day_block((*row, 0, rng.randint(-9, 9), to) for row in rows)}
    else:
        blocks = {"hour": hour_block(("JFK", *row, rng.randint(-9, 9)) for row in rows)}
    announced = {rng.randint(0, 1): Announcement(to * HOUR_MS // 9, to * HOUR_MS // 10)}
    entry = delta(state, to + rng.randint(1, 3), blocks, announced, {"n": 1}, start=to, epoch=epoch)
    return msgspec.structs.replace(entry, revision=rng.choice([state.meta.revision] * 4 + [1]))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("plan", [RAW_PLAN, DAY_PLAN], ids=["fold", "rollup"])
def test_every_reader_comes_to_the_same_state(seed: int, plan: Any) -> None:
    """The writer, a reader of bytes, and one that comes back from its store now and then agree."""
    rng = random.Random(seed)
    journal = Journal(plan)
    expected = Expected()
    expected.take(0, decode_entry(journal.values[0]))
    epochs = [0]
    for offset in range(1, 60):
        entry = random_entry(rng, journal.state, epochs)
        stands = journal.append(entry)
        assert stands == expected.take(offset, entry)
        if stands and isinstance(entry, Claim):
            epochs.append(offset)
    assert len(expected.deltas) > 9
    meta = journal.state.meta
    assert (meta.next_offset, meta.epoch, meta.revision) == (
        expected.to, expected.epoch, expected.revision,
    )  # fmt: skip
    assert meta.ledger == {"n": len(expected.deltas)}
    auditor = PartitionState(plan)
    for offset, value in enumerate(journal.values):
        auditor.apply(offset, decode_entry(value), fingerprint_of(value))
    assert contents_of(auditor) == contents_of(journal.state)
    assert contents_of(stopping_reader(rng, journal)) == contents_of(journal.state)


def stopping_reader(rng: random.Random, journal: Journal) -> PartitionState:
    """Return the state of a reader that restores itself from its store, again and again."""
    state = PartitionState(journal.plan)
    disks: dict[str, dict[int, BlockWrite]] = {name: {} for name in state.all_tables}
    for offset, value in enumerate(journal.values):
        state.apply(offset, decode_entry(value), fingerprint_of(value))
        if rng.random() < 0.3:
            stored = msgspec.msgpack.decode(msgspec.msgpack.encode(state.meta), type=Meta)
            again = PartitionState(journal.plan, stored)
            for name, disk in disks.items():
                keep(state.all_tables[name], disk)
                for write in disk.values():
                    again.all_tables[name].load(write.sequence, write.version, write.data or b"")
            state = again
    return state
