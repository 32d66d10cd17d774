"""The local store: all of a state or none of it, in a real RocksDB, for one process at a time."""

import functools
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import pytest
import rocksdict

from tables.model.errors import TreasureMapError
from tables.state.block_table import BlockWrite
from tables.state.input_plan import InputPlan, plans_of
from tables.state.journal import Announcement, RecordFingerprint
from tables.state.partition_meta import Meta
from tables.state.partition_state import PartitionState
from tables.state.store import FORMAT, PartitionStore
from tests import ROOT
from tests.support.common import DAY_MS, HOUR_MS, small_map
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
)

DEADLINE_S = 60


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartitionStore]:
    """Open one store; the test may have closed it."""
    opened = PartitionStore(tmp_path / "input" / "0")
    yield opened
    with suppress(rocksdict.DbClosedError):
        opened.close()


def raw_delta(journal: Journal, rng: random.Random) -> None:
    """Append some cells, and now and then an eviction."""
    cells = {(rng.choice("JL"), rng.choice("UA"), rng.randint(0, 4) * HOUR_MS) for _ in range(3)}
    blocks = {"hour": hour_block((*cell, rng.randint(-9, 9)) for cell in cells)}
    evicted = {"hour": [rng.randint(0, 4) * HOUR_MS]} if rng.random() < 0.3 else {}
    start = journal.state.meta.next_offset
    entry = delta(
        journal.state, start + 3, blocks, ledger={"records.with_events": 3},
        evicted=evicted, stream_time_ms=start, floors={"hour": start - HOUR_MS},
        tail=RecordFingerprint(start, 7),
    )  # fmt: skip
    assert journal.append(entry)


def day_delta(journal: Journal, rng: random.Random) -> None:
    """Append contributions and an announcement; final cells settle when blocks are merged."""
    start = journal.state.meta.next_offset
    hour = start * HOUR_MS
    rows = {(rng.choice("UA"), hour, sender) for sender in (0, 1)}
    blocks = {"day": day_block((*row, rng.randint(-9, 9), start) for row in rows)}
    evicted = {"day": [rng.randint(0, 1) * DAY_MS]} if rng.random() < 0.1 else {}
    announced = dict.fromkeys((0, 1), Announcement(hour, hour - 2 * HOUR_MS))
    assert journal.append(delta(journal.state, start + 1, blocks, announced, evicted=evicted))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("plan", "more"), [(RAW_PLAN, raw_delta), (DAY_PLAN, day_delta)], ids=["fold", "rollup"]
)
def test_a_state_comes_back_as_it_was(
    store: PartitionStore,
    seed: int,
    plan: InputPlan,
    more: Callable[[Journal, random.Random], None],
) -> None:
    """Merged, evicted and settled blocks, versions, ledger, floors, announcements, identities."""
    rng = random.Random(seed)
    journal = Journal(plan, base=5)
    stayed: PartitionState | None = None
    for _ in range(6):
        for _ in range(rng.randint(1, 9)):
            more(journal, rng)
            if rng.random() < 0.7:
                store.save(journal.state.take_writes(), journal.state.meta)
        store.save(journal.state.take_writes(), journal.state.meta)
        stayed = store.load(journal.plan)
        assert stayed is not None
        assert contents_of(stayed) == contents_of(journal.state)
        assert stayed.take_writes() == []
        for layer in journal.plan.layers:
            assert stayed.floor_ms(layer) == journal.state.floor_ms(layer)
        # From here on the one that came back goes on.
        journal.state = stayed
    store.close()
    with closing(PartitionStore(store.folder)) as reopened:
        again = reopened.load(journal.plan)
    assert again is not None
    assert stayed is not None
    assert contents_of(again) == contents_of(stayed)
    """A batch is written whole: neither its first blocks nor its meta are there alone."""


def test_a_new_store_has_no_state(store: PartitionStore) -> None:
    """None is not an empty state: the journal is read from its start."""
    assert store.load(RAW_PLAN) is None


def test_stored_bytes_keep_the_first_name_of_the_next_offset() -> None:
    """Stores and snapshots of earlier versions are read, and those versions read this one's."""
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(Meta(next_offset=5)))
    assert stored["to"] == 5
    assert "next_offset" not in stored


def test_a_save_that_fails_changes_nothing(store: PartitionStore) -> None:
    """A batch is written whole: no block and no meta is there without the rest."""
    journal = Journal(RAW_PLAN)
    raw_delta(journal, random.Random(1))
    store.save(journal.state.take_writes(), journal.state.meta)
    before = store.load(RAW_PLAN)
    raw_delta(journal, random.Random(2))
    broken = BlockWrite("hour", 99, 1, "no bytes")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        store.save([*journal.state.take_writes(), broken], journal.state.meta)
    after = store.load(RAW_PLAN)
    assert before is not None
    assert after is not None
    assert contents_of(after) == contents_of(before)


