"""The parts of a load and their due times: pure functions of the request."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kafka.batch_producer import partition_of
from app.load.plan import (
    MAP_FILE,
    SOURCE,
    STEP_EVENTS_MAX,
    STEP_SECONDS_MAX,
    STEP_SECONDS_MIN,
    GenerateError,
    LoadSpec,
    Step,
    check_times,
    default_start_ms,
    parts_of,
    processes_for,
    schedule,
    start_after,
    step_seconds,
)
from app.load.replay import settled_ms
from app.load.vocabulary import matches, types_of, unclassified_type, words_of
from app.load.writers import events_per_process
from app.mapfile.load import load_map
from tables.model.window import DAY_MS

MAP = load_map(MAP_FILE)
NOW_MS = 1_700_000_000_000


def plan_from(start_ms: int, *, seconds: float = 10, speed: float = 1) -> LoadSpec:
    """Return a plan of the example that starts then."""
    return LoadSpec(
        map_file=str(MAP_FILE), source=SOURCE, brokers="", rate=1_000, seconds=seconds, keys=10,
        skew=0, types=3, late=0, bad=0, format="json", batch=1, seed=1, start_ms=start_ms,
        speed=speed,
    )  # fmt: skip


@given(
    st.integers(0, 10_000_000),
    st.floats(0.01, 100),
    st.floats(STEP_SECONDS_MIN, STEP_SECONDS_MAX),
)
def test_steps_join_up_and_have_every_event_once(events: int, seconds: float, step: float) -> None:
    """However long a step is, no event is left out, and none is due after its step."""
    made = list(schedule(events, seconds, step))
    assert made[0].begin_s == 0
    assert made[-1].end_s == seconds
    assert all(one.end_s == two.begin_s for one, two in itertools.pairwise(made))
    assert all(one.events >= 0 for one in made)
    assert sum(one.events for one in made) == events
    done = 0
    for one in made:
        done += one.events
        assert done <= events * (one.end_s / seconds) + 1e-5


def test_the_schedule_depends_on_nothing_but_rate_and_length() -> None:
    """Four events in 1.25 s, in steps of half a second: one is due every 0.3125 s."""
    assert list(schedule(4, 1.25, 0.5)) == [Step(0, 0.5, 1), Step(0.5, 1, 2), Step(1, 1.25, 1)]


def test_a_heartbeat_follows_the_step_that_ends_a_second() -> None:
    """Steps of 0.4 s reach the first second with the third, the second with the fifth."""
    beats = [step.heartbeat for step in schedule(2, 2, 0.4)]
    assert beats == [False, False, True, False, True]


def test_a_step_is_as_long_as_records_take_to_fill_within_bounds() -> None:
    """It is never so short that it costs more than its events, nor so long that it holds many."""
    assert step_seconds(10_000, 8, 1) == STEP_SECONDS_MIN
    assert step_seconds(10_000, 8, 500) == pytest.approx(0.4)
    assert step_seconds(10, 8, 500) == STEP_SECONDS_MAX
    assert step_seconds(10e6, 8, 500) == STEP_EVENTS_MAX / 10e6


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.data())
def test_each_partition_has_one_process(weights: list[float], data: st.DataObject) -> None:
    """Every process has some, and none has more than the heaviest beyond its even share."""
    processes = data.draw(st.integers(1, len(weights)))
    parts = parts_of(weights, processes)
    assert sorted(p for part in parts for p in part.partitions) == list(range(len(weights)))
    assert all(part.partitions for part in parts)
    most = sum(weights) / processes + max(weights)
    assert all(part.share <= most + 1e-9 for part in parts)
    if sum(weights):
        shares = parts_of([weight / sum(weights) for weight in weights], processes)
        assert sum(part.events(1_000_003) for part in shares) == 1_000_003


def test_auto_starts_a_process_for_each_share_of_the_rate_at_most_one_a_core() -> None:
    """All cores work if it goes as fast as possible; never more than there are partitions."""
    one = events_per_process("json")
    assert processes_for(one, "json", 8, 4) == 1
    assert processes_for(one + 1, "json", 8, 4) == 2
    assert processes_for(one * 9, "json", 8, 4) == 4
    assert processes_for(0, "arrow", 8, 4) == 4
    assert processes_for(0, "arrow", 3, 4) == 3


def test_a_load_starts_now_or_as_late_as_its_last_heartbeat_allows() -> None:
    """Ten seconds are ten hours at 3,600 times real time; they have to be over by now."""
    source = MAP.source(SOURCE)
    assert default_start_ms(MAP, source, NOW_MS, 10, 1) == NOW_MS
    assert default_start_ms(MAP, source, NOW_MS, 10, 3_600) == NOW_MS + 10_000 - 36_000_000


@given(st.integers(NOW_MS, NOW_MS + 400 * DAY_MS), st.sampled_from([0, 3_600_000, DAY_MS]))
def test_the_default_start_passes_the_check(now_ms: int, skew_ms: int) -> None:
    """It passes too if the map takes no time that is ahead at all."""
    source = type(MAP.source(SOURCE))(
        **{f: getattr(MAP.source(SOURCE), f) for f in MAP.source(SOURCE).__struct_fields__}
        | {"future_skew_ms": skew_ms}
    )
    start_ms = default_start_ms(MAP, source, now_ms, 10, 60)
    plan = plan_from(start_ms, speed=60)
    check_times(MAP, source, plan, now_ms, settle=True)
    assert settled_ms(MAP, SOURCE, plan.end_ms, margin_ms=0) <= now_ms + skew_ms


def test_a_start_that_is_too_late_is_refused() -> None:
    """Its events would be set aside as future, or its last heartbeat would be unreadable."""
    source = MAP.source(SOURCE)
    with pytest.raises(GenerateError, match="run past the source's future_skew"):
        check_times(MAP, source, plan_from(NOW_MS + 3 * DAY_MS), NOW_MS, settle=False)
    late = plan_from(NOW_MS + 2 * DAY_MS - 20_000)
    check_times(MAP, source, late, NOW_MS, settle=False)
    with pytest.raises(GenerateError, match=r"want at most .* --no-settle"):
        check_times(MAP, source, late, NOW_MS, settle=True)


def test_an_appended_load_starts_after_the_last_heartbeat_or_is_refused() -> None:
    """Events before it come too late; a later start may be too far in the future."""
    source = MAP.source(SOURCE)

    def moved(last_ms: int) -> int:
        plan = plan_from(NOW_MS)
        return start_after(MAP, source, plan, last_ms, NOW_MS, settle=True).start_ms

    assert moved(NOW_MS - DAY_MS) == NOW_MS
    assert moved(NOW_MS + 60_000) == NOW_MS + 60_000
    with pytest.raises(GenerateError, match=r"cannot append to shop\.raw: .* give --no-settle"):
        moved(NOW_MS + 2 * DAY_MS)


def test_types_follow_from_patterns_in_turn() -> None:
    """Each pattern gets one before any gets a second; a pattern without star has one only."""
    assert types_of(["order.*", "paid", "x.**"], 6) == [
        "order.t0", "paid", "x.t0", "order.t1", "x.t1", "order.t2",
    ]  # fmt: skip
    assert types_of(["order.*", "paid"], 1) == ["order.t0"]
    assert types_of(["a", "b"], 9) == ["a", "b"]
    assert types_of([], 9) == []


def test_patterns_match_as_the_map_says() -> None:
    """One star is one level, two at the end are one or more."""
    assert matches("order.*", "order.paid")
    assert not matches("order.*", "order.line.added")
    assert not matches("order.*", "order")
    assert matches("order.**", "order.line.added")
    assert not matches("order.**", "order")
    assert matches("*.paid", "order.paid")


def test_a_type_that_no_layer_selects_is_found_where_there_is_one() -> None:
    """Patterns of one level leave those of two; a pattern of all levels leaves none."""
    assert unclassified_type(["order.*"]) == "unknown"
    assert unclassified_type(["*", "*.*"]) == "unknown.unknown.unknown"
    assert unclassified_type(["**"]) is None


def test_keys_are_on_the_partition_that_producers_choose_and_have_zipfs_shares() -> None:
    """The example is keyed by its store; the second key comes half as often as the first."""
    words = words_of(MAP, MAP.source(SOURCE), keys=100, skew=1, types=5)
    assert words.key_texts[7] == b"store7"
    assert words.partitions is not None
    assert all(
        partition == partition_of(text, 8)
        for text, partition in zip(words.key_texts, words.partitions, strict=True)
    )
    assert words.weights[0] == pytest.approx(2 * words.weights[1])
    assert sum(words.partition_weights()) == pytest.approx(1)
    assert [field.name for field in words.keyed] == ["store"]
    assert {field.name for field in words.sides} == {"region", "online"}
