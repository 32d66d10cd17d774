"""The version of this distribution."""

from __future__ import annotations

import functools
import pathlib

DISTRIBUTION = "treasure-map"

UNKNOWN = "unknown"
"""The version of packages that were copied: neither installed nor in their source tree."""


@functools.cache
def version() -> str:
    """Return the version: of the source tree that this runs from, else of the installed one."""
    from importlib import metadata  # noqa: PLC0415 - slow to import, and seldom wanted

    file = pathlib.Path(__file__).resolve().parent.parent / "pyproject.toml"
    if file.is_file():
        import tomllib  # noqa: PLC0415 - only in a source tree

        project = tomllib.loads(file.read_text("utf-8")).get("project", {})
        if project.get("name") == DISTRIBUTION:
            return str(project["version"])
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return UNKNOWN
