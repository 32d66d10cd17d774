"""Run one seed and report its failures."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random

from tests.simulation.oracle import Oracle
from tests.simulation.readers import check_ledgers, check_readers, complete_of
from tests.simulation.rules import Rule
from tests.simulation.stores import Stores
from tests.simulation.world import Statistics, World, prepared

FAILURES_MAX = 5
MISFITS = ("TypeError", "AttributeError", "NameError", "KeyError", "ValueError")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a seed; ``failures`` is empty if everything is right."""

    seed: int
    impure: bool
    failures: list[str]
    trace: int
    statistics: Statistics

    @property
    def is_broken(self) -> bool:
        """Whether the code that replaces a rule does not fit the product, which shows nothing."""
        return any(name in text for text in self.failures for name in MISFITS)


def run_seed(seed: int, stores: Stores, *, impure: bool, without: Rule | None = None) -> Outcome:
    """Run a seed, ``without`` a rule if one is given.

    The same seed gives the same run, whatever ran before.
    """
    state, disabled = random.getstate(), logging.root.manager.disable
    random.seed(seed)
    # The product warns of faults that a run makes on purpose.
    logging.disable(logging.CRITICAL)
    try:
        stores.begin()
        tail_loss = without is not None and without.tail_loss
        world = World(seed, stores, impure=impure, tail_loss=tail_loss)
        dropped = without.dropped() if without else contextlib.nullcontext()
        with prepared(world.rng, stores), dropped:
            failures = _failures(world)
        return Outcome(seed, impure, failures[:FAILURES_MAX], world.loop.trace, world.statistics)
    finally:
        random.setstate(state)
        logging.disable(disabled)


def _failures(world: World) -> list[str]:
    try:
        world.loop.run_until_complete(_live(world))
    except Exception as error:  # noqa: BLE001 - whatever ends a run is its failure
        world.failures.append(repr(error))
    finally:
        for worker in world.workers:
            worker.process.kill()
        world.loop.forget()
        world.loop.close()
    return world.failures


async def _live(world: World) -> None:
    await world.chaos()
    worker = await world.calm()
    if world.failures:
        return
    world.failures += await check_readers(world, worker)
    oracle = Oracle(world.work, world.map, world.log, world.archive, complete_of(worker))
    world.failures += oracle.check()
    world.failures += check_ledgers(worker, oracle.ledgers)
