"""A proposal of a map for a sample of events: fields, and trees of layers with keys and measures.

``proposal_text`` writes it as TOML. Any sample with a time and a text gives a map that
``load_map`` accepts and that refuses no event of the sample.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from agents.fold.layers import KEY_BYTES_MAX
from app.host.printable import printable
from app.mapfile.disorder import Disorder, disorder_of
from app.mapfile.profile import Values, profile_of, words_of
from app.mapfile.roles import Roles, is_time_like, roles_of
from app.mapfile.sample import Sample
from tables.archive.cassandra.cql import TABLE_NAME_CHARS_MAX
from tables.measures.registry import MEASURES
from tables.model.path import Path, path_text

NAME_CHARS_MAX = 24
"""The name of a proposed map: its layers' tables have it as a prefix."""

MEASURED_MAX = 12
"""Numbers that are measured: each has five columns in every row of the archive."""

TREES_MAX = 5
"""Types of events with layers of their own; of more types the layers hold all events."""

KEYS_MAX = 2
VALUES_OF_KEY_MAX = 10_000
EVENTS_A_VALUE_MIN = 5
VALUES_ALLOWED_MIN = 20
"""Distinct values that a key may always have, however small the sample."""

_HOUR_MS = 3_600_000
_TAKEN = {"partition", "record", "row", "time", "time_before", "type", "window_start"}
_UNREADABLE = re.compile(r'["\\\x00-\x1f]')
_LEVEL = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


@dataclasses.dataclass(slots=True)
class Tree:
    """A base layer and the coarser layers above it.

    ``layers`` has the name and window of each, the base layer first. ``types`` are those of its
    events, with how many each has.
    """

    events: list[str]
    types: Counter[str]
    key: list[str]
    keys_seen: int
    measured: list[str]
    layers: list[tuple[str, str]]


@dataclasses.dataclass(slots=True)
class Proposal:
    """A proposed map; ``fields`` has the declared ones by name, ``unused`` others that fit.

    ``left_out`` has values that no field can have, each with the reason. ``ms_from`` and ``ms_to``
    are the first and last time of an event.
    """

    sample: Sample
    name: str
    topic: str
    roles: Roles
    fields: dict[str, Values]
    unused: dict[str, Values]
    left_out: list[tuple[Values, str]]
    trees: list[Tree]
    disorder: Disorder
    ms_from: int
    ms_to: int


def propose(sample: Sample, name: str, topic: str) -> Proposal:
    """Return the proposal for a sample.

    Args:
        sample: one event or more.
        name: the map's, a safe name of at most ``NAME_CHARS_MAX``.
        topic: the source's.

    Raises:
        SampleError: the events have no time or no type.
    """
    root = profile_of(sample)
    found = list(root.walk())
    usable = [one for one in found if one.type is not None and _is_readable(one)]
    roles = roles_of(usable, len(sample.events))
    left_out = [(one, reason) for one in found if (reason := _why_left_out(one)) is not None]
    own = [roles.time.values, roles.id]
    others = [one for one in usable if all(one is not role for role in own)]
    measured = [one for one in others if _is_number(one)][:MEASURED_MAX]
    if root.is_wide:
        left_out.append((root, f"more than {len(root.inner)} names; the others were not read"))
    names = _names(measured, others)
    drafts = _drafts(roles, others, measured)
    used: dict[str, Values] = {}
    trees = []
    layer_names: set[str] = set()
    ms_from, ms_to = min(roles.time.times_ms), max(roles.time.times_ms)
    for draft in drafts:
        for one in (*draft.key, *draft.measured):
            used[names[one.path]] = one
        key = [names[one.path] for one in draft.key]
        numbers = [names[one.path] for one in draft.measured]
        layers = _layers(draft, windows_of(ms_to - ms_from), len(name), layer_names)
        trees.append(Tree(draft.events, draft.types, key, draft.keys_seen, numbers, layers))
    # The type is declared only as part of a key.
    unused = {
        names[one.path]: one
        for one in others
        if names[one.path] not in used and one is not roles.type
    }
    disorder = disorder_of(roles.time.times_ms, sample.starts)
    return Proposal(
        sample, name, topic, roles, used, unused, left_out, trees, disorder, ms_from, ms_to
    )


