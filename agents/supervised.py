"""Background work that cannot die unnoticed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def supervised(work: Awaitable[object], failed: Callable[[BaseException], None]) -> None:
    """Await ``work``; hand every error that ends it to ``failed``.

    Errors are all exceptions, also polars' panics, which are not an ``Exception``. A cancellation
    is an error too if nobody cancelled this task: it came out of an awaitable, such as a client
    that is closing, and would end the task silently. Only a cancel of the task itself and the exit
    of the program pass.
    """
    try:
        await work
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        failed(_wrapped("its awaitable was cancelled", error))
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:  # noqa: BLE001 - handed on
        failed(error)
    except BaseException as error:  # noqa: BLE001 - handed on
        failed(_wrapped(repr(error), error))


def _wrapped(end: str, cause: BaseException) -> RuntimeError:
    error = RuntimeError(f"a background task ended: {end}")
    error.__cause__ = cause
    return error
