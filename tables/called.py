"""The name by which this program was called, for messages that name one of its commands."""

from __future__ import annotations

import pathlib
import sys

SCRIPT = "treasure-map"
MODULE = "python -m app"


def called(command: str = "") -> str:
    """Return a command line of this program, such as ``treasure-map map apply FILE``.

    It begins with ``treasure-map`` if the installed script runs, else with ``python -m app``, which
    runs wherever this code does.

    Args:
        command: the words after the name; empty for the name alone.
    """
    path = pathlib.Path(sys.argv[0])
    # The script calls itself so, with a suffix on some systems; the module has its package's name.
    is_script = path.name.startswith(SCRIPT) or path.parent.name == "treasure_map"
    name = SCRIPT if is_script else MODULE
    return f"{name} {command}" if command else name
