"""``python -m app deadletters``: events that workers set aside, by reason, and their replay."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import datetime as dt
import functools
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.config.connections import kafka_options
from app.config.options import settings_options
from app.config.settings import Settings
from app.host.printable import printable, printable_json
from app.mapfile.load import load_map
from tables.model.layer import SideKind
from tables.record.letter import Letter

if TYPE_CHECKING:
    from app.deadletters.replay import DeadLetters
    from app.deadletters.side_topic import Entry

VALUE_CHARS_MAX = 60
_WIDTH_PIPED = 200


@click.group(name="deadletters")
def command() -> None:
    """List events that workers could not use, and send them to their source again after a fix."""


_OF_NEW_LAYERS = (
    "a layer that the map got since answers from then on only: replayed events of the time"
    " before is folded and not shown; to have it all, read the topic with a map of another name"
)


def _filtered(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose letters; the function is called with those that are chosen."""

    @functools.wraps(function)
    def chosen(
        *, settings: Settings, late: bool, reasons: tuple[str, ...], topics: tuple[str, ...],
        replayed: bool, **options: Any,
    ) -> None:  # fmt: skip
        _check_reasons(reasons, late=late)
        letters = _letters(settings, late=late)
        function(letters.letters(_wanted(reasons, topics), replayed=replayed), **options)

    options = [
        click.option("--late", is_flag=True, help="Of events that came too late, instead of dead."),
        click.option("--reason", "reasons", multiple=True, help="Only of this reason; repeatable."),
        click.option("--topic", "topics", multiple=True, help="Only of this topic; repeatable."),
        click.option("--replayed", is_flag=True, help="Also letters that were replayed already."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line."),
    ]
    for option in reversed(options):
        chosen = option(chosen)
    return settings_options(chosen)


@command.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@_filtered
def list_(letters: AsyncGenerator[Entry], *, as_json: bool, limit: int) -> None:
    """Print letters, oldest first within each partition."""
    found, more = asyncio.run(_list(letters, limit))
    if as_json:
        for entry in found:
            click.echo(printable_json(_json(entry)))
    else:
        table = Table(
            "set aside", "topic", "partition", "offset", "index", "reason", "late by", "detail",
            "value", box=None, header_style="bold",
        )  # fmt: skip
        for entry in found:
            table.add_row(*(Text(printable(text)) for text in _row(entry)))
        _console().print(table)
    if more:
        click.echo(f"more: only the first {limit} letters; raise --limit", err=True)


@command.command()
@_filtered
def count(letters: AsyncGenerator[Entry], *, as_json: bool) -> None:
    """Print how many letters and events there are, by topic and reason."""
    rows = asyncio.run(_count(letters))
    if as_json:
        for row in rows:
            click.echo(printable_json(dataclasses.asdict(row)))
        return
    table = Table("topic", "reason", box=None, header_style="bold")
    for name in ("letters", "events"):
        table.add_column(name, justify="right")
    table.add_column("newest")
    table.add_column("for example")
    for row in rows:
        numbers = (f"{row.letters:,}", f"{row.events:,}")
        texts = [row.topic, row.reason, *numbers, _when(row.newest_ms), row.example]
        table.add_row(*(Text(printable(text)) for text in texts))
    _console().print(table)


@command.command()
@click.option("--reason", "reasons", multiple=True, help="Only of this reason; repeatable.")
@click.option("--topic", "topics", multiple=True, help="Only of this topic; repeatable.")
@click.option("--late", is_flag=True, help="Late letters; want --layer and --to.")
@click.option("--layer", default="", help="The layer whose late letters are sent.")
@click.option("--to", default="", help="The topic that late letters are sent to.")
@click.option("--resume", is_flag=True, help="Bring a replay to its end that was cut off.")
@settings_options
def replay(
    settings: Settings, *, reasons: tuple[str, ...], topics: tuple[str, ...], late: bool,
    layer: str, to: str, resume: bool,
) -> None:  # fmt: skip
    """Send letters again, each once, to the number of partition that they came from.

    Dead letters go to their source. Do it after a fix of the map or of a limit. A letter that still
    cannot be used becomes a letter again.

    Late letters go to another topic, as their source's windows are sealed: one that a layer of the
    same key, window and measures reads, with an allowed_lateness that includes them.
    """
    _check_reasons(reasons)
    if late and not resume:
        _check_late(settings, reasons, layer, to)
    elif layer or to:
        raise click.UsageError(
            "cannot use --layer and --to: they are for --late, and not for --resume; dead letters"
            " go to their source, and a resumed replay sends to its own topic"
        )
    done = asyncio.run(
        _letters(settings, late=late).replay(_wanted(reasons, topics, layer), to=to, resume=resume)
    )
    click.echo(f"replayed {done.sent} letters")
    if done.landed:
        click.echo(f"{done.landed} had been sent before")
    if done.cut:
        click.echo(f"{done.cut} left out: they do not hold their record; send it again yourself")
    if done.large:
        click.echo(
            f"{done.large} left out, too large for their topic with one more header; raise its"
            " max.message.bytes by 200 and replay them again"
        )
    if done.foreign:
        click.echo(f"{done.foreign} left out: not of a source of this map")
    if done.sent and not late and (not reasons or "unclassified" in reasons):
        click.echo(_OF_NEW_LAYERS)


def _check_reasons(reasons: tuple[str, ...], *, late: bool = False) -> None:
    if not reasons:
        return
    from agents.decode.formats import letter_reasons  # noqa: PLC0415 - polars loads slowly

    known = letter_reasons()
    unknown = sorted(set(reasons) - known - ({"late"} if late else set()))
    if unknown:
        raise click.UsageError(
            f"cannot use --reason: unknown {', '.join(map(repr, unknown))}; want one of"
            f" {', '.join(sorted(known))}"
        )


def _check_late(settings: Settings, reasons: tuple[str, ...], layer: str, to: str) -> None:
    """An event has a letter for each layer that it is late for: only one of them is sent."""
    if not layer or not to or reasons:
        raise click.UsageError("cannot replay late letters: want --layer and --to, and no --reason")
    names = [one.name for one in load_map(settings.map_file).layers if one.source]
    if layer not in names:
        raise click.UsageError(
            f"cannot use --layer: unknown {layer!r}; want one that reads a source: "
            f"{', '.join(sorted(names))}"
        )


@dataclasses.dataclass(slots=True)
class _Row:
    topic: str
    reason: str
    letters: int = 0
    events: int = 0
    newest_ms: int = 0
    example: str = ""


def _letters(settings: Settings, *, late: bool) -> DeadLetters:
    themap = load_map(settings.map_file)
    from app.deadletters.replay import DeadLetters  # noqa: PLC0415 - help needs no client of Kafka

    kind: SideKind = "late" if late else "dead"
    return DeadLetters(settings.brokers, themap, kind, kafka_options(settings))


def _wanted(
    reasons: tuple[str, ...], topics: tuple[str, ...], layer: str = ""
) -> Callable[[Letter], bool]:
    return lambda letter: (
        (not reasons or letter.reason in reasons)
        and (not topics or letter.topic in topics)
        and (not layer or letter.layer == layer)
    )


async def _list(letters: AsyncGenerator[Entry], limit: int) -> tuple[list[Entry], bool]:
    found: list[Entry] = []
    async with contextlib.aclosing(letters):
        async for entry in letters:
            if len(found) == limit:
                return found, True
            found.append(entry)
    return found, False


async def _count(letters: AsyncGenerator[Entry]) -> list[_Row]:
    rows: dict[tuple[str, str], _Row] = {}
    async with contextlib.aclosing(letters):
        async for entry in letters:
            letter = entry.letter
            assert letter is not None
            row = rows.setdefault((letter.topic, letter.reason), _Row(letter.topic, letter.reason))
            row.letters += 1
            row.events += letter.events
            if entry.append_time_ms >= row.newest_ms:
                row.newest_ms, row.example = entry.append_time_ms, letter.detail
    return [rows[key] for key in sorted(rows)]


def _row(entry: Entry) -> list[str]:
    letter = entry.letter
    assert letter is not None
    text = entry.value[: 4 * VALUE_CHARS_MAX].decode("utf-8", "replace")
    shown = text if text.isprintable() else repr(entry.value[:VALUE_CHARS_MAX])[2:-1]
    source = [letter.topic, str(letter.partition), str(letter.offset), letter.index]
    return [
        _when(entry.append_time_ms),
        *source,
        letter.reason,
        "" if letter.lateness_ms is None else str(dt.timedelta(milliseconds=letter.lateness_ms[1])),
        letter.detail,
        shown[:VALUE_CHARS_MAX],
    ]


def _json(entry: Entry) -> dict[str, object]:
    letter = entry.letter
    assert letter is not None
    row: dict[str, object] = {
        "topic": letter.topic, "partition": letter.partition, "offset": letter.offset,
        "index": letter.index, "events": letter.events, "reason": letter.reason,
        "detail": letter.detail, "content_type": letter.content_type,
        "set_aside_ms": entry.append_time_ms, "letter": [entry.partition, entry.offset],
    }  # fmt: skip
    if letter.layer:
        row["layer"] = letter.layer
    if letter.lateness_ms is not None:
        row["lateness_ms"] = letter.lateness_ms
    try:
        row["value"] = entry.value.decode()
    except UnicodeDecodeError:
        row["value_base64"] = base64.b64encode(entry.value).decode()
    return row


def _when(time_ms: int) -> str:
    return dt.datetime.fromtimestamp(time_ms / 1_000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_PIPED)
