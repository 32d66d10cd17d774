"""Reading one table of the map file: typed fields, with every problem noted instead of raised.

A reader returns None if a field is absent or wrong; a wrong field has been noted by then, so
that callers only leave out the checks that need the missing value: a map with notes is never built.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import cast

from tables.model.path import Path, parse_path
from tables.model.window import DAY_MS, LENGTH_MS_MAX, parse_duration_ms

DURATION_MS_MAX = LENGTH_MS_MAX

_SHOWN_MAX = 60  # fits a line
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


def nearest(name: str, known: Collection[str]) -> str:
    """Return the remedy for an unknown ``name``: the nearest known one, or all known ones."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    listed = ", ".join(sorted(known))
    return f"known are: {listed}" if listed else "none is declared"


def name_problem(name: str) -> str | None:
    """Return the fault of ``name`` as a name of topics, tables and columns, or None."""
    if _NAME.fullmatch(name):
        return None
    return (
        f"not a safe name; got {name!r}; want a small letter, then up to 39 small letters, digits "
        "or underscores; rename it"
    )


def topic_problem(topic: str) -> str | None:
    """Return the fault for which Kafka would refuse the topic name ``topic``, or None.

    The rule is that of ``org.apache.kafka.common.internals.Topic.validate``.
    """
    if _TOPIC.fullmatch(topic) and topic not in (".", ".."):
        return None
    return (
        f"not a topic name that Kafka accepts; got {topic!r}; want 1 to 249 letters, digits, '.', "
        "'_' or '-'; rename the topic"
    )


