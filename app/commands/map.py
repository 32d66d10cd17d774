"""``map``: propose a map file, check it, show its topics and tables, and make them."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from app.cluster.rights import ROLES, Role, checks_of, kafka_commands, rights_of
from app.config.archives import archive_of, for_many
from app.config.options import kafka_settings_options, option, settings_options
from app.config.settings import Settings
from app.host.printable import printable
from app.mapfile.load import load_map, parse_map
from app.mapfile.section import name_problem
from tables.called import called
from tables.model.errors import MapError
from tables.model.layer import Layer, Map, SideKind, Source
from tables.model.shape import reshaped, shapes_of

if TYPE_CHECKING:
    from app.mapfile.sample import Sample

# If the output is not a terminal, nobody wraps it; rich would wrap it at 80 columns.
_WIDTH_PIPED = 240

SIDES: tuple[SideKind, ...] = ("late", "dead")

_map_file = click.argument("file", type=click.Path(dir_okay=False))


@click.group("map")
def command() -> None:
    """Propose, check, show and apply a map file."""


@command.command()
@click.option(
    "--sample",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file of events: NDJSON, a JSON array, CSV or Parquet, also as .gz.",
)
@click.option("--topic", help="The source's topic; without --sample its last records are read.")
@click.option("--name", help="The map's name; by default that of the file or the topic.")
@click.option("--out", type=click.Path(dir_okay=False), help="The new file; default: print it.")
@click.option(
    "--records",
    type=click.IntRange(min=1, max=200_000),
    default=20_000,
    show_default=True,
    help="How many of the topic's last records are read.",
)
@kafka_settings_options
def init(
    *, sample: Path | None, topic: str | None, name: str | None, out: str | None, records: int,
    settings: Settings,
) -> None:  # fmt: skip
    """Propose a map, with comments, for the events of a file or of a topic.

    It has the fields, the time, type and id, and a tree of layers. It changes nothing in Kafka.
    """
    from app.mapfile.proposal_text import proposal_text  # noqa: PLC0415 - polars loads slowly
    from app.mapfile.propose import propose  # noqa: PLC0415 - likewise

    if out is not None and Path(out).exists():
        raise click.UsageError(f"cannot write {out}: it exists; name another file, or move it away")
    name = _proposed_name(sample, topic, name)
    events = _events(sample, topic, records, settings)
    proposal = propose(events, name, topic or f"{name}.raw")
    text = proposal_text(proposal, int(time.time() * 1_000))
    # The name of the topic is all in it that may be wrong.
    parse_map(text, "as proposed")
    if out is None:
        click.echo(text, nl=False)
        return
    with Path(out).open("x", encoding="utf-8") as file:
        file.write(text)
    click.echo(f"wrote {out}; read its comments, then run `{called('map check')} {out}`")


def _proposed_name(sample: Path | None, topic: str | None, name: str | None) -> str:
    from app.mapfile.propose import NAME_CHARS_MAX, safe_name  # noqa: PLC0415 - polars loads slowly

    if name is None:
        stem = (topic or "") if sample is None else sample.name.partition(".")[0]
        return safe_name(stem, NAME_CHARS_MAX) or "events"
    if problem := name_problem(name):
        raise click.UsageError(f"cannot use --name: {problem}")
    if len(name) > NAME_CHARS_MAX:
        raise click.UsageError(
            f"cannot use --name: got {len(name)} characters; want at most {NAME_CHARS_MAX}, so that"
            " the tables of its layers can have it as a prefix"
        )
    return name


def _events(sample: Path | None, topic: str | None, records: int, settings: Settings) -> Sample:
    from app.cluster.last_records import last_records  # noqa: PLC0415 - likewise
    from app.config.connections import kafka_options  # noqa: PLC0415 - check and show need no client of Kafka
    from app.load.input_file import InputFile  # noqa: PLC0415 - polars loads slowly
    from app.mapfile.sample import EVENTS_MAX, sample_of_file, sample_of_records  # noqa: PLC0415 - likewise

    if sample is not None:
        pieces = InputFile(str(sample)).pieces(EVENTS_MAX)
        return sample_of_file(str(sample), ((one.lines, one.assumed_utc) for one in pieces))
    if topic is None:
        raise click.UsageError(
            "cannot propose a map without events: want --sample FILE, or --topic TOPIC with"
            " --brokers"
        )
    options = kafka_options(settings)
    values = asyncio.run(last_records(settings.brokers, topic, records, options))
    return sample_of_records(f"the last records of {topic}", values)


@command.command()
@_map_file
@click.option(
    "--against", type=click.Path(dir_okay=False),
    help="The map file in use: its layers must not become others under the same names.",
)  # fmt: skip
def check(file: str, against: str | None) -> None:
    """Check the map FILE, and print all its faults."""
    themap = load_map(file)
    if against is not None:
        _check_against(themap, load_map(against))
    coarser = sum(layer.finer is not None for layer in themap.layers)
    click.echo(
        f"ok: map {themap.name}, revision {themap.revision}, digest {themap.digest}: "
        f"{_count(len(themap.sources), 'source')}, {_count(len(themap.layers), 'layer')} "
        f"({coarser} made from finer ones), {_count(len(themap.inputs()), 'input topic')}"
    )


@command.command()
@click.argument("old", type=click.Path(dir_okay=False))
@click.argument("new", type=click.Path(dir_okay=False))
def diff(old: str, new: str) -> None:
    """Compare the map file in use, OLD, with its next revision, NEW.

    It explains each change in words. It ends with 1 if NEW would be refused.
    """
    from app.mapfile.compare import compare  # noqa: PLC0415 - polars loads slowly

    before, after = load_map(old), load_map(new)
    found = compare(before, after)
    if found.is_equal:
        click.echo(
            f"equal: both are map {after.name}, revision {after.revision}, digest {after.digest}"
        )
        return
    click.echo(found.title)
    for part, lines in found.parts.items():
        click.echo(part)
        for line in lines:
            click.echo(printable(f"  {line}"))
    if found.refused:
        click.echo("refused by workers and `map apply`:")
        for line in found.refused:
            click.echo(printable(f"  ! {line}"))
        raise click.exceptions.Exit(1)
    click.echo("may be applied: run `map apply` with it, then restart every worker with it")


@command.command()
@_map_file
def show(file: str) -> None:
    """Draw the map FILE: sources and layers with their topics, partitions and archive tables."""
    themap = load_map(file)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_PIPED)
    console.print(draw(themap))


@command.command()
@_map_file
@click.option(
    "--replication", type=click.IntRange(min=1),
    help="Copies of every topic's partitions; by default the number of brokers, at most 3.",
)  # fmt: skip
@settings_options
def apply(file: str, replication: int | None, settings: Settings) -> None:
    """Make the Kafka topics of the map FILE and, with --archive cassandra, its tables.

    Existing topics and tables are checked and never changed; one that differs is refused.
    """
    themap = load_map(file)
    asyncio.run(_apply(themap, replication, settings))


def _check_against(themap: Map, old: Map) -> None:
    subject = f"{themap.name} as revision {themap.revision}"
    if themap.name != old.name:
        raise MapError(subject, [f"map {old.name} is another one; want two revisions of one map"])
    if problems := reshaped(shapes_of(old), shapes_of(themap)):
        raise MapError(subject, problems)
    if themap.digest != old.digest and themap.revision <= old.revision:
        problem = f"another map is revision {old.revision}; raise the revision with every change"
        raise MapError(subject, [problem])


@command.command()
@_map_file
@option("--for role", click.Choice(list(ROLES)), "worker", "The role that gets the rights.")
@click.option("--user", required=True, help="The user of Kafka, and the role of Cassandra.")
@click.option("--role", "archive_role", help="The role of Cassandra, if its name is another.")
@click.option("--only", type=click.Choice(["kafka", "cassandra"]), help="Print only these rights.")
@settings_options
def acl(
    file: str, *, role: Role, user: str, archive_role: str | None, only: str | None,
    settings: Settings,
) -> None:  # fmt: skip
    """Print the least rights for the map FILE, as commands of Kafka and as CQL.

    It connects to nothing and changes nothing: whoever may grant rights runs the output.
    """
    for flag, name in (("--user", user), ("--role", archive_role or user)):
        if not name.isprintable() or name in ("", "*"):
            # User:* is everybody in Kafka.
            raise click.UsageError(f"cannot use {flag}: got {name!r}; want the name of one user")
    themap = load_map(file)
    if only != "cassandra":
        _print_kafka_rights(themap, role, user, settings)
    if only != "kafka":
        kind = archive_of(settings)
        grants = list(kind.grants(settings, themap, role, archive_role or user))
        if grants:
            click.echo(f"-- {kind.name.capitalize()}, for its administrator:")
        elif only is not None:
            click.echo(f"-- Nothing: {ROLES[role]} needs no right of the archive {kind.name}.")
        for line in grants:
            click.echo(line)


def _print_kafka_rights(themap: Map, role: Role, user: str, settings: Settings) -> None:
    rights = rights_of(themap, role, settings.group_of(themap.name))
    click.echo("# Kafka, for its administrator; if brokers want a login of them, add")
    click.echo("# --command-config FILE to each command, a file of that login:")
    for line in kafka_commands(rights, user, settings.brokers):
        click.echo(line)
    if not rights:
        click.echo("# Nothing: no layer of this map is published.")
    if checks := checks_of(themap, role):
        click.echo("# So that it can check settings of topics, of which it warns otherwise:")
        for line in kafka_commands(checks, user, settings.brokers):
            click.echo(line)


def draw(themap: Map) -> Tree:
    """Return the tree of a map: sources, their base layers, coarser layers below finer ones."""
    tree = Tree(
        Text(f"{themap.name}, revision {themap.revision}, digest {themap.digest}", "bold"),
        guide_style="dim",
    )
    for source in themap.sources:
        branch = tree.add(_source_label(themap, source))
        for layer in themap.base_layers(source.name):
            _draw_layer(themap, layer, branch)
    count = _count(themap.side_partitions, "partition")
    letters = [f"{kind}     {themap.side_topic(kind)} ({count})" for kind in SIDES]
    tree.add(_label("letters", "late events, and records that cannot be used", *letters))
    return tree


def _draw_layer(themap: Map, layer: Layer, parent: Tree) -> None:
    branch = parent.add(_layer_label(themap, layer))
    for coarser in themap.coarser(layer.name):
        _draw_layer(themap, coarser, branch)


def _source_label(themap: Map, source: Source) -> Text:
    keyed_by = ", ".join(source.keyed_by) or "nothing"
    return _label(
        source.name,
        f"source keyed by {keyed_by}",
        f"topic    {source.topic} ({_count(source.partitions, 'partition')})",
        f"journal  {themap.journal_topic(source.topic)}",
    )


def _layer_label(themap: Map, layer: Layer) -> Text:
    from tables.archive.cassandra.cql import CassandraTable  # noqa: PLC0415 (check and apply need no archive)

    topic = themap.input_topic(layer)
    key = ", ".join(field.name for field in layer.key)
    lines = [f"measures {', '.join(measure.name for measure in layer.measures)}"]
    if layer.finer is None:
        lines.append(f"events   {', '.join(layer.events)}{' (filtered)' if layer.where else ''}")
    lines += [
        f"input    {topic} ({_count(layer.partitions, 'partition')})",
        f"journal  {themap.journal_topic(topic)}",
        f"archive  {CassandraTable(themap, layer, keyspace='').name}",
    ]
    if layer.publish:
        feed = themap.feed_topic(layer)
        lines.append(f"feed     {feed} ({_count(layer.partitions, 'partition')}, {layer.publish})")
    if layer.source is not None and layer.merged:
        parts = _count(themap.source(layer.source).partitions, "source partition")
        lines.append(f"merged   from {parts}, as the source is not keyed by part of its key")
    return _label(layer.name, f"per {layer.window} by {key}", *lines)


def _label(name: str, summary: str, *lines: str) -> Text:
    text = Text.assemble((printable(name), "bold cyan"), printable(f"  {summary}"))
    for line in lines:
        text.append(f"\n{printable(line)}", "dim")
    return text


async def _apply(themap: Map, replication: int | None, settings: Settings) -> None:
    from app.cluster.histories import check_histories  # noqa: PLC0415 - likewise
    from app.cluster.rights_check import check_rights  # noqa: PLC0415 - likewise
    from app.cluster.topics import apply_topics  # noqa: PLC0415 - check and show need no client of Kafka
    from app.config.connections import kafka_options  # noqa: PLC0415 - likewise

    schema = archive_of(settings).schema(settings, themap)
    options = kafka_options(settings)
    # Without DescribeConfigs it warns.
    rights = [
        dataclasses.replace(
            right, operations=tuple(o for o in right.operations if o != "DescribeConfigs")
        )
        for right in rights_of(themap, "apply", settings.group_of(themap.name))
    ]
    await check_rights(
        settings.brokers, options, rights,
        cannot=f"cannot apply map {themap.name}", role="apply", may_lack=True,
    )  # fmt: skip
    revision = await check_histories(settings.brokers, themap, options)
    if schema is not None:
        # Before topics are made: with a table of another layer no worker could use them.
        await asyncio.to_thread(schema.check)
    report = await apply_topics(settings.brokers, themap, replication, options=options)
    for name in report.created:
        click.echo(f"created topic {name}")
    if revision is None:
        click.echo("journals: no worker has used this map yet; a worker's start fixes its revision")
    else:
        click.echo(f"journals: workers have used revision {revision}")
    click.echo(
        f"topics: {len(report.created)} created with "
        f"{_count(report.replication, 'copy', 'copies')} of each partition, "
        f"{len(report.existing)} existed"
    )
    for name, reason in report.unchecked.items():
        click.echo(
            f"warning: cannot check that journal {name} keeps everything: {reason}", err=True
        )
    if schema is None:
        kind = f"archive: {settings.archive}, nothing to make"
        click.echo(f"{kind}; pass --archive {for_many()} for its tables")
        return
    await schema.archive.open(themap)
    await schema.archive.close()
    click.echo(f"archive: {schema.words} made or checked")


def _count(number: int, noun: str, nouns: str | None = None) -> str:
    return f"{number} {noun if number == 1 else nouns or noun + 's'}"
