"""The layers of a map file, with their checks: base layers, and those made `from` finer ones."""

from __future__ import annotations

import dataclasses

from app.mapfile.measures import (
    measured_types,
    read_conditions,
    read_events,
    read_measures,
    undeclared,
)
from app.mapfile.section import DURATION_MS_MAX, Section, nearest, shown
from app.mapfile.sources import PARTITIONS_MAX, DraftSource
from tables.measures.registry import accumulators_of
from tables.model.layer import (
    Accumulator,
    Condition,
    FeedFormat,
    FieldType,
    KeyField,
    Layer,
    Measure,
)
from tables.model.window import DAY_MS, YEAR, Window

PARTITIONS_DEFAULT_MAX = 8
"""A layer topic gets contributions, fewer by far than events; more partitions are set by hand."""

SLOTS_MAX = 1_024
TTL_MS_MAX = 630_720_000_000
"""20 years, the longest TTL of Cassandra (``ExpirationDateOverflowHandling``, MAX_TTL)."""

_ONLY_FINEST = {
    "events": "a coarser layer holds the events of its finer layer",
    "where": "a coarser layer holds the events of its finer layer",
    "max_out_of_orderness": "a coarser layer follows the announcements of its finer layer",
    "allowed_lateness": "a coarser layer follows the announcements of its finer layer",
}


@dataclasses.dataclass(slots=True)
class Draft:
    """A layer as far as it could be read; None is a fault that has been noted."""

    name: str
    section: Section
    source: DraftSource | None = None
    finer: Draft | None = None
    key: tuple[KeyField, ...] | None = None
    window: Window | None = None
    measures: tuple[Measure, ...] | None = None
    types: dict[str, FieldType] = dataclasses.field(default_factory=dict)
    accumulators: tuple[Accumulator, ...] | None = None
    partitions: int | None = None
    events: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    max_out_of_orderness_ms: int = 0
    allowed_lateness_ms: int = 0
    archive_ttl_ms: int = 0
    slots: int = 8
    merged: bool = False
    publish: FeedFormat | None = None

    def build(self) -> Layer:
        """Return the layer of a draft without problems."""
        assert self.key is not None
        assert self.window is not None
        assert self.measures is not None
        assert self.accumulators is not None
        assert self.partitions is not None
        return Layer(
            name=self.name,
            key=self.key,
            window=self.window,
            measures=self.measures,
            accumulators=self.accumulators,
            max_out_of_orderness_ms=self.max_out_of_orderness_ms,
            allowed_lateness_ms=self.allowed_lateness_ms,
            partitions=self.partitions,
            source=self.source.name if self.source else None,
            finer=self.finer.name if self.finer else None,
            events=self.events,
            where=self.where,
            archive_ttl_ms=self.archive_ttl_ms,
            slots=self.slots,
            merged=self.merged,
            publish=self.publish,
        )


def read_layers(section: Section, sources: dict[str, DraftSource]) -> list[Draft]:
    """Return the layers, each directly followed by those made from it; problems are noted.

    The order is that of the names, so that maps are equal whatever the order of their sections.
    """
    drafts = {
        name: Draft(name, table) for name, table in sorted(section.sections("layers").items())
    }
    parents = {name: draft.section.text("from") for name, draft in drafts.items()}
    _note_cycles(drafts, parents)
    for name, draft in drafts.items():
        _link(draft, parents[name], drafts, sources)
    ordered: list[Draft] = []
    pending = [draft for draft in reversed(drafts.values()) if draft.finer is None]
    while pending:
        draft = pending.pop()
        ordered.append(draft)
        pending += [one for one in reversed(drafts.values()) if one.finer is draft]
    for draft in ordered:
        if draft.section.has("from"):
            _read_coarser(draft)
        else:
            _read_base(draft)
        draft.section.finish()
    return ordered


def _note_cycles(drafts: dict[str, Draft], parents: dict[str, str | None]) -> None:
    """Note each cycle once, at its first layer by name, and remove its links."""
    for name, draft in drafts.items():
        path = [name]
        while (parent := parents.get(path[-1])) is not None and parent not in path:
            path.append(parent)
        if parent == name:
            draft.section.note(
                "from",
                f"the layers go in a circle: {' -> '.join([*path, name])}; make one of them read a "
                "source",
            )
            parents.update(dict.fromkeys(path))


