"""``python -m tests.chaos --minutes 10``: brokers, Cassandra and workers, all of which die."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tests.chaos.arena import MAP_FILE, Arena, SmallDisk
from tests.chaos.faults import LONG, archive_away_for, freeze
from tests.chaos.run import ROUND_SECONDS, Verdict, run
from tests.support.cluster import Cluster
from tests.support.kafka_cluster import KafkaCluster
from tests.support.servers import CassandraServer, why_missing

KEYSPACE = "chaos"
PENDING_BYTES_MAX = 4 << 20
"""Bytes of a worker's cells that fill up while an archive is away, so that sources pause."""


@click.command()
@click.option("--minutes", type=click.FloatRange(min=2), default=10, show_default=True)
@click.option("--seed", type=int, help="Of the order of faults and of the load; default: any.")
@click.option("--rate", type=float, default=2_000, show_default=True, help="Events a second.")
@click.option(
    "--archive-away", type=float, metavar="SECONDS",
    help="Instead of all else Cassandra is away for as long, and workers stand still at times.",
)  # fmt: skip
def command(minutes: float, seed: int | None, rate: float, archive_away: float | None) -> None:
    """Let processes die for a while under load, then compare every row with a recomputation."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    click.echo(f"seed {seed}")
    for name in ("kafka", "cassandra"):
        if reason := why_missing(name):
            raise click.ClickException(reason)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        plan = [LONG, round(minutes * 60 / ROUND_SECONDS), rate]
        if archive_away is not None:
            rounds = round(archive_away / ROUND_SECONDS) + 1
            plan = [[freeze], rounds, rate, [archive_away_for(archive_away)]]
        try:
            verdict = asyncio.run(_run(Path(folder), seed, plan))
        except BaseException:
            keep_logs(Path(folder))
            raise
        if verdict.differing:
            keep_logs(Path(folder))
    show(verdict)
    sys.exit(1 if verdict.differing else 0)


def keep_logs(folder: Path) -> None:
    """Copy the logs of all processes out of a folder that is about to be removed."""
    kept = Path(tempfile.mkdtemp(prefix="chaos-logs-"))
    for log in [*folder.glob("*.log"), *folder.rglob("server.log")]:
        shutil.copy(log, kept / "-".join(log.relative_to(folder).parts))
    click.echo(f"logs are kept in {kept}")


def show(verdict: Verdict) -> None:
    """Print the faults and the result."""
    click.echo(
        f"{verdict.seconds:,.0f} s, {verdict.events:,} events, {verdict.rows:,} rows compared"
    )
    for name, count in sorted(verdict.faults.items()):
        click.echo(f"  {count:4d}  {name}")
    for reason, count in sorted(verdict.reasons.items()):
        click.echo(f"  {count:4d}  worker ended by itself: {reason}")
    for line in verdict.differing:
        click.echo(f"wrong: {line}")
    click.echo("not all is right" if verdict.differing else "every row and count is as it must be")


async def _run(folder: Path, seed: int, plan: Sequence[Any]) -> Verdict:
    with (
        KafkaCluster(folder / "brokers") as brokers,
        CassandraServer(folder / "cassandra") as cassandra,
        SmallDisk(folder / "small") as disk,
        Cluster(
            brokers.bootstrap, folder, map_file=MAP_FILE, archive="cassandra",
            cassandra_hosts=cassandra.host, cassandra_port=str(cassandra.port),
            cassandra_keyspace=KEYSPACE, cassandra_replication="1", group=KEYSPACE,
            pending_bytes_max=str(PENDING_BYTES_MAX),
        ) as cluster,
    ):  # fmt: skip
        arena = Arena(folder, seed, cluster, cassandra, brokers=brokers.nodes, disk=disk)
        return await run(arena, *plan)


if __name__ == "__main__":
    command(prog_name="python -m tests.chaos")
