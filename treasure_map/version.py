"""The version of this distribution, and the packages that it needs."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

DISTRIBUTION = "treasure-map"

UNKNOWN = "unknown"
"""The version of packages that were copied: neither installed nor in their source tree."""


@functools.cache
def version() -> str:
    """Return the version: of the source tree that this runs from, else of the installed one."""
    from importlib import metadata  # noqa: PLC0415 - slow to import, and seldom wanted

    if project := _project():
        return str(project["version"])
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def requirements(extra: str) -> list[str]:
    """Return the packages that an extra needs, such as ``orjson>=3.11``; none if it is unknown."""
    from importlib import metadata  # noqa: PLC0415 - likewise

    if project := _project():
        return list(project["optional-dependencies"].get(extra, ()))
    try:
        every = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    return [one for one in every if f'extra == "{extra}"' in one]


def _project() -> dict[str, Any] | None:
    """Return the project's table of the source tree that this runs from, None if there is none."""
    file = pathlib.Path(__file__).resolve().parent.parent / "pyproject.toml"
    if not file.is_file():
        return None
    import tomllib  # noqa: PLC0415 - only in a source tree

    project: dict[str, Any] = tomllib.loads(file.read_text("utf-8")).get("project", {})
    return project if project.get("name") == DISTRIBUTION else None
