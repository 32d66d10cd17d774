"""A chaos run: a load, faults in an order that the seed decides, and the verdict of two oracles.

The generator's manifest has the right counts of all events, ``python -m app verify`` recomputes
every row from the raw topic. Neither uses any code of the worker.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.chaos.arena import Arena
from tests.chaos.faults import Fault
from tests.support import manifests

ROUND_SECONDS = 120.0
STANDSTILL_SECONDS_MAX = 120
RETRY_SECONDS = 1.0

REASONS = ("cannot connect to Kafka", "local store", "cannot share group chaos: node ")
"""Why a worker may end by itself here: Kafka is away at its start, its disk is full, or it begins
in another folder, on the small disk, while the group still has the one that was killed before."""


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The faults and their result; ``differing`` are rows and counts, none if all is well.

    ``reasons`` are those of workers that ended by themselves, and how often.
    """

    seed: int
    seconds: float
    faults: Counter[str]
    reasons: Counter[str]
    events: int
    rows: int
    differing: list[str]


async def run(
    arena: Arena,
    faults: Sequence[Fault],
    rounds: int,
    rate: float,
    beside: Sequence[Fault] = (),
    *,
    round_s: float = ROUND_SECONDS,
) -> Verdict:
    """Run a load through ``rounds`` of all faults, mend everything, and compare.

    Faults ``beside`` these begin at once and last as long as they like.

    Event time runs thirty times as fast as the clock, so that minutes close every two seconds.
    """
    begun = time.monotonic()
    async with arena.running():
        arena.start_load(
            rounds * round_s, rate,
            "--speed", "30", "--bad", "0.01", "--late", "0.03", "--duplicates", "0.02",
            "--keys", "200",
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for fault in beside:
                group.create_task(_happen(arena, fault))
            for _ in range(rounds):
                await _round(arena, faults, group, round_s)
        manifest = await arena.load_ended()
        await arena.heal()

        await _settle(arena, manifest)
        report = await arena.verify()
        differing = manifests.differences(manifest, await arena.ledgers())
    return Verdict(
        seed=arena.seed,
        seconds=time.monotonic() - begun,
        faults=arena.counts,
        reasons=arena.reasons,
        events=manifest["events"],
        rows=report.rows,
        differing=[*report.differing, *differing, *_unforeseen(arena.reasons)],
    )


async def _settle(arena: Arena, manifest: dict[str, Any]) -> None:
    """Wait until the whole load is applied, for as long as it goes on.

    An hour without an archive leaves so much that catching up takes many minutes.
    """
    moved, known = time.monotonic(), None
    while not manifests.is_applied(manifest, ledgers := await arena.ledgers()):
        now, positions = time.monotonic(), manifests.positions(manifest, ledgers)
        if positions != known:
            moved, known = now, positions
        if now - moved > STANDSTILL_SECONDS_MAX:
            error = TimeoutError(f"nothing was applied for {STANDSTILL_SECONDS_MAX} s: {positions}")
            error.add_note(await arena.readiness())
            error.add_note("\n".join(f"{n} times {why}" for why, n in arena.reasons.items()))
            raise error
        await asyncio.sleep(RETRY_SECONDS)


async def _round(
    arena: Arena, faults: Sequence[Fault], group: asyncio.TaskGroup, round_s: float
) -> None:
    order = arena.random.sample(list(faults), len(faults))
    gap = round_s / len(order)
    for fault in order:
        group.create_task(_happen(arena, fault))
        await asyncio.sleep(gap * arena.random.uniform(0.6, 1.0))


async def _happen(arena: Arena, fault: Fault) -> None:
    """Let a fault happen as soon as there is something for it to happen to, within a round.

    A worker can be removed once another was added, which may be the last fault of a round.
    """
    name = fault.__name__
    deadline = time.monotonic() + ROUND_SECONDS
    while not await fault(arena):
        if time.monotonic() > deadline:
            arena.counts[f"{name}, not possible"] += 1
            return
        await asyncio.sleep(RETRY_SECONDS)
    arena.counts[name] += 1


def _unforeseen(reasons: Counter[str]) -> list[str]:
    return [
        f"a worker ended by itself: {reason}"
        for reason in reasons
        if not any(known in reason for known in REASONS)
    ]
