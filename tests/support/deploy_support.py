"""Parts of the tests of the deployment: the Dockerfile, and the command line it runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from importlib import metadata
from typing import Any

import click
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.__main__ import group
from app.config.settings import ENVIRONMENT_PREFIX
from tests import ROOT

# A worker lets its partitions go within this; whoever ends one must give it that long.
STOP_SECONDS = 60
WEB_TOKEN = "0123456789abcdef"  # noqa: S105 - of tests


def project() -> dict[str, Any]:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def top_packages() -> set[str]:
    """Return the names of the packages that the project consists of."""
    found = project()["tool"]["setuptools"]["packages"]["find"]["include"]
    return {name.removesuffix("*") for name in found}


def closure(asked: list[str]) -> set[str]:
    """Return the names of all that requirements need in the image, themselves included."""
    python = re.findall(r"python:(\d+\.\d+)", arguments_of("FROM")[-1])[0]
    there = {"python_version": python, "sys_platform": "linux", "platform_system": "Linux"}
    found: set[str] = set()
    waiting = [Requirement(text) for text in asked]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        found.add(name)
        extras = [there | {"extra": extra} for extra in ("", *requirement.extras)]
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or any(map(needed.marker.evaluate, extras)):
                waiting.append(needed)
    return found


def image() -> str:
    """Return the name under which the image is built, of the version that the project has."""
    return f"treasure-map:{project()['project']['version']}"


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, in their order."""
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        name, _, arguments = line.strip().partition(" ")
        found.append((name, arguments.strip()))
    return found


def arguments_of(instruction: str) -> list[str]:
    """Return the arguments of every instruction of a name, in their order."""
    return [arguments for name, arguments in dockerfile() if name == instruction]


def image_environment() -> dict[str, str]:
    """Return the settings that the image brings."""
    words = [word for line in arguments_of("ENV") for word in shlex.split(line)]
    pairs = dict(word.split("=", 1) for word in words)
    return {name: value for name, value in pairs.items() if name.startswith(ENVIRONMENT_PREFIX)}


def parse_command(arguments: list[str]) -> None:
    """Let the command line read its arguments, without running anything.

    Raises:
        click.UsageError: the command does not exist, or does not take these arguments.
    """
    command: click.Command = group
    context: click.Context | None = None
    rest = arguments
    while isinstance(command, click.Group):
        context = command.make_context(command.name, list(rest), parent=context)
        name, found, rest = command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        assert found is not None, name
        command = found
    command.make_context(command.name, list(rest), parent=context)
