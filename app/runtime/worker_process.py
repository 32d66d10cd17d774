"""The worker process around the Faust App: how it ends, and its last words.

A worker gives the reason of its stop twice: in the log at that moment, and as the last line of
standard error, which people and supervisors read first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from typing import Any, NoReturn

import faust
from mode.utils.logging import level_number

from app.host import allocator as memory
from app.host.printable import printable
from app.host.watchdog import Watchdog
from app.runtime.worker_log import begin_log
from tables.called import called
from tables.model.errors import SettingError, TreasureMapError

log = logging.getLogger(__name__)

PRIVATE = 0o077
"""The umask: nobody else gets rights to new files and folders, because they hold events."""

SWITCH_S = 0.0005
"""How long a thread may keep Python's lock while others wait for it. A chunk is folded in dozens of
steps that give the lock away. Beside a query that makes Python objects, 13 ms of folding were 487
with Python's own 5 ms, and 159 with this (two cores, crowded)."""

_CANNOT_LISTEN = {errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES}


class WorkerProcess(faust.Worker):  # type: ignore[misc]  # faust comes without types
    """Faust's worker; an operating error ends it with one message instead of a traceback."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Faust shows no spinner and prints no words of its own.
        self.spinner, self.quiet = None, True
        self._reason: BaseException | None = None
        self._watchdog = Watchdog(self.app.stall_seconds_max)

    async def start(self) -> None:
        """Start and run; an error that an operator can mend ends the run in order."""
        loop = asyncio.get_running_loop()
        self._watchdog.start(loop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        memory.keep_freed_memory()
        os.umask(PRIVATE)
        sys.setswitchinterval(SWITCH_S)
        try:
            self._check_options()
            await super().start()
        except TreasureMapError as error:
            self._reason = error
        except OSError as error:
            if not isinstance(error, socket.gaierror) and error.errno not in _CANNOT_LISTEN:
                self._reason = error
                raise
            conf = self.app.conf
            self._reason = SettingError(
                f"cannot listen for queries: {error.strerror}; got {conf.web_bind}:"
                f"{conf.web_port}; want an address of this machine with a free port; end the "
                "program that listens there, or set web_host and web_port"
            )
        except Exception as error:
            self._reason = error
            raise

    def _reload(self) -> None:
        """Check files that may have changed, as the sender of SIGHUP asks."""
        log.info("SIGHUP: certificates, keys and tokens are checked")
        self.app.reload_files()

    def _check_options(self) -> None:
        if self.app.conf.refused:
            raise SettingError(
                f"cannot use options of Faust's own: got {', '.join(self.app.conf.refused)}; want"
                f" the worker's settings to say it; see `{called('worker --help')}`"
            )

    def _setup_logging(self) -> None:
        begin_log(level_number(self.loglevel or "info"), self.logfile or self.stdout)

    async def _stop_on_signal(self, received: signal.Signals) -> None:
        log.info("the worker stops: got %s", received.name)
        await super()._stop_on_signal(received)

    async def on_startup_finished(self) -> None:
        """Tune memory, once everything that lives as long as the process has been made."""
        await super().on_startup_finished()
        memory.tune_gc()
        memory.trim_periodically()

    async def _sentinel_task(self) -> None:
        """Let the loop turn once before it is closed; Faust's own delays every stop by a second.

        All tasks have ended by then.
        """
        await asyncio.sleep(0)

    def execute_from_commandline(self) -> NoReturn:
        """Run to the end and exit: 0 if the worker was asked to stop, else 1 with its reason."""
        try:
            super().execute_from_commandline()
        except SystemExit as ending:
            code = ending.code
        self._watchdog.leave()
        log.info("the worker has stopped")
        reason = self._reason or self.crash_reason
        if reason is not None:
            report_exit(reason, self.stderr)
            code = code or 1
        sys.exit(code)


def ignore_hangups() -> None:
    """Let SIGHUP, which has files read again, not end a worker that is still being built."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def report_exit(reason: BaseException, to: Any = None) -> None:
    """Write why the process ends; an unexpected error is named by its kind."""
    text = str(reason) if isinstance(reason, TreasureMapError) else repr(reason)
    sys.stdout.flush()
    sys.stderr.flush()
    (to or sys.stderr).write(printable(f"error: {text}\n", keep="\n"))
