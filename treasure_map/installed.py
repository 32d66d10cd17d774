"""Whether the worker is installed here: all packages that it needs.

The library and the worker are one distribution. The worker is its extra ``worker``, so that a
program that only asks gets none of the worker's libraries.
"""

from __future__ import annotations

import importlib.util
import sys

from treasure_map.extras import install

WORKER_MODULES = (
    "aiokafka", "click", "cramjam", "faust", "msgspec", "orjson", "polars", "prometheus_client",
    "rich", "rocksdict", "xxhash",
)  # fmt: skip
"""The modules of the packages that every worker needs."""


def require_worker() -> None:
    """End this process, with exit code 1 and a sentence, if the worker cannot run here.

    Call it before anything of the worker is imported.
    """
    problem = _missing_modules()
    if problem is not None:
        sys.exit(f"error: cannot start treasure-map: {problem}")


def _missing_modules() -> str | None:
    missing = [name for name in WORKER_MODULES if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return (
        f"only its library for clients is installed; got no module {', '.join(missing)}; want the"
        f" packages of the extra worker; in an environment of its own, {install('worker')}"
    )
