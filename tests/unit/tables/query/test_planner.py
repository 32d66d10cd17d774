"""The planner: final and complete windows are read coarse, others fine; refusals say why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tables.model.errors import QueryError
from tables.model.window import MONTH, NEVER_ENDS_MS, NEVER_MS
from tables.query.cell_query import Limits, UnknownLayerError
from tables.query.family import FamilyQuery, family_of, parse_family_query
from tables.query.planner import LayerFacts, boundaries_of, bounded, plan, unknown_ends
from tests.support.common import DAY_MS, HOUR_MS, dataclasses_replace, small_map
from tests.support.plans import FINAL, MAP, ask, read

HOURS, DAYS = MAP.layers
MONTHS = dataclasses_replace(DAYS, name="month", window=MONTH, finer="day")
DEEP = small_map(layers=(HOURS, DAYS, MONTHS))


def test_a_family_is_all_that_descends_from_a_base_layer() -> None:
    """Any of its layers names it, in a request too."""
    assert [layer.name for layer in family_of(DEEP, "hour").layers] == ["hour", "day", "month"]
    for name in ("day", "month"):
        assert family_of(DEEP, name) == family_of(DEEP, "hour")
        words = [("from", "0"), ("to", str(DAY_MS)), ("key.origin", "JFK")]
        named = parse_family_query(DEEP, name, words, Limits())
        assert named == parse_family_query(DEEP, "hour", words, Limits())
    with pytest.raises(UnknownLayerError, match="did you mean hour"):
        family_of(DEEP, "hours")


def test_sealed_days_are_read_as_days() -> None:
    """Days that a late event may still change are read as hours."""
    query = ask(stop=3 * DAY_MS + 5 * HOUR_MS, key_carrier="UA")
    sealed = LayerFacts(sealed_ms=2 * DAY_MS, closed_ms=3 * DAY_MS)
    assert read(query, day=sealed) == [("day", 0, 48), ("hour", 48, 77)]


def test_a_layer_of_which_nothing_is_known_is_not_read() -> None:
    """Windows from before the map had the layer are not read either."""
    query = ask(stop=3 * DAY_MS, key_carrier="UA")
    assert read(query) == [("hour", 0, 72)]
    young = dataclasses.replace(FINAL, complete_ms=DAY_MS + 1)
    assert read(query, day=young) == [("hour", 0, 48), ("day", 48, 72)]


def test_what_came_before_the_map_had_the_base_is_refused() -> None:
    """An empty answer needs proof that there was nothing; this holds for coarser layers too."""
    young = dataclasses.replace(FINAL, complete_ms=DAY_MS + 1)
    query = ask(start=26 * HOUR_MS, stop=3 * DAY_MS, key_carrier="UA")
    assert read(query, hour=young, day=FINAL) == [("hour", 26, 48), ("day", 48, 72)]
    with pytest.raises(QueryError, match=f"has had hour only since {DAY_MS + 1} .*; want a range "
                       f"from {25 * HOUR_MS} on"):  # fmt: skip
        read(ask(stop=3 * DAY_MS, key_carrier="UA"), hour=young, day=FINAL)


def test_where_nothing_is_live_coarser_windows_still_cost_less() -> None:
    """Empty tables say nothing of how many cells the archive has."""
    idle = dataclasses.replace(FINAL, cells=0.0)
    assert read(ask(key_carrier="UA"), hour=idle, day=idle) == [("day", 0, 24)]
    assert read(ask(group="carrier"), hour=idle, day=idle) == [("day", 0, 24)]


def test_fields_and_measures_decide_which_layers_serve() -> None:
    """A layer without a field that is named or kept cannot answer."""
    named = ask(stop=DAY_MS, key_origin="JFK")
    assert read(named, day=FINAL) == [("hour", 0, 24)]
    kept = ask(stop=DAY_MS, group="origin")
    assert read(kept, day=FINAL) == [("hour", 0, 24)]
    total = ask(stop=DAY_MS, group="-", key_carrier="UA")
    assert read(total, day=FINAL) == [("day", 0, 24)]
    assert total.rows.key == ()
    lean = dataclasses_replace(DAYS, measures=HOURS.measures[:1],
                               accumulators=HOURS.accumulators[:1])  # fmt: skip
    themap = small_map(layers=(HOURS, lean))
    assert read(ask(themap, key_carrier="UA"), day=FINAL) == [("hour", 0, 24)]
    assert read(ask(themap, key_carrier="UA", measures="count"), day=FINAL) == [("day", 0, 24)]


def test_a_step_is_never_inside_a_window() -> None:
    """Steps of a day are made of days, steps of an hour of hours."""
    assert read(ask(step="1d", group="-", stop=2 * DAY_MS), day=FINAL) == [("day", 0, 48)]
    assert read(ask(step="1h", group="-", stop=2 * DAY_MS), day=FINAL) == [("hour", 0, 48)]
    assert read(ask(step="36h", group="-", stop=3 * DAY_MS), day=FINAL) == [
        ("day", 0, 24), ("hour", 24, 48), ("day", 48, 72),
    ]  # fmt: skip
    assert read(ask(DEEP, step="month", group="-", stop=40 * DAY_MS), day=FINAL, month=FINAL) == [
        ("month", 0, 31 * 24),
        ("day", 31 * 24, 40 * 24),
    ]


def test_too_many_cells_are_answered_from_closed_ones() -> None:
    """The answer then is settling; it is refused if even these are too many."""
    query = ask(stop=4 * DAY_MS, key_carrier="UA")
    closed = LayerFacts(sealed_ms=0, closed_ms=3 * DAY_MS)
    assert plan(query, {"day": closed}, 96).exactness == "exact"
    settling = plan(query, {"day": closed}, 95)
    assert settling.exactness == "settling"
    assert settling.cells == 27
    with pytest.raises(QueryError, match="got about 27; want at most 26"):
        plan(query, {"day": closed}, 26)


def test_more_steps_than_cells_may_be_read_are_refused_at_once() -> None:
    """Steps that cross windows are planned one by one; ten thousand years of them are not."""
    query = ask(start=-62_135_596_800_000, stop=253_402_300_800_000, step="5h", group="-")
    with pytest.raises(QueryError, match="too many steps; got 17529"):
        plan(query, {"day": FINAL}, 1_000_000)


def test_windows_that_cannot_have_cells_cost_nothing() -> None:
    """A range to the end of the year costs only the windows from first to last event."""
    query = ask(stop=365 * DAY_MS)
    hours = LayerFacts(cells=500.0, first_ms=10 * HOUR_MS, last_ms=20 * HOUR_MS + 1)
    planned = plan(query, {"hour": hours}, 10_000)
    assert planned.cells == 11 * 500
    assert [(one.from_ms, one.to_ms) for one in planned.segments] == [(0, 365 * DAY_MS)]
    for nothing in (LayerFacts(first_ms=NEVER_ENDS_MS), LayerFacts(last_ms=NEVER_MS)):
        assert plan(query, {"hour": nothing}, 1).cells == 0
    steps = ask(start=-62_135_596_800_000, stop=253_402_300_800_000, step="1h", group="-")
    assert plan(steps, {"hour": hours}, 10_000).cells == 11 * 500


def test_how_much_is_planned_is_known_before() -> None:
    """Steps and windows of coarser layers; a year of hours is planned at once, of minutes not."""
    assert boundaries_of(ask(DEEP, stop=56 * DAY_MS)) == 56 + 2
    assert boundaries_of(ask(DEEP, stop=56 * DAY_MS, step="7h")) == 56 + 2 + 192
    assert boundaries_of(ask(DEEP, stop=56 * DAY_MS, key_origin="JFK")) == 0


def test_cells_are_counted_by_keys_as_far_as_known() -> None:
    """A window has at most as many cells as keys are named."""
    facts = {"hour": LayerFacts(cells=500.0)}
    assert plan(ask(stop=HOUR_MS), facts, 1_000).cells == 500
    assert plan(ask(stop=HOUR_MS, key_carrier="UA"), facts, 1_000).cells == 500
    assert plan(ask(stop=HOUR_MS, key_carrier="UA", key_origin="JFK"), facts, 1_000).cells == 1


def test_what_has_expired_is_read_coarse_or_refused() -> None:
    """The refusal says from when on there are cells."""
    hours = LayerFacts(kept_ms=DAY_MS + 1)
    assert read(ask(stop=2 * DAY_MS, group="-"), hour=hours, day=FINAL) == [("day", 0, 48)]
    with pytest.raises(QueryError, match=rf"have expired.*from {DAY_MS + HOUR_MS} on"):
        read(ask(stop=2 * DAY_MS, key_origin="JFK"), hour=hours, day=FINAL)


@pytest.mark.parametrize(("start", "stop"), [(1, DAY_MS), (0, DAY_MS - 1), (1, DAY_MS - 1)])
def test_a_range_is_rounded_to_windows_of_the_finest_layer(start: int, stop: int) -> None:
    """Half a window cannot be told from a whole one."""
    query = ask(start=start, stop=stop, group="-")
    assert read(query, day=FINAL) == [("day", 0, 24)]
    assert query.asked.instants == (start, stop)


def open_query(**words: str) -> FamilyQuery:
    """Return a request without ends, but for those given."""
    return parse_family_query(DEEP, "hour", list(words.items()), Limits(), now_ms=9 * DAY_MS + 5)


def ends(query: FamilyQuery, **facts: LayerFacts) -> tuple[float, float]:
    """Return the bounded range in hours."""
    found = bounded(query, facts)
    assert (found.from_ms, found.to_ms) == (found.asked.from_ms, found.asked.to_ms)
    return found.from_ms / HOUR_MS, found.to_ms / HOUR_MS


def test_open_ends_are_the_first_and_the_last_window() -> None:
    """Stream time is inside the last one."""
    hours = LayerFacts(first_ms=10 * HOUR_MS, last_ms=20 * HOUR_MS + 1)
    query = open_query(group="-")
    assert ends(query, hour=hours, day=FINAL) == (10, 21)
    assert read(bounded(query, {"hour": hours}), hour=hours, day=FINAL) == [("hour", 10, 21)]
    nothing = LayerFacts(first_ms=NEVER_ENDS_MS, last_ms=NEVER_MS)
    start, stop = ends(query, hour=nothing)
    assert start == stop == (9 * DAY_MS + 5) / HOUR_MS
    assert read(bounded(query, {"hour": nothing}), hour=nothing) == []
    unknown = bounded(query, {})
    assert (unknown.from_ms, unknown.to_ms) == (query.from_ms, query.to_ms)


@pytest.mark.parametrize("first", ["first_ms", "complete_ms", "kept_ms", ""])
@pytest.mark.parametrize("last", ["last_ms", ""])
@pytest.mark.parametrize(
    "words", [{}, {"from": "0"}, {"to": "432000000"}, {"from": "0", "to": "now"}]
)
def test_ends_of_which_nothing_is_known_stay(first: str, last: str, words: dict[str, str]) -> None:
    """All others are those of windows; an end that was given is never unknown."""
    query = open_query(**words)
    known: dict[str, Any] = {name: 3 * HOUR_MS for name in (first, last) if name}
    facts = {"hour": LayerFacts(**known)}
    found = bounded(query, facts)
    stay = [
        name
        for name, one, other in (
            ("from", found.from_ms, query.from_ms), ("to", found.to_ms, query.to_ms),
        )
        if one == other and name not in words
    ]  # fmt: skip
    assert unknown_ends(query, facts) == stay
    assert unknown_ends(query, {"hour": LayerFacts(first_ms=NEVER_ENDS_MS, last_ms=NEVER_MS)}) == []


def test_an_open_start_is_the_first_that_can_be_answered() -> None:
    """Hours that expired are still there as days, unless a step wants hours."""
    hours = LayerFacts(first_ms=0, last_ms=60 * HOUR_MS, kept_ms=30 * HOUR_MS + 1)
    days = LayerFacts(first_ms=0, sealed_ms=2 * DAY_MS, closed_ms=2 * DAY_MS)
    assert ends(open_query(group="-"), hour=hours, day=days) == (0, 61)
    assert ends(open_query(group="-", step="1h"), hour=hours, day=days) == (31, 61)
    assert ends(open_query(group="origin"), hour=hours, day=days) == (31, 61)
    young = dataclasses.replace(hours, kept_ms=NEVER_MS, complete_ms=5 * HOUR_MS + 1)
    assert ends(open_query(group="-"), hour=young, day=days) == (6, 61)


def test_a_step_lies_where_windows_do() -> None:
    """A step begins where a window does."""
    with pytest.raises(QueryError, match="want steps of whole windows of 1h"):
        read(ask(step="90m"))


def test_all_that_is_wrong_with_a_request_is_told() -> None:
    """A filter twice, a group of nothing and something, and a word that there is not."""
    with pytest.raises(QueryError) as caught:
        parse_family_query(
            MAP, "hour",
            [("from", "0"), ("to", "0"), ("key.origin", "JFK"), ("prefix.origin", "J"),
             ("group", "-"), ("group", "origin"), ("measures", "median_delay")],
            Limits(),
        )  # fmt: skip
    text = str(caught.value)
    for part in (
        "to: an empty range",
        "prefix.origin: key.origin is given too",
        "group: - is given with fields",
        "measures: got 'median_delay'; want one of count",
    ):
        assert part in text