def safe_name(text: str, chars_max: int = 40) -> str:
    """Return a safe name of the map file for any text; empty if it has no letter to keep."""
    name = "_".join(words_of(text)).lstrip("0123456789_")
    return name[:chars_max].rstrip("_")


def windows_of(span_ms: int) -> list[str]:
    """Return windows, the finest first, that suit events of a span."""
    if span_ms < 6 * _HOUR_MS:
        return ["1m", "1h", "day", "month"]
    if span_ms < 7 * 24 * _HOUR_MS:
        return ["5m", "1h", "day", "month"]
    return ["1h", "day", "month"]


@dataclasses.dataclass(slots=True)
class _Draft:
    events: list[str]
    types: Counter[str]
    key: list[Values]
    keys_seen: int
    measured: list[Values]


def _is_readable(one: Values) -> bool:
    """Return whether the decoder of JSON accepts the names of a path (``msgspec.defstruct``)."""
    return not any(map(_UNREADABLE.search, map(str, one.path)))


def _why_left_out(one: Values) -> str | None:
    kinds = [kind for kind, _ in one.kinds.most_common() if kind != "null"]
    if one.is_wide:
        return f"an object of more than {len(one.inner)} names, which look like data"
    if one.type is not None:
        reason = "a name on its path has a quote, a backslash or a control character"
        return None if _is_readable(one) else reason
    if len(kinds) > 1:
        return f"of mixed types: {', '.join(f'{one.kinds[kind]:,} {kind}' for kind in kinds)}"
    alone = kinds[0] if kinds else "null"
    reasons = {
        "null": "null in all events",
        "array": "an array; an item of it can be a field: {path = 'NAME[0]', type = ...}",
        "object": None,
    }
    return reasons.get(alone, f"of a type that no field has: {alone}")


def _is_number(one: Values) -> bool:
    """Return whether values are for measuring: not numbers that name a thing, or a time."""
    if one.type == "float":
        return True
    return one.type == "int" and not (one.is_id_like or is_time_like(one))


def _names(measured: list[Values], others: list[Values]) -> dict[Path, str]:
    """Return a safe name of each value by its path, measured ones first.

    No name is that of a measure, because answers have both.
    """
    names: dict[Path, str] = {}
    taken = {kind.name for kind in MEASURES.values()} | _TAKEN
    for one in measured:
        name = names[one.path] = _unique(_name_parts(one), taken)
        taken.add(name)
        taken |= {f"{kind.name}_{name}" for kind in MEASURES.values()}
    for one in others:
        if one.path not in names:
            names[one.path] = _unique(_name_parts(one), taken)
            taken.add(names[one.path])
    return names


def _name_parts(one: Values) -> list[str]:
    """Return names from the last step alone to the whole path, each safe."""
    steps = [safe_name(str(step)) for step in one.path]
    known = [step for step in steps if step]
    found = [safe_name("_".join(known[-count:])) for count in range(1, len(known) + 1)]
    if not steps[-1]:
        found = []
    if not found:
        found = [safe_name(f"field_{'_'.join(known)}")]
    return [*found, safe_name(f"event_{found[0]}")]


