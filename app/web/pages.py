"""Pages: the map, and the reader's answers, as clients get them."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import msgspec
import polars as pl
from msgspec import UNSET, UnsetType

from agents.query.reader import FamilyResult, LayerResult
from app.web.formats import CellPage, hint_of
from tables.model.layer import Layer, Map, Source
from tables.model.window import NEVER_MS
from tables.query.answer import row_end
from tables.query.cell_query import (
    CellQuery,
    Limits,
    PageRows,
    cell_rows,
    exact_json,
    merge_answer,
    page_after,
)
from tables.query.family import FamilyQuery, family_of
from tables.query.planner import QueryPlan
from tables.query.time_range import TimeRange
from tables.query.top import TopQuery, top_rows
from tables.state.cell import measures_of
from treasure_map import answers
from treasure_map.answers import Asked, Cost, Families, FamilyAbout, FamilyPage, Plan, Row, Segment
from treasure_map.version import version


def describe_map(themap: Map) -> dict[str, Any]:
    """Return the map as JSON, with the topics that follow from it, and the worker's version."""
    return {
        "version": version(),
        "name": themap.name,
        "revision": themap.revision,
        "digest": themap.digest,
        "sources": [_describe_source(source) for source in themap.sources],
        "layers": [_describe_layer(themap, layer) for layer in themap.layers],
    }


def _describe_source(source: Source) -> dict[str, Any]:
    """Return a source; it has paths and options of values only if the map declares them."""
    described = msgspec.to_builtins(source)
    return {name: value for name, value in described.items() if value or name not in _OPTIONAL}


_OPTIONAL = frozenset(
    {"time_path", "type_path", "id_path", "time_text", "time_fraction", "time_offset", "arrays",
     "compression", "format"}
)  # fmt: skip


def _describe_layer(themap: Map, layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "source": layer.source,
        "finer": layer.finer,
        "merged": layer.merged,
        "events": layer.events,
        "where": [msgspec.to_builtins(condition) for condition in layer.where],
        "key": [msgspec.to_builtins(field) for field in layer.key],
        "window": str(layer.window),
        "measures": [
            {"name": measure.name, "kind": measure.kind, "field": measure.field}
            for measure in layer.measures
        ],
        "max_out_of_orderness_ms": layer.max_out_of_orderness_ms,
        "allowed_lateness_ms": layer.allowed_lateness_ms,
        "archive_ttl_ms": layer.archive_ttl_ms,
        "input_topic": themap.input_topic(layer),
        "journal_topic": themap.journal_topic(themap.input_topic(layer)),
        "publish": layer.publish,
        "feed_topic": themap.feed_topic(layer) if layer.publish else None,
        "partitions": layer.partitions,
    }


def describe_families(themap: Map) -> Families:
    """Return the families of a map."""
    found = []
    for base in (layer for layer in themap.layers if layer.finer is None):
        family = family_of(themap, base.name)
        layers = [layer.name for layer in family.layers]
        key = [field.name for field in base.key]
        measures = [measure.name for measure in base.measures]
        found.append(FamilyAbout(family.name, layers, key, measures, str(base.window)))
    return Families(found)


def describe_plan(plan: QueryPlan) -> Plan:
    """Return a plan as answers have it."""
    segments = [
        Segment(one.name, one.from_ms, one.to_ms, one.windows, one.cells) for one in plan.segments
    ]
    return Plan(plan.exactness, plan.cells, segments)


def answered_cells(themap: Map, query: CellQuery, found: LayerResult, limits: Limits) -> CellPage:
    """Return one page of cells of a layer, live and archived merged.

    Raises:
        QueryError: they are more than a request may have merged.
    """
    layer, live, archived = query.layer, found.live, found.archived
    page = merge_answer(themap, query, live, archived, limits.cells_max)
    rows = page.rows
    about = answers.Page(
        layer=layer.name,
        map_revision=themap.revision,
        from_ms=page.asked.from_ms,
        to_ms=page.asked.to_ms,
        asked=_asked(page.asked),
        partial=found.partial,
        partitions_served=found.served,
        partitions=layer.partitions,
        rows_read=answers.RowsRead(live.height, archived.height),
        whole_from=found.whole,
        hint=hint_of(rows, *query.asked.instants),
        rows_after=page.rows_after,
        cells=[],
        cursor=page.cursor,
    )
    ends = [layer.window.end(start) for start in rows["window_start"].to_list()]
    return CellPage(about, layer, rows, ends, functools.partial(cell_rows, layer, rows))


def _asked(asked: TimeRange) -> Asked | UnsetType:
    """Return the instants that were asked for, unless they are the ends of the range."""
    found = Asked(asked.asked_from_ms, asked.asked_to_ms)
    return UNSET if found == Asked(asked.from_ms, asked.to_ms) else found


def answered_family(themap: Map, answer: FamilyResult) -> CellPage:
    """Return one page of an answer."""
    query = answer.query
    page = page_after(themap, query.rows, answer.rows, query.after, query.limit, asked=query.asked)
    return _answered(themap, answer, page)


def answered_top(themap: Map, top: TopQuery, answer: FamilyResult) -> CellPage:
    """Return the first keys of an answer."""
    first = PageRows(top_rows(top, answer.rows), None, 0, answer.query.asked)
    return _answered(
        themap, answer, first,
        layer=top.layer.name, by=top.by.name, order="desc" if top.descending else "asc",
        keys=answer.rows.height,
    )  # fmt: skip


def _answered(themap: Map, answer: FamilyResult, page: PageRows, **ranked: Any) -> CellPage:
    query, rows = answer.query, page.rows
    topic = themap.source(query.family.base.source or "").topic
    about = FamilyPage(
        **ranked,
        family=query.family.name,
        map_revision=themap.revision,
        from_ms=page.asked.from_ms,
        to_ms=page.asked.to_ms,
        asked=_asked(page.asked),
        exactness=answer.exactness,
        final=answer.final,
        as_of={topic: {str(partition): offset for partition, offset in answer.as_of.items()}},
        watermark_ms=known_ms(answer.watermark_ms),
        data_age_ms=answer.data_age_ms,
        whole_from=answer.whole,
        cost=msgspec.convert(answer.cost, Cost, from_attributes=True),
        plan=describe_plan(answer.plan),
        hint=hint_of(rows, *query.asked.instants),
        rows_after=page.rows_after,
        cells=[],
        cursor=page.cursor,
    )
    ends = [row_end(query, start) for start in rows["window_start"].to_list()]
    return CellPage(about, query.rows, rows, ends, functools.partial(_rows, query, rows, ends))


def etag_of(themap: Map, request_line: str, asked: TimeRange, kind: str) -> str:
    """Return the ETag of a final answer: the same question has the same cells for ever.

    The same words may be another question later, if they refer to the clock. It is weak: the cost
    and the age of an answer may differ.
    """
    text = f"{themap.digest}\n{request_line}\n{asked.from_ms} {asked.to_ms}\n{kind}"
    return f'W/"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"'


def known_ms(time_ms: int) -> int | None:
    """Return a time, None if it is not known yet."""
    return None if time_ms == NEVER_MS else time_ms


def _rows(query: FamilyQuery, rows: pl.DataFrame, ends: list[int]) -> list[Row]:
    measures = measures_of(query.rows, rows)
    return [
        Row(
            {field.name: row[field.column] for field in query.rows.key},
            row["window_start"],
            end,
            {name: exact_json(value) for name, value in measure.items()},
        )
        for row, end, measure in zip(rows.iter_rows(named=True), ends, measures, strict=True)
    ]
