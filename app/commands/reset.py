"""``python -m app reset``: delete all that a map has made, so that it begins anew."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

import click

from app.cluster.reset import Belongings, Reset
from app.config.archives import archive_of
from app.config.options import settings_options
from app.config.settings import Settings
from app.host.printable import printable
from app.mapfile.load import load_map
from tables.called import called
from tables.model.layer import Map


@click.command("reset")
@click.argument("file", metavar="MAP", type=click.Path(dir_okay=False))
@click.option("--yes", is_flag=True, help="Delete without asking.")
@settings_options
def command(file: str, yes: bool, settings: Settings) -> None:
    """Delete all that the map of the file MAP has made; its source topics stay, and are read anew.

    That is the map's own topics, the consumer group of its workers, its archive, and the local
    stores on this machine. All workers of the map must have ended. Rows of events that the source
    topics hold no more are lost.
    """
    asyncio.run(_reset(load_map(file), settings, yes=yes))


async def _reset(themap: Map, settings: Settings, *, yes: bool) -> None:
    reset = Reset(settings, themap)
    await reset.check()
    doomed = await reset.look()
    click.echo(f"map {themap.name} at {settings.brokers} loses for good:")
    _echo(f"topic {name}" for name in doomed.topics)
    if doomed.group is not None:
        _echo([f"consumer group {doomed.group}"])
    if reset.archive:
        _echo([reset.archive])
    if doomed.stores is not None:
        _echo([f"the local stores in {doomed.stores}"])
    click.echo("it does not touch:")
    _echo(_kept(doomed))
    if not yes:
        click.confirm("Delete all of the first list?", abort=True)
    left = await reset.delete(doomed)
    click.echo("deleted; left:")
    _echo(_kept(left))
    click.echo("run `map apply`, then start the workers: they read the source topics anew")
    if any(archive_of(settings).grants(settings, themap, "worker", "NAME")):
        click.echo(
            "new tables have no grants: after `map apply` give the output of"
            f" `{called('map acl FILE')} --only {settings.archive} --user NAME` with `--for worker`"
            " and with `--for verify` to an administrator again"
        )


def _kept(found: Belongings) -> Iterator[str]:
    for name in found.sources:
        yield f"source topic {name}, which other programs write"
    for name in found.doubtful:
        yield (
            f"topic {name}: it has not the settings of `map apply`, so another program may have"
            " made it; if it is an earlier revision's, delete it with kafka-topics"
        )
    for name in found.feeds:
        yield (
            f"topic {name}: no layer of this map is published there; if it is the feed of an"
            " earlier revision, delete it with kafka-topics"
        )
    yield "local stores on other machines: workers discard those of another history"


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(printable(f"  {line}"))