class Section:
    """One table of the map file. Asking for a field makes it known; ``finish`` notes the others."""

    def __init__(self, problems: list[str], where: str, table: Mapping[str, object]) -> None:
        self.where = where
        self._problems = problems
        self._table = table
        self._asked: set[str] = set()

    def note(self, field: str, text: str) -> None:
        """Note one problem of ``field``: the fault, then the remedy."""
        where = ".".join(part for part in (self.where, field) if part)
        self._problems.append(f"{where}: {text}")

    def has(self, field: str) -> bool:
        """Return whether ``field`` is in the table, right or wrong."""
        self._asked.add(field)
        return field in self._table

    def text(self, field: str, *, required: bool = False) -> str | None:
        """Return a text that is not empty."""
        value = self._typed(field, str, "a text", required=required)
        if value == "":
            self.note(field, "empty; want a text; fill it in or leave the field out")
            return None
        return cast("str | None", value)

    def name(self, field: str, *, required: bool = False) -> str | None:
        """Return a text that is a safe name."""
        value = self.text(field, required=required)
        problem = name_problem(value) if value is not None else None
        if problem is not None:
            self.note(field, problem)
            return None
        return value

    def choice(self, field: str, choices: Sequence[str]) -> str:
        """Return one of a few texts; the first of them if absent or wrong."""
        value = self.text(field)
        if value is None or value in choices:
            return value or choices[0]
        self.note(field, f"got {value!r}; want {' or '.join(map(repr, choices))}; change it")
        return choices[0]

    def integer(self, field: str, low: int, high: int, *, required: bool = False) -> int | None:
        """Return a whole number in ``[low, high]``."""
        value = self._typed(field, int, f"a whole number of {low} to {high}", required=required)
        if isinstance(value, int) and not low <= value <= high:
            self.note(field, f"out of range; got {value}; want {low} to {high}; change the number")
            return None
        return cast("int | None", value)

    def duration_ms(self, field: str, default_ms: int = 0) -> int:
        """Return the milliseconds of a duration text; ``default_ms`` if absent or wrong."""
        text = self.text(field)
        if text is None:
            return default_ms
        try:
            duration_ms = parse_duration_ms(text)
        except ValueError as error:
            self.note(field, f"not a duration; {error}")
            return default_ms
        if duration_ms > DURATION_MS_MAX:
            days_max = DURATION_MS_MAX // DAY_MS
            self.note(field, f"too long; got {text!r}; want at most '{days_max}d'; shorten it")
            return default_ms
        return duration_ms

    def texts(self, field: str, *, required: bool = False) -> tuple[str, ...] | None:
        """Return a list of texts with at least one item and none twice."""
        value = self._typed(field, list, "a list of texts", required=required)
        if value is None:
            return None
        items = cast("list[object]", value)
        if not items or not all(isinstance(item, str) and item for item in items):
            self.note(field, f"got {shown(items)}; want a list of at least one text; fill it in")
            return None
        texts = cast("list[str]", items)
        twice = sorted({text for text in texts if texts.count(text) > 1})
        if twice:
            self.note(field, f"listed twice: {', '.join(twice)}; keep one of each")
            return None
        return tuple(texts)

    def raw(self, field: str) -> object:
        """Return the value as TOML has it, or None."""
        self._asked.add(field)
        return self._table.get(field)

    def names(self, field: str) -> dict[str, object]:
        """Return a table whose names are to be safe ones; unsafe names are noted, and kept."""
        value = self._typed(field, dict, "a table", required=True)
        table = cast("dict[str, object]", value or {})
        if value is not None and not table:
            self.note(field, "empty; want at least one entry; declare one")
        for name in table:
            problem = name_problem(name)
            if problem is not None:
                self.note(f"{field}.{name}", problem)
        return table

    def sections(self, field: str) -> dict[str, Section]:
        """Return the tables of a table of tables by name."""
        found = {}
        for name, table in self.names(field).items():
            if isinstance(table, dict):
                found[name] = Section(self._problems, self._inner(f"{field}.{name}"), table)
            else:
                self.note(f"{field}.{name}", _mistyped(table, f"a table [{field}.{name}]"))
        return found

    def items(self, field: str) -> list[Section]:
        """Return the tables of a list of tables, in order."""
        value = self._typed(field, list, "a list of tables", required=False)
        found = []
        for index, table in enumerate(cast("list[object]", value or [])):
            entry = f"{field}[{index}]"
            if isinstance(table, dict):
                found.append(Section(self._problems, self._inner(entry), table))
            else:
                self.note(entry, _mistyped(table, "a table {field=..., op=..., value=...}"))
        return found

    def inside(self, field: str, table: Mapping[str, object]) -> Section:
        """Return the section of ``table``, which is ``field`` of this one."""
        return Section(self._problems, self._inner(field), table)

    def path(self, field: str, *, required: bool = False) -> Path | None:
        """Return the path that a text names."""
        text = self.text(field, required=required)
        try:
            return None if text is None else parse_path(text)
        except ValueError as error:
            self.note(field, f"not a path; {error}; correct it")
            return None

    def flag(self, field: str) -> bool:
        """Return a boolean; false if it is absent or wrong."""
        return self._typed(field, bool, "true or false", required=False) is True

    def refuse(self, field: str, text: str) -> None:
        """Note ``text`` if this section has ``field``, which does not belong here."""
        if self.has(field):
            self.note(field, text)

    def finish(self) -> None:
        """Note every field that nobody asked for."""
        for field in self._table:
            if field not in self._asked:
                self.note(field, f"unknown field; {nearest(field, self._asked)}")

    def _inner(self, field: str) -> str:
        return f"{self.where}.{field}" if self.where else field

    def _typed(self, field: str, kind: type, want: str, *, required: bool) -> object | None:
        value = self.raw(field)
        if value is None:
            if required:
                self.note(field, f"missing; want {want}; add it")
            return None
        # bool is an int to Python, and never a number to a reader of the map.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            self.note(field, _mistyped(value, want))
            return None
        return value


def shown(value: object) -> str:
    """Return ``value`` short enough for a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def _mistyped(value: object, want: str) -> str:
    return f"wrong type; got {shown(value)}; want {want}; change the value"
