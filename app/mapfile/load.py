"""The map file: TOML text into a checked ``Map``, or every problem in it at once.

A map that cannot be exact is refused here, so that nothing after this module meets one. The page
``docs/formats/map.md`` describes the file.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from app.mapfile.layers import read_layers
from app.mapfile.names import note_tables, note_topics
from app.mapfile.section import Section
from app.mapfile.sources import read_sources
from tables.model.errors import MapError
from tables.model.layer import Layer, Map, Source

MAP_BYTES_MAX = 4 * 1024 * 1024
"""A map of thousands of layers has about one MiB; a larger file is another file."""

REVISION_MAX = 2**31 - 1
DIGEST_LENGTH = 16


def load_map(path: Path | str) -> Map:
    """Return the checked map of the TOML file at ``path``.

    Raises:
        MapError: the file cannot be read, or its map cannot be used; it holds every problem.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAP_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise MapError(
            str(path), [f"file: cannot be read: {reason}; give the path of a map file"]
        ) from error
    if len(data) > MAP_BYTES_MAX:
        raise MapError(
            str(path), [f"file: more than {MAP_BYTES_MAX} bytes; give the path of a map file"]
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise MapError(
            str(path), [f"line {line}: not UTF-8: {error.reason}; save the file as UTF-8"]
        ) from error
    return parse_map(text, str(path), path.parent)


def parse_map(text: str, source_name: str, folder: Path = Path()) -> Map:
    """Return the checked map of a TOML text; ``source_name`` names the text's file in errors.

    Paths of other files in it begin at ``folder``.

    Raises:
        MapError: the text is not TOML, or its map cannot be used; it holds every problem.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of too many digits
        raise MapError(source_name, [_syntax_problem(text, error)]) from error
    problems: list[str] = []
    section = Section(problems, "", table)
    revision = section.integer("revision", 1, REVISION_MAX, required=True)
    name = section.name("name", required=True)
    sources = read_sources(section, folder)
    drafts = read_layers(section, sources)
    section.finish()
    note_tables(section, name, [draft.name for draft in drafts])
    inputs = [
        (source.topic, f"sources.{source.name}.topic")
        for source in sorted(sources.values(), key=lambda one: one.name)
        if source.topic is not None
    ]
    inputs += [
        (f"{name}.layer.{draft.name}", f"layers.{draft.name}")
        for draft in drafts
        if name is not None and (draft.merged or draft.finer is not None)
    ]
    feeds = [
        (f"{name}.feed.{draft.name}", f"layers.{draft.name}")
        for draft in drafts
        if name is not None and draft.publish is not None
    ]
    note_topics(section, name, inputs, feeds)
    if problems:
        raise MapError(source_name, problems)
    assert revision is not None
    assert name is not None
    built = [source.built for _, source in sorted(sources.items()) if source.built is not None]
    themap = Map(
        revision=revision,
        name=name,
        sources=tuple(built),
        layers=tuple(draft.build() for draft in drafts),
        digest="",
    )
    return msgspec.structs.replace(themap, digest=digest_of(themap))


def digest_of(themap: Map) -> str:
    """Return the hash of a map's meaning, as JSON with sorted names.

    Fields of sources and layers that have their default are left out, so that a field which a later
    release adds changes no digest.
    """
    meaning = {
        "revision": themap.revision,
        "name": themap.name,
        "sources": sorted(map(_meaning, themap.sources), key=itemgetter("name")),
        "layers": sorted(map(_meaning, themap.layers), key=itemgetter("name")),
    }
    text = msgspec.json.encode(meaning, order="sorted")
    return hashlib.sha256(text).hexdigest()[:DIGEST_LENGTH]


def _meaning(part: Source | Layer) -> dict[str, Any]:
    fields = msgspec.structs.fields(part)
    values = {field.name: getattr(part, field.name) for field in fields}
    return {
        field.name: values[field.name] for field in fields if values[field.name] != field.default
    }


def _syntax_problem(text: str, error: Exception) -> str:
    """Return the problem of a text that is not TOML, with its line first."""
    if isinstance(error, RecursionError):
        return "file: not TOML: nested too deeply; flatten it"
    message = str(error)
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL)
    if match is not None:
        return f"line {match[2]}, column {match[3]}: not TOML: {match[1]}; correct the line"
    message = message.removesuffix(" (at end of document)")
    return f"line {text.count(chr(10)) + 1}: not TOML: {message}; correct the line"