def _link(
    draft: Draft, parent: str | None, drafts: dict[str, Draft], sources: dict[str, DraftSource]
) -> None:
    section = draft.section
    named = section.text("source")
    if section.has("from"):
        section.refuse(
            "source", "a layer reads a source or is made from a finer layer; leave one of them out"
        )
        if parent is not None and parent not in drafts:
            section.note("from", f"unknown layer {parent!r}; {nearest(parent, drafts)}")
        draft.finer = drafts.get(parent) if parent is not None else None
    elif named is not None:
        if named not in sources:
            section.note("source", f"unknown source {named!r}; {nearest(named, sources)}")
        draft.source = sources.get(named)
    elif not section.has("source"):
        section.note("source", "missing; want 'source' or 'from'; name the layer's input")


def _read_base(draft: Draft) -> None:
    section, source = draft.section, draft.source
    _read_common(draft)
    draft.events = read_events(section)
    draft.max_out_of_orderness_ms = section.duration_ms("max_out_of_orderness")
    draft.allowed_lateness_ms = section.duration_ms("allowed_lateness")
    names = section.texts("key", required=True)
    draft.measures = read_measures(section, required=True)
    if source is None:
        # Without the source no field can be checked, but the conditions' own fields are known.
        section.has("where")
        section.has("partitions")
        return
    draft.where = read_conditions(section, source.fields, source.name)
    _read_input(draft, names, source)
    if names is not None:
        draft.key = _base_key(section, names, source)
    if draft.measures is not None:
        draft.types = measured_types(section, draft.measures, source.fields, source.name)
        draft.accumulators = accumulators_of(draft.measures, draft.types)
    _note_measured_key(draft, names or ())
    _note_answer_clash(draft, names or ())


def _read_input(draft: Draft, names: tuple[str, ...] | None, source: DraftSource) -> None:
    """Decide whether cells are complete in each source partition, or only after a merge stage.

    They are complete if the source is keyed by fields that are part of the layer's key: then all
    events of a cell are in one partition.
    """
    section = draft.section
    if names is None or source.keyed_by is None:
        # Whether the layer has a topic of its own is unknown until that is mended.
        section.has("partitions")
        return
    draft.merged = not (source.keyed_by and set(source.keyed_by) <= set(names))
    if not draft.merged:
        section.refuse(
            "partitions",
            f"a layer whose source is keyed by part of its key ({', '.join(source.keyed_by)}) has "
            "as many as its source; leave it out or set the source's",
        )
        draft.partitions = source.partitions
        return
    draft.partitions = section.integer("partitions", 1, PARTITIONS_MAX)
    if draft.partitions is None and source.partitions is not None:
        draft.partitions = min(PARTITIONS_DEFAULT_MAX, source.partitions)


def _read_coarser(draft: Draft) -> None:
    section, finer = draft.section, draft.finer
    _read_common(draft)
    for field, reason in _ONLY_FINEST.items():
        section.refuse(field, f"{reason}; leave it out here and set it on the layer with a source")
    draft.partitions = section.integer("partitions", 1, PARTITIONS_MAX)
    names = section.texts("key", required=True)
    named = read_measures(section, required=False)
    if finer is None:
        draft.measures = named
        return
    if draft.partitions is None and finer.partitions is not None:
        draft.partitions = min(PARTITIONS_DEFAULT_MAX, finer.partitions)
    if names is not None and finer.key is not None:
        draft.key = _coarser_key(section, names, finer)
    if draft.window is not None and finer.window is not None:
        _check_nesting(draft, draft.window, finer, finer.window)
    draft.types = finer.types
    draft.measures = named if section.has("measures") else finer.measures
    if draft.measures is not None and finer.accumulators is not None:
        _note_underivable(draft, draft.measures, finer)
        draft.accumulators = accumulators_of(draft.measures, draft.types)
    _note_answer_clash(draft, names or (), finer.measures or ())


def _read_common(draft: Draft) -> None:
    section = draft.section
    draft.window = _read_window(section)
    draft.archive_ttl_ms = section.duration_ms("archive_ttl")
    if draft.archive_ttl_ms % 1_000:
        section.note("archive_ttl", "not in whole seconds, as Cassandra counts it; round it")
    if draft.archive_ttl_ms > TTL_MS_MAX:
        section.note("archive_ttl", "too long; want at most '7300d', or '0s' to keep; shorten it")
    draft.slots = section.integer("slots", 1, SLOTS_MAX) or draft.slots
    draft.publish = _read_publish(section)


