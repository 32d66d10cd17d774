"""Whether the worker is installed here: its own packages, and all packages that it needs.

The library and the worker are one distribution. The worker is its extra ``worker``, so that a
program that only asks gets none of the worker's libraries.

The names of the worker's packages are those of others too: ``tables`` is PyTables, ``agents`` the
OpenAI Agents SDK. An installer that puts both into one environment overwrites one by the other.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from importlib.machinery import ModuleSpec

from treasure_map.extras import install

WORKER_PACKAGES = ("app", "agents", "tables")
"""The worker's own packages, beside this one."""

OURS = "worker of Treasure Map"
"""The words by which the worker's packages are known; they stand in the docstring of each."""

WORKER_MODULES = (
    "aiokafka", "click", "cramjam", "faust", "msgspec", "orjson", "polars", "prometheus_client",
    "rich", "rocksdict", "xxhash",
)  # fmt: skip
"""The modules of the packages that every worker needs."""


def require_worker() -> None:
    """End this process, with exit code 1 and a sentence, if the worker cannot run here.

    Call it before anything of the worker is imported.
    """
    problem = _foreign_package() or _missing_modules()
    if problem is not None:
        sys.exit(f"error: cannot start treasure-map: {problem}")


def _foreign_package() -> str | None:
    folder = pathlib.Path(__file__).parent.parent
    for name in WORKER_PACKAGES:
        spec = importlib.util.find_spec(name)
        want = folder / name / "__init__.py"
        if spec is None or not _is_ours(spec, want):
            found = "no such package" if spec is None else _origin(spec)
            return (
                f"the package {name} is not that of the worker; got {found}; want {want} of"
                " Treasure Map; take the other one off PYTHONPATH, or make an environment of the"
                f" worker's own, and there {install('worker')}"
            )
    return None


def _is_ours(spec: ModuleSpec, want: pathlib.Path) -> bool:
    """Return whether a package is the one beside this one, and not overwritten by another."""
    if spec.origin is None or pathlib.Path(spec.origin).resolve() != want.resolve():
        return False
    return OURS in want.read_text("utf-8")


def _origin(spec: ModuleSpec) -> str:
    """Return the file of a package, or its folders if it has no file."""
    return spec.origin or ", ".join(spec.submodule_search_locations or ())


def _missing_modules() -> str | None:
    # Faust, once imported, has no spec to be found.
    missing = [
        name
        for name in WORKER_MODULES
        if name not in sys.modules and importlib.util.find_spec(name) is None
    ]
    if not missing:
        return None
    return (
        f"only its library for clients is installed; got no module {', '.join(missing)}; want the"
        f" packages of the extra worker; in an environment of its own, {install('worker')}"
    )
