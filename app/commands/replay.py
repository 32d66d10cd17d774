"""``python -m app replay``: write recorded events to their topic at a chosen speed."""

from __future__ import annotations

import asyncio
import pathlib

import click

from app.config.connections import kafka_options
from app.config.options import kafka_settings_options, option
from app.config.settings import Settings
from app.demo.flights import events
from app.load.replay import keyed, replay, settled_ms
from app.mapfile.load import load_map


@click.command(name="replay", help="Write recorded events to their topic, with heartbeats.")
@click.argument("recording", type=click.Choice(["flights"]))
@click.option(
    "--map", "map_file", type=click.Path(dir_okay=False, path_type=pathlib.Path),
    default=events.MAP_FILE, help="The map that names the topic. [default: the flights' own]",
)  # fmt: skip
@option(
    "--seconds", click.FloatRange(min=0), 20.0, "The time of the replay; 0 is as fast as possible."
)
@kafka_settings_options
def command(recording: str, map_file: pathlib.Path, seconds: float, settings: Settings) -> None:
    """Write the recording and say how many events it had."""
    del recording
    themap = load_map(map_file)
    source = themap.source(events.SOURCE)
    records = keyed(events.flight_records(), source)
    topic = source.topic
    end_ms = settled_ms(themap, events.SOURCE, int(records["at"][-1]))
    click.echo(f"replaying {len(records):,} events into {topic} over {seconds:g} s")
    written = asyncio.run(
        replay(
            settings.brokers, topic, records, end_ms, seconds=seconds,
            options=kafka_options(settings),
        )
    )  # fmt: skip
    click.echo(f"wrote {written:,} events; stream time is {end_ms} ms")
