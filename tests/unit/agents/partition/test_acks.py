"""Acknowledgements: brute force finds the same windows pending, in any order of steps."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.partition.acks import Acks, oldest_acknowledged
from agents.partition.sinks import ARCHIVE, Sinks
from tables.model.window import Window

WINDOWS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sets(WINDOWS, min_size=1)),
        st.tuples(st.just("take"), st.sets(WINDOWS)),
        st.tuples(st.just("late"), st.sets(WINDOWS)),
        st.tuples(st.just("evict"), st.sets(WINDOWS)),
    ),
    max_size=40,
)


@given(st.dictionaries(WINDOWS, st.integers(1, 3)), STEPS)
def test_pending_is_every_window_above_its_acknowledgement(
    versions: dict[int, int], steps: list[tuple[str, set[int]]]
) -> None:
    """Emissions of now and of before are acknowledged; windows change, go and come again."""
    acks = Acks(versions)
    acked: dict[int, int] = {}
    sent: list[dict[int, int]] = [{}]
    for version, (step, windows) in enumerate(steps, 10):
        if step == "change":
            versions.update(dict.fromkeys(windows, version))
            acks.changed(windows)
        elif step == "take":
            taken = {w: v for w, v in acks.pending().items() if w in windows}
            sent.append(taken)
            acks.acknowledge(taken)
            acked |= taken
        elif step == "late":
            # An answer that came twice, or to an older emission.
            old = {w: v for w, v in sent[len(sent) // 2].items() if w in versions}
            acks.acknowledge(old)
            acked |= {w: max(v, acked.get(w, -1)) for w, v in old.items()}
        else:
            for window in windows:
                versions.pop(window, None)
                acked.pop(window, None)
            acks.forget(windows)
        assert acks.pending() == {w: v for w, v in versions.items() if v > acked.get(w, -1)}
        found = [acks.acknowledged_version(w) for w in range(6)]
        assert found == [acked.get(w, -1) for w in range(6)]


HOUR = Window(3_600_000)


@pytest.mark.parametrize("window", [HOUR, Window(7), Window(0), Window(0, 12)], ids=repr)
@given(at=st.integers(-(10**14), 10**14), time_ms=st.integers(-(10**14), 10**14))
def test_windows_before_the_one_of_a_time_are_those_that_end_by_then(
    window: Window, at: int, time_ms: int
) -> None:
    """This finds closed windows without a look at the end of each."""
    for until in (time_ms, at, at + 1, window.end(window.start(at)), -(1 << 62)):
        start = window.start(at)
        assert (window.end(start) <= until) == (start < window.start(until))


def test_what_600_000_closed_windows_lack_is_told_at_once() -> None:
    """Every query asked for it: while the archive was away each held up the loop for seconds."""
    width = HOUR.end(0)
    layer: Any = SimpleNamespace(name="hour", window=HOUR, is_combiner=False, publish="")
    table = SimpleNamespace(versions={number * width: number for number in range(600_000)})
    state: Any = SimpleNamespace(
        tables={"hour": table}, closed_ms=lambda _: 500_000 * width, floor_ms=lambda _: 0
    )
    plan: Any = SimpleNamespace(layers=[layer], coarser={"hour": []})
    sinks = Sinks(plan, state)
    began = time.thread_time()
    assert sinks.announcement(layer, ARCHIVE) == (width - 1, 0)
    assert time.thread_time() - began < 0.3
    assert sinks.unacknowledged(layer) == 500_000


@given(
    st.dictionaries(WINDOWS, st.integers(1, 3)).filter(bool),
    st.dictionaries(WINDOWS, st.integers(1, 3)),
    st.integers(0, 7),
    st.integers(0, 7),
)
def test_the_oldest_that_all_sinks_have_are_what_brute_force_says(
    versions: dict[int, int], acked: dict[int, int], floor: int, most: int
) -> None:
    """Up to the first that a sink lacks at its version, or that is not sealed."""
    width = HOUR.end(0)
    acks = Acks({start * width: version for start, version in versions.items()})
    acks.acknowledge({start * width: version for start, version in acked.items()})
    want: list[int] = []
    for start in sorted(versions):
        if start + 1 > floor or acked.get(start, -1) < versions[start] or len(want) == most:
            break
        want.append(start * width)
    have = {start * width: version for start, version in versions.items()}
    assert oldest_acknowledged(HOUR, floor * width, have, [acks], most) == want


@pytest.mark.parametrize("away", [True, False])
def test_600_000_sealed_windows_do_not_hold_up_a_delta(away: bool) -> None:
    """It took 1.3 s with each, on the event loop, while the archive was away."""
    width = HOUR.end(0)
    versions = {number * width: number for number in range(600_000)}
    acks = Acks(versions)
    if not away:
        acks.acknowledge(
            {start: version for start, version in versions.items() if start < 1_000 * width}
        )
    began = time.thread_time()
    found = oldest_acknowledged(HOUR, 600_000 * width, versions, [acks], 500_000)
    assert time.thread_time() - began < 0.3
    assert len(found) == (0 if away else 1_000)
