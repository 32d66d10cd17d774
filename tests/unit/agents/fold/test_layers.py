"""Folding: the same cells and ledger for every chunking, exact sums, late events per event."""

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Sequence

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.decode.records import Decoder
from agents.fold.classify import NAMED_MAX, OTHERS, Classifier
from agents.fold.content import Before
from agents.fold.layers import Folder
from tables.model import ledger
from tables.model.layer import Condition, Field, Map
from tables.model.window import NEVER_MS
from tables.state.block import encode_block
from tables.state.input_plan import plans_of
from tables.state.layer_table import FoldTable
from tests.support.common import (
    HOUR_MS,
    accumulators,
    dataclasses_replace,
    flight,
    run_of,
    small_map,
)

MAP = small_map()


def fold_all(
    themap: Map, values: Sequence[bytes | int | None], cuts: list[int]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Fold one partition in the chunks that ``cuts`` make; return cells and ledger."""
    plan = plans_of(themap)["flights.raw"]
    decoder, folder = Decoder(plan.source), Folder(plan)  # type: ignore[arg-type]
    layer = themap.layer("hour")
    table = FoldTable(layer)
    counts: dict[str, int] = {}
    before = Before(NEVER_MS, {})
    slack = layer.max_out_of_orderness_ms + layer.allowed_lateness_ms
    edges = [0, *sorted(cuts), len(values)]
    for start, stop in itertools.pairwise(edges):
        if start == stop:
            continue
        batch = decoder.decode([run_of(values[start:stop], first_offset=start)])
        (content,) = folder.fold(batch, {0: before})
        ledger.add(counts, content.ledger)
        if "hour" in content.blocks:
            table.add(encode_block(content.blocks["hour"]), stop)
        floor = max(content.stream_time_ms - slack, before.floors.get("hour", NEVER_MS))
        before = Before(content.stream_time_ms, {"hour": floor})
    cells = table.cells().drop("version").sort("key_origin", "key_carrier", "window_start")
    return cells, {name: count for name, count in counts.items() if count}


DELAYS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-9, 9))
EVENTS = st.builds(
    flight,
    st.integers(-3 * HOUR_MS, 6 * HOUR_MS),
    st.sampled_from(["JFK", "LGA"]),
    st.sampled_from(["UA", "AA"]),
    DELAYS,
)
RECORDS = st.one_of(EVENTS, EVENTS, st.integers(0, 8 * HOUR_MS), st.just(b"{"))


@given(st.lists(RECORDS, max_size=30), st.lists(st.integers(0, 30), max_size=6))
def test_any_chunking_gives_the_same_cells_and_ledger(
    values: list[bytes | None], cuts: list[int]
) -> None:
    """Late or not, and every sum, depend on the log alone."""
    cuts = [cut for cut in cuts if cut <= len(values)]
    whole, pieces = fold_all(MAP, values, []), fold_all(MAP, values, cuts)
    assert whole[0].equals(pieces[0])
    assert whole[1] == pieces[1]
    assert ledger.imbalances(whole[1], len(values), ["hour"]) == []


def test_cells_equal_a_plain_loop_over_the_events() -> None:
    """Counts, sums, extremes and squares are those of exact integers."""
    rng = random.Random(5)
    raw = []
    for _ in range(2_000):
        delay = rng.choice([None, rng.randint(-100, 100), 2**63 - 1, -(2**63)])
        raw.append((rng.randint(0, 3 * HOUR_MS - 1), rng.choice("ab"), delay))
    raw.sort(key=lambda event: event[0])
    cells, counts = fold_all(MAP, [flight(at, "JFK", c, d) for at, c, d in raw], [7, 700])
    groups: dict[tuple[str, int], list[int | None]] = defaultdict(list)
    for at, carrier, delay in raw:
        groups[carrier, at // HOUR_MS * HOUR_MS].append(delay)
    assert counts["layer.hour.folded"] == len(raw)
    assert cells.height == len(groups)
    for row in cells.to_dicts():
        delays = groups[row["key_carrier"], row["window_start"]]
        known = [delay for delay in delays if delay is not None]
        assert row["events"] == len(delays)
        assert row["n_delay"] == len(known)
        assert row["sum_delay"] == sum(known)
        assert (row["min_delay"], row["max_delay"]) == (min(known), max(known))
        assert (row["sqhi_delay"] << 64) + row["sqlo_delay"] == sum(d * d for d in known)


def test_an_event_behind_the_floor_before_it_is_too_late() -> None:
    """The watermark moves after each event: one slow event between two fast ones is late.

    hour   0         1         2         3
           |  e1 (0:10)        |  e2 (2:00 closes and seals hour 0)
           |  e3 (0:20) too late; its window ended at the floor
    """
    values = [flight(600_000), flight(2 * HOUR_MS), flight(1_200_000)]
    cells, counts = fold_all(MAP, values, [])
    assert counts["layer.hour.folded"] == 2
    assert counts["layer.hour.too_late"] == 1
    assert cells["events"].sum() == 2


def test_an_event_inside_the_allowed_lateness_is_folded() -> None:
    """A closed window that is not sealed still takes events."""
    values = [flight(600_000), flight(2 * HOUR_MS - 1), flight(1_200_000)]
    _, counts = fold_all(MAP, values, [])
    assert counts["layer.hour.folded"] == 3


def test_a_heartbeat_seals_windows_like_an_event() -> None:
    """Only records in the log move time; a heartbeat is one."""
    _, counts = fold_all(MAP, [flight(0), 2 * HOUR_MS, flight(1)], [])
    assert counts["layer.hour.too_late"] == 1
    assert counts["records.heartbeat"] == 1


def test_an_event_without_a_key_field_is_malformed() -> None:
    """Null or absent key fields leave the event out of every layer, counted once."""
    values = [flight(0), b'{"at":1,"type":"flight.x","origin":"JFK"}']
    _, counts = fold_all(MAP, values, [])
    assert counts["events.malformed"] == 1
    assert counts["events.classified"] == 1
    assert ledger.imbalances(counts, 2, ["hour"]) == []


def test_types_that_no_layer_selects_are_unclassified() -> None:
    """They move time and are counted, no more."""
    _, counts = fold_all(MAP, [b'{"at":1,"type":"page.view"}', flight(2)], [])
    assert counts["events.unclassified"] == 1
    assert counts["events.classified"] == 1


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        (Condition("delay", ">", 1), [2, 3]),
        (Condition("delay", "!=", 2), [1, 3]),
        (Condition("delay", "in", (1, 2)), [1, 2]),
        (Condition("carrier", "==", "XX"), []),
    ],
)
def test_filters_drop_events_and_count_them(condition: Condition, kept: list[int]) -> None:
    """A null field is false for every condition."""
    hour = dataclasses_replace(MAP.layer("hour"), where=(condition,))
    themap = small_map(layers=(hour, MAP.layer("day")))
    values = [flight(at, delay=delay) for at, delay in enumerate([1, 2, 3, None])]
    cells, counts = fold_all(themap, values, [])
    assert counts["layer.hour.filtered"] == 4 - len(kept)
    assert counts.get("layer.hour.folded", 0) == len(kept)
    assert (cells["sum_delay"].sum() if cells.height else 0) == sum(kept)


def test_patterns_match_level_by_level() -> None:
    """One star is one level, two are any number."""
    layer = MAP.layer("hour")
    cases = {
        ("order.*", "order.paid"): True,
        ("order.*", "order.paid.late"): False,
        ("order.*", "order"): False,
        ("order.**", "order.paid.late"): True,
        ("order.**", "border.paid"): False,
        ("*.paid", "order.paid"): True,
        ("order.paid", "order.paid"): True,
        ("order.p+", "order.pp"): False,
        ("**", ""): True,
        ("**", "order.paid\n"): True,
        ("order.**", "order.paid\nlate"): True,
        ("order.*", "order.paid\n"): True,
        ("order.paid", "order.paid\n"): False,
        ("order.*", "order."): True,
        ("*.paid", "order\r\n\u2028.paid"): True,
        ("order.*", "order.a.b"): False,
        ("a.*", "a\n.b.c"): False,
    }
    for (pattern, name), expected in cases.items():
        classifier = Classifier((dataclasses_replace(layer, events=(pattern,)),))
        assert (classifier.layers_of(name) == (0,)) is expected, (pattern, name)


def test_float_variance_survives_large_means() -> None:
    """Deviations are merged pairwise: a mean of a billion does not swallow a spread of one."""
    source = dataclasses_replace(
        MAP.source("flights"),
        fields=(Field("origin", "string"), Field("carrier", "string"), Field("delay", "float")),
    )
    hour = dataclasses_replace(MAP.layer("hour"), accumulators=accumulators("delay", "float"))
    themap = small_map(sources=(source,), layers=(hour,))
    values = [flight(i, delay=1e9 + i % 2) for i in range(1_000)]  # type: ignore[arg-type]
    cells, _ = fold_all(themap, values, [1, 10, 333])
    assert math.isclose(cells["m2_delay"].item() / 1_000, 0.25, rel_tol=1e-9)


def test_types_that_no_layer_selects_are_counted_within_a_bound() -> None:
    """Producers may send any number of types, each of any length."""
    (layer,) = (one for one in small_map().layers if one.source)
    classifier = Classifier((layer,))
    classifier.count_unselected((f"kind{number}", 2) for number in range(NAMED_MAX + 50))
    classifier.count_unselected([("kind7", 1), ("x" * 10_000, 1)])
    assert len(classifier.unselected) == NAMED_MAX + 1
    assert (classifier.unselected["kind7"], classifier.unselected[OTHERS]) == (3, 101)
    other = Classifier((layer,))
    other.count_unselected([("x" * 10_000, 1)])
    assert [len(name) for name in other.unselected] == [200]
    for name in ("flight.departed", "bird"):
        other.layers_of(name)
    assert other.selected() == {"flight.departed"}
