"""This host: free disks, open files, and the versions of packages."""

from __future__ import annotations

import platform
import re
import resource
import shutil
from collections.abc import Iterator
from importlib import metadata

from app.config.archives import archive_of
from app.config.settings import Settings
from app.health.backpressure import MIB
from app.host.findings import Finding
from app.web.server import CONNECTIONS_MAX, connections_max
from treasure_map.extras import install
from treasure_map.version import requirements, version

ROOM = 4
"""How many times ``disk_free_bytes_min`` a disk should have free."""

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*(==|>=)\s*([\d.]+)")


def disks(settings: Settings) -> Iterator[Finding]:
    """Yield the free room on the disk of each folder that a worker fills."""
    least = settings.disk_free_bytes_min
    for folder in (settings.state_folder, *archive_of(settings).folders(settings)):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        subject = f"disk of {folder}"
        if not there.is_dir():
            yield Finding("fail", subject, f"{there} is not a folder; set another one")
            continue
        free = shutil.disk_usage(there).free
        words = f"{free / MIB:,.0f} MiB free; want {least * ROOM / MIB:,.0f} MiB"
        if free < least:
            text = f"{words}; sources pause below {least / MIB:,.0f}; make room on it"
            yield Finding("fail", subject, text)
        elif free < least * ROOM:
            yield Finding("warn", subject, f"{words}; make room on it")
        else:
            yield Finding("ok", subject, f"{free / MIB:,.0f} MiB free")


def files(settings: Settings) -> Iterator[Finding]:
    """Yield how many files a worker may open: each connection of a reader is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**31 if hard == resource.RLIM_INFINITY else hard
    wanted = CONNECTIONS_MAX + settings.query_live_max
    given = connections_max(settings.query_live_max, most)
    if given < wanted:
        yield Finding(
            "warn", "open files",
            f"the hard limit is {most}, which leaves {given} connections of readers; want"
            f" {wanted}; raise it with `ulimit -Hn`, or LimitNOFILE of the unit",
        )  # fmt: skip
    else:
        yield Finding("ok", "open files", f"the hard limit is {most}")


def packages(settings: Settings) -> Iterator[Finding]:
    """Yield the packages that are missing, or have another version than was tested."""
    extras = filter(None, ["worker", archive_of(settings).extra])
    count, odd = 0, False
    for extra in extras:
        for name, relation, want in map(_parsed, requirements(extra)):
            count += 1
            try:
                got = metadata.version(name)
            except metadata.PackageNotFoundError:
                odd = True
                yield Finding(
                    "fail", f"package {name}", f"missing; want {relation}{want}; {install(extra)}"
                )
                continue
            is_older = relation == ">=" and _numbers(got) < _numbers(want)
            if is_older or (relation == "==" and got != want):
                odd = True
                text = f"got {got}; want {relation}{want}; {install(extra)}"
                yield Finding("fail" if is_older else "warn", f"package {name}", text)
    if not odd:
        text = f"treasure-map {version()} on Python {platform.python_version()}; {count} as tested"
        yield Finding("ok", "packages", text)


def _parsed(requirement: str) -> tuple[str, str, str]:
    found = _REQUIREMENT.match(requirement)
    assert found is not None, f"a requirement with one relation: {requirement}"
    name, relation, want = found.groups()
    return name, relation, want


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
