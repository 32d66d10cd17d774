"""The text of a proposed map: TOML with comments that say why each thing was chosen."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import msgspec

from app.host.printable import printable
from app.mapfile.disorder import rounded_up
from app.mapfile.profile import Values
from app.mapfile.propose import Proposal, Tree, shown
from tables.model.layer import FUTURE_SKEW_MS
from tables.model.path import path_text
from tables.model.window import time_text

PARTITIONS = 4
"""Partitions of a topic that is made by ``map apply``; a number of later ones is hard to raise."""

RECORD_BYTES_MAX = 1 << 20
LISTED_MAX = 20
_OPTION_VALUES = {"zone": '"UTC"', "on_error": '"null"'}
_OPTION_WORDS = {"text": "written as texts", "whole": "written as floats"}
_UNITS = {
    "text": "texts of RFC 3339",
    "ms": "milliseconds since 1970",
    "s": "seconds since 1970",
}


def proposal_text(proposal: Proposal, now_ms: int) -> str:
    """Return the map file of a proposal; events past ``now_ms`` are of the future."""
    parts = [
        _head(proposal),
        _source(proposal, now_ms),
        _fields(proposal),
        *(_tree(proposal, tree) for tree in proposal.trees),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def toml_text(text: str) -> str:
    """Return a text as TOML: without escapes in single quotes, if that can be."""
    if '"' in text and "'" not in text and text.isprintable():
        return f"'{text}'"
    # JSON's escapes are TOML's too; only DEL needs one more there.
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _head(proposal: Proposal) -> Iterator[str]:
    sample = proposal.sample
    first = "the first " if sample.is_cut else ""
    yield (
        f"# Proposed by `map init` from {first}{_count(len(sample.events), 'event')} of"
        f" {printable(sample.origin)},"
    )
    yield f"# of {time_text(proposal.ms_from)} to {time_text(proposal.ms_to)}."
    if sample.refused:
        yield f"# Not JSON objects, and left out: {_count(sample.refused, 'line')}."
    yield "# It is a beginning: read the comments, change names, keys and measures, then run"
    yield "# `map check`, `map show` and `map apply`. docs/formats/map.md describes every field."
    yield ""
    yield "revision = 1  # raise it with every change, once the map is applied"
    yield f'name = "{proposal.name}"'


def _source(proposal: Proposal, now_ms: int) -> Iterator[str]:
    sample, roles = proposal.sample, proposal.roles
    events = len(sample.events)
    yield f"[sources.{proposal.name}]"
    yield f"topic = {toml_text(proposal.topic)}"
    if sample.partitions is None:
        yield f"partitions = {PARTITIONS}  # a file does not have it: set it to that of the topic"
    else:
        yield f"partitions = {sample.partitions}  # as the topic has"
    form = " as texts" if "text" in roles.time.options else ""
    yield f"# The time: {_UNITS[roles.time.unit]}{form}, in every event."
    if "zone" in roles.time.options:
        yield "# These have no offset: are they in UTC? If not, give the offset, as '+01:00'."
    if roles.time.values.path[0] in sample.assumed_utc:
        yield "# They have no offset in the file, and were read as UTC. If they are local, write"
        yield "# the offset into the file: all windows depend on it."
    yield _role("time", roles.time.values, roles.time.options)
    if roles.time.unit != "text":
        yield f'time_unit = "{roles.time.unit}"'
    yield from _type(proposal)
    if roles.id is not None:
        yield f"# The id: distinct in all {events:,} events by its name; repeats are dropped."
        yield _role("id", roles.id)
    else:
        yield "# No id was found: events that are sent twice are counted twice."
    if sample.has_arrays:
        yield "arrays = true  # a record may be a JSON array of events"
    if sample.is_packed:
        yield 'compression = "gzip"  # the values of records are packed'
    keyed = proposal.trees[0].key
    yield "# If producers choose the partition by fields of the key, say so: it saves a topic each."
    yield f"# keyed_by = {_list(keyed[:1])}"
    if sample.largest_bytes > RECORD_BYTES_MAX:
        size = min(12 * RECORD_BYTES_MAX, 2 * sample.largest_bytes)
        yield f"record_bytes_max = {size}  # the largest event has {sample.largest_bytes:,} bytes"
    if proposal.ms_to > now_ms + FUTURE_SKEW_MS:
        yield "# The newest event is in the future: those further ahead of the clock than this are"
        yield "# set aside. Raise it only if such events are wanted."
    else:
        yield "# No event is in the future. Events further ahead of the clock are set aside."
    yield f'# future_skew = "{FUTURE_SKEW_MS // 60_000}m"'


def _role(role: str, values: Values, options: Iterable[str] = ()) -> str:
    if len(values.path) == 1 and values.path[0] and not options:
        return f"{role} = {toml_text(str(values.path[0]))}"
    more = "".join(f", {name} = {_OPTION_VALUES.get(name, 'true')}" for name in options)
    return f"{role} = {{path = {toml_text(path_text(values.path))}{more}}}"


def _type(proposal: Proposal) -> Iterator[str]:
    roles = proposal.roles
    if roles.is_typed:
        yield f"# The type: {_distinct(roles.type)}, a text in every event."
    else:
        yield "# No text is called type, kind, event or action and has few values: this one, in"
        yield f"# every event with {_distinct(roles.type)}, is used for it, and"
        yield "# layers select every value (**). Better: have producers add a type, such as"
        yield '# "type": "reading", and name it here.'
    yield _role("type", roles.type)


def _fields(proposal: Proposal) -> Iterator[str]:
    events = len(proposal.sample.events)
    yield f"[sources.{proposal.name}.fields]"
    keys = {name for tree in proposal.trees for name in tree.key}
    for name, values in proposal.fields.items():
        yield f"# {'A key' if name in keys else 'Measured'}: {_found(values, events)}."
        yield _field(name, values)
    if proposal.unused:
        yield "# Not used by the layers below; remove the # to use one:"
    for name, values in proposal.unused.items():
        yield f"# {_field(name, values)}"
        yield f"#     {_found(values, events)}"
    if proposal.left_out:
        yield "# Left out, because a field has values of one type:"
    for values, reason in proposal.left_out:
        yield f"#     {shown(values)}: {printable(reason)}"


def _field(name: str, values: Values) -> str:
    if values.path == (name,) and not values.options:
        return f'{name} = "{values.type}"'
    path = "" if values.path == (name,) else f"path = {toml_text(path_text(values.path))}, "
    options = "".join(
        f", {option} = {_OPTION_VALUES.get(option, 'true')}" for option in values.options
    )
    return f'{name} = {{{path}type = "{values.type}"{options}}}'


def _found(values: Values, events: int) -> str:
    """Return the number of distinct values, the range of numbers, and the share of nulls."""
    words = _distinct(values)
    if values.type in ("int", "float"):
        words += f", {min(values.scalars):g} to {max(values.scalars):g}"
    kinds = [kind for kind in values.kinds if kind != "null"]
    if len(kinds) > 1:
        words += f", {' and '.join(sorted(kinds))}"
    elif values.options:
        words += f", {_OPTION_WORDS[values.options[0]]}"
    absent = events - len(values.rows)
    if absent:
        forms = [
            "null",
            "absent",
            *(printable(repr(text[:20])) for text in values.placeholders[:3]),
        ]
        words += (
            f", {', '.join(forms[:-1])} or {forms[-1]} in {100 * absent / events:.2g} % of events"
        )
    return words


def _tree(proposal: Proposal, tree: Tree) -> Iterator[str]:
    base, window = tree.layers[0]
    events = tree.types.total()
    yield from _types_of(tree, events)
    yield f"# The key has {_count(tree.keys_seen, 'value')} in these events."
    yield f"[layers.{base}]"
    yield f'source = "{proposal.name}"'
    yield f"events = {_list(tree.events)}"
    yield f"key = {_list(tree.key)}"
    yield f'window = "{window}"  # for events of {_span(proposal.ms_to - proposal.ms_from)}'
    yield from _lateness(proposal)
    yield "measures = ["
    yield '    "count",'
    for name in tree.measured:
        yield (
            "    " + ", ".join(f'"{kind}({name})"' for kind in ("mean", "sum", "min", "max")) + ","
        )
    yield "]"
    for (finer, _), (name, length) in itertools.pairwise(tree.layers):
        key = tree.key[:1] if length == "month" else tree.key
        yield ""
        yield f"[layers.{name}]"
        yield f'from = "{finer}"'
        yield f"key = {_list(key)}"
        yield f'window = "{length}"'


def _types_of(tree: Tree, events: int) -> Iterator[str]:
    if tree.events != ["**"]:
        yield f"# {_count(events, 'event')} of this type."
        return
    yield f"# All {_count(events, 'event')}, of whatever type:"
    for kind, count in tree.types.most_common(LISTED_MAX):
        yield f"#     {printable(kind[:60])}: {count:,}"
    if len(tree.types) > LISTED_MAX:
        yield f"#     and {len(tree.types) - LISTED_MAX:,} more"


def _lateness(proposal: Proposal) -> Iterator[str]:
    disorder = proposal.disorder
    if disorder.is_unsorted and proposal.sample.partitions is None:
        # With less, most of the events that the map was made from would be too late.
        longest = rounded_up(disorder.max_ms)
        yield f"# The file is not in order of time: {longest} includes all its events, and keeps"
        yield "# windows open as long. Better: sort the file by time, and propose again."
        yield f'max_out_of_orderness = "{longest}"'
        yield 'allowed_lateness = "0s"'
        return
    if disorder.is_unsorted:
        yield "# The sample is not in an order of time, so it does not show how late events come."
        yield 'max_out_of_orderness = "1m"'
        yield 'allowed_lateness = "1h"'
        return
    if disorder.max_ms:
        behind = _count(disorder.events_behind, "event")
        yield f"# Disorder: {behind} of the sample came behind a later one, by at most"
        yield f"# {disorder.max_ms:,} ms; 99.9 % of all events by at most {disorder.most_ms:,} ms."
    else:
        yield "# The sample is in order of time. If the stream is not, raise these."
    yield f'max_out_of_orderness = "{rounded_up(disorder.most_ms)}"'
    yield f'allowed_lateness = "{rounded_up(disorder.max_ms)}"'


def _span(ms: int) -> str:
    for unit, unit_ms in (("days", 86_400_000), ("hours", 3_600_000)):
        if ms >= 2 * unit_ms:
            return f"{ms / unit_ms:,.0f} {unit}"
    return _count(round(ms / 60_000), "minute")


def _distinct(values: Values) -> str:
    return _count(values.distinct, "distinct value")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(toml_text(text) for text in texts)}]"
