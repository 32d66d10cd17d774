"""Acknowledgements: what a sink lacks is what brute force says, whatever the order of steps."""

from hypothesis import given
from hypothesis import strategies as st

from agents.acks import Acks

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
def test_what_is_lacking_is_every_window_above_its_acknowledgement(
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
            taken = {w: v for w, v in acks.lacking().items() if w in windows}
            sent.append(taken)
            acks.take(taken)
            acked |= taken
        elif step == "late":
            # An answer that came twice, or to an older emission.
            old = {w: v for w, v in sent[len(sent) // 2].items() if w in versions}
            acks.take(old)
            acked |= {w: max(v, acked.get(w, -1)) for w, v in old.items()}
        else:
            for window in windows:
                versions.pop(window, None)
                acked.pop(window, None)
            acks.forget(windows)
        assert acks.lacking() == {w: v for w, v in versions.items() if v > acked.get(w, -1)}
        assert [acks.get(w, -1) for w in range(6)] == [acked.get(w, -1) for w in range(6)]
