"""The map as types: sources, layers, and the names that follow from them (topics, columns).

Everything here is plain data that the map file is read into after its checks; names are safe
identifiers, references resolve, windows nest. Only ``app.mapfile.load`` makes these.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from tables.model.path import Path
from tables.model.window import Window

KeyType = Literal["string", "int", "bool"]
FieldType = Literal["string", "int", "bool", "float"]
NumberType = Literal["int", "float"]
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in"]
SideKind = Literal["late", "dead"]
FeedFormat = Literal["json", "arrow"]
Scalar = str | int | float | bool

IDS_MAX = 2_000_000
"""The default of a source's ``ids_max``: some 100 MB of a partition."""

COMBINER_SUFFIX = ".partial"
"""Declared names have no dot, so no declared layer can have a combiner's name."""


class Field(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field of a source's events; ``float`` takes JSON integers too.

    ``path`` is its path in the event if that is not the top level's ``name``. An event
    without a ``required`` field is malformed. ``text`` takes the texts of numbers and booleans,
    ``whole`` takes floats without fraction as ``int``, ``digits`` takes integers as ``string``.
    With ``null_on_error`` a wrong value becomes null instead of voiding the event.
    Defaults are left out of a map's digest.
    """

    name: str
    type: FieldType
    path: Path = ()
    required: bool = False
    text: bool = False
    whole: bool = False
    digits: bool = False
    null_on_error: bool = False

    @property
    def converts(self) -> bool:
        """Whether it takes values of other types than its own."""
        return self.text or self.whole or self.digits or self.null_on_error

    @property
    def at(self) -> Path:
        """The path of its value in the event."""
        return self.path or (self.name,)


class RecordForm(msgspec.Struct, frozen=True, omit_defaults=True):
    """The format that a source declares: that of its records without a header ``content-type``.

    ``columns`` are the columns of CSV, empty if the first row of each record names them, and
    ``delimiter`` stands between values. ``schema`` is the Avro schema of every record as JSON,
    empty if records name one of the registry. ``descriptor`` is the descriptor set of Protobuf in
    base 64, ``message`` the full name of every record's message, and ``framed`` whether it stands
    behind a registry's frame. Defaults are left out of a map's digest.
    """

    name: Literal["csv", "avro", "protobuf"]
    columns: tuple[str, ...] = ()
    delimiter: str = ","
    schema: str = ""
    descriptor: str = ""
    message: str = ""
    framed: bool = False


FUTURE_SKEW_MS = 600_000
"""The default of the time that events may be ahead of their record's append time: clocks
that are set by NTP differ by less than a second, those of devices by minutes. One event that is
further ahead seals the windows of all others."""


class Source(msgspec.Struct, frozen=True):
    """A raw topic: the fields of time, type and id, the fields of its key, the needed fields.

    ``time_field``, ``type_field`` and ``id_field`` name fields of the top level, or are texts of
    ``time_path``, ``type_path`` and ``id_path`` if these are not empty.
    ``keyed_by`` are the fields whose values decide the partition; empty if producers promise
    nothing. ``time_unit_ms`` multiplies a time that is a number. ``future_skew_ms`` bounds event
    time minus append time. ``record_bytes_max`` bounds a record's value, ``inflated_bytes_max`` its
    Arrow buffers after they are inflated. ``unclassified`` says whether events that no layer
    selects become dead letters or are only counted. ``ids_max`` bounds the ids that a partition
    remembers if events have an id. ``time_text`` takes the texts of numbers as time,
    ``time_fraction`` numbers with a fraction, and ``time_offset`` is that of RFC 3339 texts without
    one (``Z`` or ``+HH:MM``; empty if these are malformed). ``arrays`` takes a JSON array as
    several events, ``compression`` values that are compressed once more. ``format`` is that of
    records without a header, None if their bytes decide. All of these decide content, so they
    belong to the map and not to a worker's settings.
    """

    name: str
    topic: str
    partitions: int
    time_field: str
    type_field: str
    fields: tuple[Field, ...]
    keyed_by: tuple[str, ...] = ()
    id_field: str | None = None
    time_unit_ms: int = 1
    future_skew_ms: int = FUTURE_SKEW_MS
    record_bytes_max: int = 1 << 20
    inflated_bytes_max: int = 16 << 20
    unclassified: Literal["dead", "count"] = "dead"
    idle_heartbeat_ms: int = 0
    ids_max: int = IDS_MAX
    time_path: Path = ()
    type_path: Path = ()
    id_path: Path = ()
    format: RecordForm | None = None
    time_text: bool = False
    time_fraction: bool = False
    time_offset: str = ""
    arrays: bool = False
    compression: Literal["", "gzip"] = ""

    @property
    def nullable(self) -> tuple[Field, ...]:
        """The fields of which a wrong value becomes null."""
        return tuple(field for field in self.fields if field.null_on_error)

    @property
    def time_at(self) -> Path:
        """The path of the time in an event."""
        return self.time_path or (self.time_field,)

    @property
    def type_at(self) -> Path:
        """The path of the type in an event."""
        return self.type_path or (self.type_field,)

    @property
    def id_at(self) -> Path | None:
        """The path of the id in an event; None if events have no id."""
        return None if self.id_field is None else self.id_path or (self.id_field,)

    @property
    def paths(self) -> list[Path]:
        """The paths in an event whose values the map reads, each once."""
        paths = [self.time_at, self.type_at, *(field.at for field in self.fields)]
        return list(dict.fromkeys([*paths, self.id_at] if self.id_at else paths))

    def field(self, name: str) -> Field:
        """Return the declared field ``name``."""
        return next(field for field in self.fields if field.name == name)


def needs_registry(source: Source) -> bool:
    """Return whether records of a source name schemas of a registry."""
    form = source.format
    return form is not None and form.name == "avro" and not form.schema


class Condition(msgspec.Struct, frozen=True):
    """One condition of a layer's filter; a null field is false. All conditions must hold."""

    field: str
    op: Operator
    value: Scalar | tuple[Scalar, ...]


class Measure(msgspec.Struct, frozen=True):
    """One measure of a layer: ``count`` has no field; the others skip events whose field is null.

    ``kind`` is a name of ``tables.measures.registry``.
    """

    kind: str
    field: str | None = None

    @property
    def name(self) -> str:
        """The name in answers and archive views: ``count``, ``mean_delay_min``."""
        return self.kind if self.field is None else f"{self.kind}_{self.field}"


class KeyField(msgspec.Struct, frozen=True):
    """One field of a layer's key. Its column in every frame and table is ``key_<name>``."""

    name: str
    type: KeyType

    @property
    def column(self) -> str:
        """The column in frames and in the archive."""
        return f"key_{self.name}"


class Accumulator(msgspec.Struct, frozen=True):
    """One stored column of a cell, from which measures are computed.

    ``kind`` is a name of ``tables.measures.registry``; ``type`` says whether the field is int or
    float. The column is ``<kind>_<field>``, or ``events`` for the count of all events.
    """

    kind: str
    field: str | None
    type: NumberType

    @property
    def column(self) -> str:
        """The column in frames and in the archive."""
        return self.kind if self.field is None else f"{self.kind}_{self.field}"


EVENTS = Accumulator("events", None, "int")
"""The number of all events, which every cell has."""


class Layer(msgspec.Struct, frozen=True):
    """A type of event over a size of time window, or a coarsening of a finer layer.

    Exactly one of ``source`` and ``finer`` is set. ``events`` and ``where`` belong to base layers.
    ``merged`` is true of a base layer whose source is not keyed by part of its key: each source
    partition has a part of its cells only, which a combiner (:func:`combiner_of`) sends to the
    layer's own topic to be merged. ``partitions`` is that of the layer's input: the source topic,
    or the layer's own topic. ``accumulators`` are ordered: events first, then by field as the
    measures need them. ``publish`` is the form in which closed cells go to a feed, for programs
    of others; None if it has no feed.
    """

    name: str
    key: tuple[KeyField, ...]
    window: Window
    measures: tuple[Measure, ...]
    accumulators: tuple[Accumulator, ...]
    max_out_of_orderness_ms: int
    allowed_lateness_ms: int
    partitions: int
    source: str | None = None
    finer: str | None = None
    events: tuple[str, ...] = ()
    where: tuple[Condition, ...] = ()
    archive_ttl_ms: int = 0
    slots: int = 8
    merged: bool = False
    publish: FeedFormat | None = None

    @property
    def key_columns(self) -> list[str]:
        """The frame columns of the key, in the map's order."""
        return [field.column for field in self.key]

    @property
    def has_topic(self) -> bool:
        """Whether contributions through a topic of its own feed this layer, not a source."""
        return self.merged or self.finer is not None

    @property
    def declared_name(self) -> str:
        """The name in the map file: that of the merged layer for its combiner."""
        return self.name.removesuffix(COMBINER_SUFFIX)

    @property
    def is_combiner(self) -> bool:
        """Whether its cells are parts only, which go to a merge stage and not to the archive."""
        return self.name.endswith(COMBINER_SUFFIX)


def combiner_of(source: Source, layer: Layer) -> Layer:
    """Return the combiner of a merged layer: it folds the layer's events in each source partition.

    It is a base layer like any other, of the same window and key, and differs in the sinks of its
    cells alone. Its cells are parts, so they are never published.
    """
    assert layer.merged, f"the cells of {layer.name} are complete in each source partition"
    return msgspec.structs.replace(
        layer,
        name=layer.name + COMBINER_SUFFIX,
        partitions=source.partitions,
        merged=False,
        publish=None,
    )


class Map(msgspec.Struct, frozen=True):
    """A checked map; ``digest`` is the hash of its meaning, whatever the file's layout."""

    revision: int
    name: str
    sources: tuple[Source, ...]
    layers: tuple[Layer, ...]
    digest: str

    def source(self, name: str) -> Source:
        """Return the source ``name``."""
        return next(source for source in self.sources if source.name == name)

    def layer(self, name: str) -> Layer:
        """Return the layer ``name``."""
        return next(layer for layer in self.layers if layer.name == name)

    def coarser(self, name: str) -> tuple[Layer, ...]:
        """Return the layers that are directly made from layer ``name``."""
        return tuple(layer for layer in self.layers if layer.finer == name)

    def base_layers(self, source: str) -> tuple[Layer, ...]:
        """Return the layers that select events of source ``source``, merged ones too."""
        return tuple(layer for layer in self.layers if layer.source == source)

    def input_topic(self, layer: Layer) -> str:
        """Return the topic whose records feed ``layer``: its source's, or its own."""
        if layer.has_topic:
            return f"{self.name}.layer.{layer.name}"
        assert layer.source is not None
        return self.source(layer.source).topic

    def inputs(self) -> dict[str, int]:
        """Return every input topic with its partitions: sources first, then layer topics."""
        topics = {source.topic: source.partitions for source in self.sources}
        for layer in self.layers:
            if layer.has_topic:
                topics[self.input_topic(layer)] = layer.partitions
        return topics

    def journal_topic(self, input_topic: str) -> str:
        """Return the journal topic of an input topic; it has the same number of partitions."""
        return f"{self.name}.journal.{input_topic}"

    def feed_topic(self, layer: Layer) -> str:
        """Return the topic that ``layer`` is published on; it has the layer's partitions."""
        return f"{self.name}.feed.{layer.name}"

    @property
    def side_partitions(self) -> int:
        """The partitions of each side topic: as many as the widest source has."""
        return max(source.partitions for source in self.sources)

    def side_topic(self, kind: SideKind) -> str:
        """Return the topic of letters: late events, or dead ones, which are of no use."""
        return f"{self.name}.{kind}"