def _read_publish(section: Section) -> FeedFormat | None:
    """Return the form of the layer's feed; ``true`` is JSON."""
    value = section.raw("publish")
    # By identity: 1 and 1.0 are equal to true.
    if value is None or value is False:
        return None
    if value is True or value == "json":
        return "json"
    if value == "arrow":
        return "arrow"
    section.note(
        "publish",
        f"no form of a feed; got {shown(value)}; want true, 'json' or 'arrow'; change the value or "
        "leave the field out",
    )
    return None


def _read_window(section: Section) -> Window | None:
    text = section.text("window", required=True)
    if text is None:
        return None
    try:
        window = Window.parse(text)
    except ValueError as error:
        section.note("window", f"not a window; {error}, 'day', 'month' or 'year'; change it")
        return None
    if window.length_ms > DURATION_MS_MAX:
        days_max = DURATION_MS_MAX // DAY_MS
        section.note("window", f"too long; got {text!r}; want at most '{days_max}d'; shorten it")
        return None
    return window


def _base_key(
    section: Section, names: tuple[str, ...], source: DraftSource
) -> tuple[KeyField, ...] | None:
    key = []
    for name in names:
        kind = source.fields.get(name)
        if name not in source.fields:
            section.note("key", undeclared(name, source.fields, source.name))
        elif kind == "float":
            section.note(
                "key",
                f"cannot key by {name!r}: equal floats are a matter of rounding; got float; want "
                "string, int or bool; key by another field",
            )
        elif kind is not None:
            key.append(KeyField(name, kind))
    return tuple(key) if len(key) == len(names) else None


def _coarser_key(
    section: Section, names: tuple[str, ...], finer: Draft
) -> tuple[KeyField, ...] | None:
    assert finer.key is not None
    known = {field.name: field for field in finer.key}
    missing = [name for name in names if name not in known]
    if missing:
        section.note(
            "key",
            f"not part of the key of {finer.name}: {', '.join(missing)}; "
            f"{nearest(missing[0], known)}; leave it out here or add it to layers.{finer.name}.key",
        )
        return None
    return tuple(known[name] for name in names)


def _check_nesting(draft: Draft, window: Window, finer: Draft, inner: Window) -> None:
    if inner.nests_in(window):
        return
    if inner.is_calendar:
        want = "year here" if inner == YEAR else "month or year here"
    elif window.is_calendar:
        want = f"a length that divides a day for {finer.name}"
    else:
        want = f"a multiple of {inner} here"
    draft.section.note(
        "window",
        f"a window of {finer.name} ({inner}) may lie in two windows of this layer ({window}); "
        f"got {inner} in {window}; want {want}; change one of the two windows",
    )


def _note_underivable(draft: Draft, measures: tuple[Measure, ...], finer: Draft) -> None:
    assert finer.accumulators is not None
    stored = {acc.column for acc in finer.accumulators}
    for measure in measures:
        if measure.field is None or measure in (finer.measures or ()):
            continue
        needed = {acc.column for acc in accumulators_of([measure], finer.types)}
        if measure.field not in finer.types or not needed <= stored:
            text = f"{measure.kind}({measure.field})"
            draft.section.note(
                "measures",
                f"cannot compute {text} from the cells of {finer.name}; add {text} to "
                f"layers.{finer.name}.measures or leave it out here",
            )


def _note_measured_key(draft: Draft, names: tuple[str, ...]) -> None:
    """Note key fields that are measured too: a cell has them in its key column only."""
    measured = {measure.field for measure in draft.measures or ()}
    for name in names:
        if name in measured:
            draft.section.note(
                "measures",
                f"{name!r} is a key field, the same in all events of a cell; leave its measures "
                "out or take it out of the key",
            )


def _note_answer_clash(
    draft: Draft, names: tuple[str, ...], inherited: tuple[Measure, ...] = ()
) -> None:
    """Note key fields that are named like a measure; ``inherited`` ones are noted before."""
    answered = {measure.name for measure in draft.measures or ()}
    for name in names:
        if name in answered - {measure.name for measure in inherited}:
            draft.section.note(
                "key",
                f"{name!r} is the name of a measure of this layer too, and an answer has both; "
                "rename the field or leave the measure out",
            )
