"""Run many seeds, of the protocol as it is, or without each of its rules in turn."""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import os
import sys
import time
from collections.abc import Iterator

import click
from simulation.catalogue import RULES, rule_named
from simulation.rules import Rule
from simulation.run import Outcome, run_seed
from simulation.stores import temporary_stores

SEEDS_PER_TASK = 10
KINDS = {"pure": False, "impure": True}


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    arguments = _arguments()
    if arguments.rules:
        return _all_rules(arguments)
    without = rule_named(arguments.without) if arguments.without else None
    failed = 0
    for kind in arguments.kinds:
        started = time.monotonic()
        kills = workers = 0
        for outcome in _run(arguments, KINDS[kind], without):
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
    click.echo(f"failing seeds of {arguments.seeds} from {arguments.first} on, pure and impure")
    for rule in RULES:
        counts = {}
        for kind in arguments.kinds:
            outcomes = list(_run(arguments, KINDS[kind], rule))
            counts[kind] = sum(bool(outcome.failures) for outcome in outcomes)
            if any(outcome.is_broken for outcome in outcomes):
                wrong.append(f"what stands in for it does not fit the product: {rule.name}")
        shown = "".join(f"{count:6}" for count in counts.values())
        click.echo(f"{rule.number:3}  {rule.name:32}{shown}")
        if rule.bears and not any(counts.values()):
            wrong.append(f"nothing fails without: {rule.name}")
    for text in wrong:
        click.echo(text)
    return 1 if wrong else 0


def _run(arguments: argparse.Namespace, impure: bool, without: Rule | None) -> Iterator[Outcome]:
    run = functools.partial(_run_some, impure=impure, without=without.name if without else "")
    last = arguments.first + arguments.seeds
    tasks = [
        range(first, min(first + SEEDS_PER_TASK, last))
        for first in range(arguments.first, last, SEEDS_PER_TASK)
    ]
    if arguments.processes == 1:
        for task in tasks:
            yield from run(task)
        return
    with concurrent.futures.ProcessPoolExecutor(arguments.processes) as pool:
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
    parser = argparse.ArgumentParser(prog="python -m simulation")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first one")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--without", default="", help="the rule to drop, by its name")
    parser.add_argument("--rules", action="store_true", help="drop every rule in turn")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
