"""The format that a source of a map file declares, with its checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from app.mapfile.section import Section, nearest, shown
from tables.model.layer import RecordForm
from tables.model.path import Path, path_text

NAMES = ("csv",)
_DELIMITERS = (",", ";", "\t", "|")


def read_format(section: Section) -> RecordForm | None:
    """Return the format: ``format = NAME``, or ``format = {name = NAME, ...}`` with options.

    None if the source has none, or a wrong one, which is noted.
    """
    table = section.raw("format")
    if not isinstance(table, dict):
        name = section.text("format")
        return None if name is None else _read(section, "format", name, None)
    inner = section.inside("format", table)
    name = inner.text("name", required=True)
    form = None if name is None else _read(inner, "name", name, inner)
    if form is not None or name is None:
        inner.finish()
    return form


def _read(noting: Section, field: str, name: str, options: Section | None) -> RecordForm | None:
    """Return the format of a name, with the options of its table if it has one."""
    if name not in NAMES:
        noting.note(field, f"unknown format; got {shown(name)}; {nearest(name, NAMES)}")
        return None
    if options is None:
        return RecordForm("csv")
    columns = options.texts("columns") or ()
    return RecordForm("csv", columns, options.choice("delimiter", _DELIMITERS))


def unreadable_paths(
    form: RecordForm, readers: Mapping[str, Path | None]
) -> Iterator[tuple[str, str]]:
    """Yield each reader of a path that no record of a format can have, and the fault in words.

    Args:
        form: the format.
        readers: by field of the map file, the path that it reads.
    """
    for reader, path in readers.items():
        if path is None:
            continue
        if len(path) > 1:
            yield (
                reader,
                (
                    f"reads {path_text(path)!r}, but values of CSV lie in no other values; name a"
                    " column"
                ),
            )
        elif form.columns and path[0] not in form.columns:
            yield (
                reader,
                (
                    f"reads {path[0]!r}, which is not one of the format's columns;"
                    f" {nearest(str(path[0]), form.columns)}"
                ),
            )
