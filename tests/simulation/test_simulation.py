"""The exactness protocol under simulated faults: every seed passes, and fails without a rule."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.simulation.catalogue import RULES
from tests.simulation.rules import Rule
from tests.simulation.run import run_seed
from tests.simulation.stores import Stores, temporary_stores

pytestmark = pytest.mark.slow

SEEDS = range(1, 21)
SEEDS_PER_TEST = 10
SEEDS_MAX = 60
"""Seeds that are tried if the one that showed a rule does so no more, as after other draws."""


@pytest.fixture
def stores() -> Iterator[Stores]:
    """Return the local stores of simulated hosts."""
    with temporary_stores() as found:
        yield found


@pytest.mark.parametrize("impure", [False, True], ids=["pure", "impure"])
@pytest.mark.parametrize("first", SEEDS[::SEEDS_PER_TEST])
def test_every_row_value_ledger_and_reader_is_right(
    stores: Stores, first: int, impure: bool
) -> None:
    """Whatever is killed, stopped, lost, repeated or late; a seed runs alone by its number."""
    for seed in range(first, first + SEEDS_PER_TEST):
        outcome = run_seed(seed, stores, impure=impure)
        assert not outcome.failures, f"seed {seed}: {outcome.failures}"


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.quick], ids=lambda rule: rule.name)
def test_a_simulation_without_the_rule_fails(stores: Stores, rule: Rule) -> None:
    """A simulation that passed without it would have gone blind."""
    seeds = (rule.seed, *range(1, SEEDS_MAX + 1))
    impure = rule.quick == "impure"
    outcomes = (run_seed(seed, stores, impure=impure, without=rule) for seed in seeds)
    failed = next((outcome for outcome in outcomes if outcome.failures), None)
    assert failed is not None
    assert not failed.is_broken, failed.failures


@pytest.mark.parametrize("impure", [False, True], ids=["pure", "impure"])
def test_a_seed_is_the_same_run_again(stores: Stores, impure: bool) -> None:
    """Whatever ran before it, or a failing seed could not be looked at."""
    seeds = range(1, 7)
    first = [run_seed(seed, stores, impure=impure) for seed in seeds]
    again = [run_seed(seed, stores, impure=impure) for seed in reversed(seeds)]
    assert again == first[::-1]
    assert len({outcome.trace for outcome in first}) == len(seeds)
