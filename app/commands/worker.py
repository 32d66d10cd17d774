"""``worker``: run one worker process."""

from __future__ import annotations

import sys

import click
import faust

from app.settings import Settings, settings_options
from app.station import build


@click.command("worker")
@click.option("--loglevel", "-l", default="info", show_default=True, help="Least level to log.")
@settings_options
def command(loglevel: str, settings: Settings) -> None:
    """Run a worker: read, fold, journal, archive and answer until it is stopped."""
    app = build(settings)
    worker = faust.Worker(app, loglevel=loglevel.upper(), redirect_stdouts=False)
    sys.exit(worker.execute_from_commandline())
