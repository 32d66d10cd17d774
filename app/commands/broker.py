"""``python -m app broker``: a Kafka broker in memory, to try things with."""

from __future__ import annotations

import asyncio
import sys

import click

from app.commands.interrupts import until_interrupted
from app.demo.embedded_broker import EmbeddedBroker
from tables.called import called

INTERRUPTED = 130
_CHECK_SECONDS = 0.5


@click.command(name="broker")
@click.option(
    "--port",
    type=click.IntRange(1, 65_535),
    default=9092,
    show_default=True,
    help="The port of 127.0.0.1 to listen on.",
)
def command(port: int) -> None:
    """Serve a Kafka broker in memory on this machine until Ctrl-C."""
    with EmbeddedBroker(port=port) as broker:
        click.echo(f"broker at {broker.bootstrap}; Ctrl-C ends it")
        click.echo(
            "It is for trying: one process on this machine, without logins or encryption. It holds"
            " everything in memory, and forgets all of it when it ends."
        )
        click.echo(
            f"make the topics of a map: {called('map apply FILE')} --brokers {broker.bootstrap}"
        )
        try:
            asyncio.run(until_interrupted(_serve(broker)))
        except (KeyboardInterrupt, asyncio.CancelledError):
            click.echo("stopped")
    sys.exit(INTERRUPTED)


async def _serve(broker: EmbeddedBroker) -> None:
    while True:
        broker.check()
        await asyncio.sleep(_CHECK_SECONDS)
