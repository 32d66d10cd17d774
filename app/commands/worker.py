"""``worker``: run one worker process."""

from __future__ import annotations

import functools

import click

from app.config.options import settings_options
from app.config.settings import Settings
from app.runtime.wiring import build
from app.runtime.worker_process import WorkerProcess

LEVELS = ("debug", "info", "warning", "error", "critical")


@click.command("worker")
@click.option(
    "--loglevel", "-l", type=click.Choice(LEVELS, case_sensitive=False), default="info",
    show_default=True, help="Least level to log.",
)  # fmt: skip
@functools.partial(settings_options, has_log=True)
def command(loglevel: str, settings: Settings) -> None:
    """Run a worker: read, fold, journal, archive and answer until it is stopped."""
    worker = WorkerProcess(build(settings), loglevel=loglevel.upper(), redirect_stdouts=False)
    worker.execute_from_commandline()
