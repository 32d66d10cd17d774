"""Run many seeds, of the protocol as it is, or without each of its rules in turn."""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import os
import sys
import time
from collections.abc import Generator, Iterator

import click

from tests.simulation.catalogue import RULES, rule_named
from tests.simulation.rules import Rule
from tests.simulation.run import Outcome, run_seed
from tests.simulation.stores import temporary_stores

SEEDS_PER_TASK = 10
SEEDS_IN_TURN = 20
KINDS = {"pure": False, "impure": True}


def main() -> int:
    """Run the seeds of the command line; return the exit code."""
    arguments = _arguments()
    if arguments.rules:
        return _all_rules(arguments)
    without = rule_named(arguments.without) if arguments.without else None
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    failed = 0
    for kind in arguments.kinds:
        started = time.monotonic()
        kills = workers = 0
        with concurrent.futures.ProcessPoolExecutor(arguments.processes) as pool:
            for outcome in _outcomes(pool, seeds, KINDS[kind], without):
                kills += outcome.statistics.kills
                workers += outcome.statistics.workers
                if outcome.failures:
                    failed += 1
                    click.echo(f"seed {outcome.seed} {kind} fails; alone: {_alone(outcome)}")
                    for text in outcome.failures:
                        click.echo(f"    {text}")
        seconds = time.monotonic() - started
        click.echo(
            f"{kind}: {arguments.seeds} seeds, {workers} workers, {kills} kills,"
            f" {arguments.seeds / seconds:.1f} seeds/s"
        )
    click.echo(f"{failed} failures")
    return 1 if failed else 0


def _all_rules(arguments: argparse.Namespace) -> int:
    """Run without each rule in turn; a rule that nothing fails without is a failure."""
    wrong = []
    click.echo(
        f"without each rule: failing seeds, of those that were run, from {arguments.first} on;"
        f" at most {arguments.seeds} of each kind; {' and '.join(arguments.kinds)}"
    )
    for rule in RULES:
        ran, failed = collections.Counter[str](), collections.Counter[str]()
        with contextlib.closing(_run_in_turn(arguments, rule)) as outcomes:
            for kind, outcome in outcomes:
                ran[kind] += 1
                failed[kind] += bool(outcome.failures)
                if outcome.is_broken:
                    wrong.append(f"the code in its place does not fit the product: {rule.name}")
                if outcome.is_broken or 0 < arguments.failures <= failed.total():
                    break
        shown = "".join(f"{failed[kind]:6} of {ran[kind]:5}" for kind in arguments.kinds)
        click.echo(f"{rule.number:3}  {rule.name:32}{shown}")
        if rule.bears and not failed.total():
            wrong.append(f"nothing fails without: {rule.name}")
    for text in wrong:
        click.echo(text)
    return 1 if wrong else 0


def _run_in_turn(
    arguments: argparse.Namespace, without: Rule
) -> Generator[tuple[str, Outcome], None, None]:
    """Run some seeds of one kind, then the same of the other, and so on."""
    last = arguments.first + arguments.seeds
    with concurrent.futures.ProcessPoolExecutor(arguments.processes) as pool:
        for first in range(arguments.first, last, SEEDS_IN_TURN):
            seeds = range(first, min(first + SEEDS_IN_TURN, last))
            for kind in arguments.kinds:
                for outcome in _outcomes(pool, seeds, KINDS[kind], without):
                    yield kind, outcome


def _outcomes(
    pool: concurrent.futures.Executor, seeds: range, impure: bool, without: Rule | None
) -> Iterator[Outcome]:
    run = functools.partial(_run_some, impure=impure, without=without.name if without else "")
    tasks = [
        seeds[place : place + SEEDS_PER_TASK] for place in range(0, len(seeds), SEEDS_PER_TASK)
    ]
    for outcomes in pool.map(run, tasks):
        yield from outcomes


def _run_some(seeds: range, *, impure: bool, without: str) -> list[Outcome]:
    rule = rule_named(without) if without else None
    with temporary_stores() as stores:
        return [run_seed(seed, stores, impure=impure, without=rule) for seed in seeds]


def _alone(outcome: Outcome) -> str:
    kind = "impure" if outcome.impure else "pure"
    return f"make simulate SEEDS=1 FIRST={outcome.seed} KINDS={kind}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first one")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--without", default="", help="the rule to drop, by its name")
    parser.add_argument("--rules", action="store_true", help="drop every rule in turn")
    parser.add_argument(
        "--failures", type=int, default=1, help="a dropped rule's seeds end at so many; 0: never"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