def _unique(names: Sequence[str], taken: set[str]) -> str:
    for name in names:
        if name not in taken and not name.startswith("key_"):
            return name
    stem = names[-1][:34]
    number = 2
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def _drafts(roles: Roles, others: list[Values], measured: list[Values]) -> list[_Draft]:
    """Return the trees' events, keys and numbers: a tree for each type, up to ``TREES_MAX``."""
    of_type = Counter(roles.type.scalars)
    is_apart = roles.is_typed and len(of_type) <= TREES_MAX and all(map(_LEVEL.fullmatch, of_type))
    groups = [Counter({kind: count}) for kind, count in of_type.most_common()]
    drafts = []
    for types in groups if is_apart else [of_type]:
        rows = None
        if is_apart and len(groups) > 1:
            rows = {row for row, kind in enumerate(roles.type.scalars) if kind in types}
        scalars = {id(one): _within(one, rows) for one in others}
        # Layers of several types have the type in their key: else no answer could tell them apart.
        given = [] if is_apart or len(types) == 1 else [roles.type]
        skipped = {id(one) for one in (*measured, roles.type)}
        candidates = [one for one in others if id(one) not in skipped]
        key = _key(types.total(), given, candidates, scalars) or [roles.type]
        seen = _distinct(key, scalars)
        numbers = [one for one in measured if scalars[id(one)]]
        drafts.append(_Draft(list(types) if is_apart else ["**"], types, key, seen, numbers))
    return drafts


def _within(one: Values, rows: set[int] | None) -> list[object]:
    if rows is None:
        return one.scalars
    return [value for row, value in zip(one.rows, one.scalars, strict=True) if row in rows]


def _key(
    events: int,
    given: Sequence[Values],
    candidates: Sequence[Values],
    scalars: dict[int, list[object]],
) -> list[Values]:
    """Return the key of events: fields that all of them have, those of most events a value first.

    The fields of ``given`` come before ``candidates`` if they have few values. A field that is
    another name of those before it, such as ``login`` behind ``user_id``, is left out.
    """
    values_max = min(VALUES_OF_KEY_MAX, max(VALUES_ALLOWED_MIN, events // EVENTS_A_VALUE_MIN))
    found: list[tuple[tuple[bool, bool, int, int], Values]] = []
    for one in candidates:
        values = scalars[id(one)]
        if one.type == "float" or len(values) != events:
            continue
        if one.type == "int" and not one.is_id_like:
            continue
        distinct = set(values)
        too_long = one.type == "string" and any(
            len(str(value).encode()) > KEY_BYTES_MAX for value in distinct
        )
        if len(distinct) > values_max or too_long or is_time_like(one):
            continue
        rank = (len(distinct) == 1, not one.is_id_like, len(distinct), len(one.path))
        found.append((rank, one))
    key = [one for one in given if len(set(scalars[id(one)])) <= values_max]
    for (is_one_value, *_), one in sorted(found, key=lambda pair: pair[0]):
        if key and is_one_value:
            break
        before, after = _distinct(key, scalars), _distinct([*key, one], scalars)
        is_other_name = before == after == _distinct([one], scalars)
        if len(key) < KEYS_MAX and after <= values_max and not is_other_name:
            key.append(one)
    return key


def _distinct(fields: Sequence[Values], scalars: dict[int, list[object]]) -> int:
    return len(set(zip(*(scalars[id(one)] for one in fields), strict=True)))


def _layers(
    draft: _Draft, windows: Iterable[str], name_chars: int, taken: set[str]
) -> list[tuple[str, str]]:
    """Return names and windows of a tree's layers; their tables' names are short enough."""
    # Behind the map's name come an underscore, the stem, and at most "_month" behind that.
    chars = min(34, TABLE_NAME_CHARS_MAX - name_chars - len("__month"))
    stem = "events" if draft.events == ["**"] else safe_name(draft.events[0], chars)
    stem = stem or "events"
    unique, number = stem, 2
    while unique in taken:
        unique = f"{stem[: chars - 3]}_{number}"
        number += 1
    taken.add(unique)
    return [(f"{unique}_{window}", window) for window in windows]


def shown(one: Values) -> str:
    """Return the text of a path, safe to show."""
    return printable(path_text(one.path)) or "the event"
