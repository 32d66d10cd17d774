"""``python -m app verify``: a running system against a recomputation from its raw topics."""

from __future__ import annotations

import asyncio
import functools
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.config.options import option, settings_options
from app.config.settings import Settings
from app.host.allocator import tune_gc
from app.host.printable import printable, printable_json
from app.verify import Report, verify
from tables.model.errors import TreasureMapError

DIFFERS, CANNOT = 1, 2
_WIDTH_PIPED = 200
_FAULT = (
    "error: cannot verify: a fault in verify itself, which the lines above show, so it has not"
    " compared everything; keep the topics, and report the fault with these lines and the map"
)


def _cannot(function: Callable[..., None]) -> Callable[..., None]:
    """Give reasons that prevent a verification an exit code of their own."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except TreasureMapError as error:
            click.echo(printable(f"error: {error}", keep="\n"), err=True)
            sys.exit(CANNOT)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception:  # noqa: BLE001 - its exit code must not be that of rows that differ
            click.echo(printable(f"{traceback.format_exc()}{_FAULT}", keep="\n"), err=True)
            sys.exit(CANNOT)

    return run


@click.command("verify")
@click.option("--url", "urls", multiple=True, help="A worker's endpoint; give those of all.")
@option(
    "--deadline deadline_s", click.FloatRange(min=0), 60.0, "Seconds to wait until nothing moves."
)
@option("--rows", click.IntRange(min=0), 20, "Most differences to show.")
@click.option(
    "--ca-file", help="PEM file of the authority of the endpoints' certificates; else web_ca_file."
)
@click.option("--no-archive", is_flag=True, help="Leave the archive out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_cannot
@settings_options
def command(
    settings: Settings, *, urls: tuple[str, ...], deadline_s: float, rows: int,
    ca_file: str | None, no_archive: bool, as_json: bool,
) -> None:  # fmt: skip
    """Recompute every row and count from the raw topics, and compare with the workers' answers.

    Exit code 0: all is equal; 1: something differs; 2: it cannot be verified.
    """
    tune_gc()
    report = asyncio.run(
        verify(
            settings, urls=urls, deadline_s=deadline_s, rows=rows,
            ca_file=ca_file or settings.web_ca_file or None, archive=not no_archive,
        )
    )  # fmt: skip
    if as_json:
        click.echo(printable_json(report.as_json(), orjson.OPT_INDENT_2))
    else:
        _show(report)
    if not report.equal:
        sys.exit(DIFFERS)


def _show(report: Report) -> None:
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_PIPED)
    table = Table("layer", box=None, header_style="bold")
    for name in ("rows", "over HTTP", "in the archive", "differing"):
        table.add_column(name, justify="right")
    for layer in report.layers:
        archived = "not read" if layer.archived is None else f"{layer.archived:,}"
        numbers = (f"{layer.expected:,}", f"{layer.http:,}", archived, f"{layer.differing:,}")
        table.add_row(layer.layer, *numbers)
    console.print(table)
    counts = Table("counted", box=None, header_style="bold")
    counts.add_column("recomputed", justify="right")
    for name, count in report.ledger.items():
        counts.add_row(Text(printable(name)), f"{count:,}")
    console.print(counts)
    for difference in report.differences:
        console.print(Text(printable(str(difference))))
    if report.differing > len(report.differences):
        console.print(f"and {report.differing - len(report.differences):,} more")
    for note in report.notes:
        console.print(Text(printable(f"note: {note}")))
    outcome = "all equal" if report.equal else f"{report.differing:,} differ"
    console.print(f"{report.offsets:,} offsets recomputed: {outcome}")