SAVES_FOR_EVER = """
import pathlib, sys
from tests.support.state_support import RAW_PLAN, Journal, delta, hour_block
from tables.state.store import PartitionStore

store = PartitionStore(pathlib.Path(sys.argv[1]))
journal = Journal(RAW_PLAN)
while True:
    to = journal.state.meta.next_offset
    blocks = {"hour": hour_block((str(i), "UA", 0, 1) for i in range(20))}
    assert journal.append(delta(journal.state, to + 20, blocks))
    store.save(journal.state.take_writes(), journal.state.meta)
    print(to, flush=True)
"""


def test_a_process_killed_while_it_saves_leaves_one_state(tmp_path: Path) -> None:
    """Cells, versions and position are those of the same delta, whichever was the last."""
    folder = tmp_path / "0"
    paths = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.Popen(
        [sys.executable, "-c", SAVES_FOR_EVER, str(folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert child.stdout is not None
    try:
        for _ in range(50):
            assert child.stdout.readline(), "the child ended by itself"
    finally:
        child.kill()
        child.wait(DEADLINE_S)
        child.stdout.close()
    with closing(PartitionStore(folder)) as store:
        state = store.load(RAW_PLAN)
    assert state is not None
    to = state.meta.next_offset
    assert to >= 20 * 50
    assert state.meta.journal_offset == 1 + to // 20
    assert state.tables["hour"].versions == {0: to}
    assert cells_of(state.tables["hour"]) == {
        (str(i), "UA", 0): (to // 20, to // 20, to) for i in range(20)
    }


def test_a_second_opener_is_refused_until_the_first_closes(store: PartitionStore) -> None:
    """Two owners of one store would each lose the other's writes."""
    with pytest.raises(TreasureMapError) as refused:
        PartitionStore(store.folder)
    message = str(refused.value)
    assert message.startswith(f"cannot open local store {store.folder}: ")
    assert "Give each worker its own state_folder" in message
    store.save([], Journal(RAW_PLAN).state.meta)
    store.close()
    with closing(PartitionStore(store.folder)) as again:
        assert again.load(RAW_PLAN) is not None


def test_a_second_process_is_refused(store: PartitionStore) -> None:
    """The lock is the operating system's."""
    code = (
        "import pathlib, sys, tables.state.store as s; s.PartitionStore(pathlib.Path(sys.argv[1]))"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    other = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)],
        check=False, capture_output=True, text=True, timeout=DEADLINE_S,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert other.returncode != 0
    assert "cannot open local store" in other.stderr


def test_a_store_of_another_format_counts_for_nothing(store: PartitionStore) -> None:
    """It is neither read nor mixed with the writes that come after it is emptied."""
    journal = Journal(RAW_PLAN)
    raw_delta(journal, random.Random(1))
    store.save(journal.state.take_writes(), journal.state.meta)
    store.close()
    raw = rocksdict.Rdict(str(store.folder), rocksdict.Options(raw_mode=True))
    assert raw[b"format"] == bytes((FORMAT,))
    raw[b"format"] = bytes((FORMAT + 1,))
    raw[b"block/hour/7777"] = b"of that other format"
    raw.close()
    fresh = Journal(RAW_PLAN)
    with closing(PartitionStore(store.folder)) as newer:
        assert newer.load(RAW_PLAN) is None
        newer.clear()
        newer.save([], fresh.state.meta)
        loaded = newer.load(RAW_PLAN)
    assert loaded is not None
    assert contents_of(loaded) == contents_of(fresh.state)


def test_blocks_of_a_layer_that_the_map_no_longer_has_are_passed_over(
    store: PartitionStore,
) -> None:
    """A higher revision may drop a layer; the others come back."""
    journal = Journal(RAW_PLAN)
    raw_delta(journal, random.Random(1))
    writes = [*journal.state.take_writes(), BlockWrite("dropped", 0, 1, b"anything")]
    store.save(writes, journal.state.meta)
    loaded = store.load(RAW_PLAN)
    assert loaded is not None
    assert contents_of(loaded) == contents_of(journal.state)


def test_a_store_holds_what_a_higher_revision_claims(store: PartitionStore) -> None:
    """Revision, digest and epoch are part of the state that is saved."""
    journal = Journal(RAW_PLAN)
    assert journal.append(claim(revision=3, digest="third"))
    store.save(journal.state.take_writes(), journal.state.meta)
    loaded = store.load(RAW_PLAN)
    assert loaded is not None
    assert (loaded.meta.revision, loaded.meta.digest, loaded.meta.epoch) == (3, "third", 1)


FULL = """
import os, pathlib, resource, sys
from tables.model.errors import TreasureMapError
from tables.state.journal import Announcement, RecordFingerprint
from tables.state.partition_meta import Meta
from tables.state.store import PartitionStore
from tables.state.block_table import BlockWrite

store = PartitionStore(pathlib.Path(sys.argv[1]))
# The kernel refuses writes that would make a file larger, as a full disk does.
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    for number in range(10):
        meta = Meta(next_offset=number + 1)
        store.save([BlockWrite("none", number, 1, os.urandom(200_000))], meta)
except TreasureMapError as error:
    print(number, error)
try:
    store.close()
except TreasureMapError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_named_and_what_was_saved_stays(tmp_path: Path) -> None:
    """The worker stops with it; the next one finds the last whole batch."""
    folder = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder)], cwd=ROOT, capture_output=True, text=True,
        timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    number, _, words = first.partition(" ")
    assert words.startswith(f"cannot write local store {folder}: IO error: "), done.stdout
    assert second.startswith(f"cannot close local store {folder}: IO error: "), done.stdout
    store = PartitionStore(folder)
    state = store.load(plans_of(small_map())["flights.raw"])
    store.close()
    assert state is not None
    assert state.meta.next_offset == int(number) > 0


def damage_table(folder: Path) -> None:
    """Change a byte in the middle of the cells."""
    (table,) = folder.glob("*.sst")
    data = bytearray(table.read_bytes())
    data[len(data) // 3] ^= 1
    table.write_bytes(data)


def cut_table(folder: Path) -> None:
    """Cut a table off."""
    (table,) = folder.glob("*.sst")
    os.truncate(table, 100)


def lose_table(folder: Path) -> None:
    """Remove a table."""
    (table,) = folder.glob("*.sst")
    table.unlink()


def damage_list(folder: Path) -> None:
    """Overwrite the file in which RocksDB names its manifest."""
    (folder / "CURRENT").write_text("of another program")


def lose_list(folder: Path) -> None:
    """Remove the manifests, which list RocksDB's files."""
    for manifest in folder.glob("MANIFEST-*"):
        manifest.unlink()


@pytest.mark.parametrize("harm", [damage_table, cut_table, lose_table, damage_list, lose_list])
def test_a_store_of_damaged_files_is_made_anew(
    tmp_path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """It has no state, never a part of one; files of others stay."""
    folder = tmp_path / "0"
    journal = Journal(RAW_PLAN)
    with closing(PartitionStore(folder)) as store:
        for number in range(200):
            block = hour_block([(os.urandom(200).hex(), "UA", number * HOUR_MS, 1)])
            assert journal.append(delta(journal.state, number + 1, {"hour": block}))
        store.save(journal.state.all_writes(), journal.state.meta)
        store._db.flush()
    (folder / "notes.txt").write_text("a person's")
    harm(folder)
    with closing(PartitionStore(folder)) as store:
        assert store.load(RAW_PLAN) is None
        assert "is damaged, and made anew from the journal" in caplog.text
        store.clear()
        store.save(journal.state.all_writes(), journal.state.meta)
    with closing(PartitionStore(folder)) as store:
        loaded = store.load(RAW_PLAN)
    assert loaded is not None
    assert contents_of(loaded) == contents_of(journal.state)
    assert (folder / "notes.txt").read_text() == "a person's"


SAVES_AND_DIES = """
import os, pathlib, signal, sys
from tests.support.state_support import RAW_PLAN, Journal, delta, hour_block
from tables.state.store import PartitionStore

store = PartitionStore(pathlib.Path(sys.argv[1]))
journal = Journal(RAW_PLAN)
for number in range(60):
    to = journal.state.meta.next_offset
    block = hour_block([(os.urandom(200).hex(), "UA", number, 1)])
    assert journal.append(delta(journal.state, to + 1, {"hour": block}))
    store.save(journal.state.take_writes(), journal.state.meta)
    if number in (20, 40):
        store._db.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an owner that was killed: tables have part of its state, a log more."""
    folder = tmp_path_factory.mktemp("killed") / "0"
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", SAVES_AND_DIES, str(folder)], check=False, timeout=DEADLINE_S,
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    return folder


@pytest.mark.parametrize("how", ["flip", "cut", "lose"])
@pytest.mark.parametrize("name", ["*.sst", "*.log", "MANIFEST-*", "CURRENT", "*.json", "OPTIONS-*"])
def test_of_damaged_files_no_part_is_taken_for_all(
    killed: Path, tmp_path: Path, name: str, how: str
) -> None:
    """The state is that of a prefix, whole, or it is counted as damaged, and made anew."""
    for seed in range(12):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(killed, folder)
        path = chance.choice([path for path in folder.glob(name) if path.stat().st_size])
        if how == "lose":
            path.unlink()
        elif how == "cut":
            os.truncate(path, chance.randrange(path.stat().st_size))
        else:
            data = bytearray(path.read_bytes())
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        damage: Counter[str] = Counter()
        with closing(
            PartitionStore(folder, functools.partial(damage.update, ["made anew"]))
        ) as store:
            state = store.load(RAW_PLAN)
            if state is None:
                assert damage.total() == 1, f"seed {seed}"
                store.clear()
                store.save([], Journal(RAW_PLAN).state.meta)
                assert store.load(RAW_PLAN) is not None
            else:
                assert not damage
                assert len(cells_of(state.tables["hour"])) == state.meta.next_offset, f"seed {seed}"


def test_a_folder_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    """A file stands in its place."""
    (tmp_path / "input").write_text("a file")
    with pytest.raises(TreasureMapError, match="may this one not write to it"):
        PartitionStore(tmp_path / "input" / "0")
