"""Events whose id is remembered, by docs/formats/journal.md rule 17.

An id that is in a partition once repeats nothing. So only ids that may be there again are walked
through in the order of the log; of all others it is counted how many are remembered between.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from app.verify import sql
from app.verify.database import Database
from app.verify.events import Events

_ROWS = 50_000


def find_repeats(database: Database, events: Events) -> str:
    """Make the table of the duplicates of a source, and return its name.

    Counts them in the ledgers of the partitions, which take them for classified events.
    """
    source = events.source
    table = f"repeats_{source.name}"
    database.run(f'CREATE OR REPLACE TABLE {table} (part INTEGER, "offset" BIGINT, place INTEGER)')
    if source.id_field is None:
        return table
    for partition in events.partitions:
        found = 0
        rows: list[tuple[int, int, int]] = []
        for offset, place in _repeats(database, events, partition.number):
            rows.append((partition.number, offset, place))
            if len(rows) >= _ROWS:
                _load(database, table, rows)
                rows = []
            found += 1
        _load(database, table, rows)
        partition.ledger["events.duplicate"] += found
        partition.ledger["events.classified"] -= found
    return table


def _repeats(database: Database, events: Events, part: int) -> Iterator[tuple[int, int]]:
    """Yield offset and place of a partition's duplicates."""
    ids_max = events.source.ids_max
    remembered: dict[str, tuple[int, int]] = {}
    again = 0  # how many of those that may repeat were remembered
    for offset, place, name, before, until, others in database.rows(
        _candidates(database, events, part)
    ):
        known = remembered.get(name)
        number = others + again
        if known and (before is None or before < known[0]) and number - known[1] < ids_max:
            yield offset, place
        elif before is None or before < until:
            again += 1
            remembered.pop(name, None)
            remembered[name] = until, number + 1
            if len(remembered) > ids_max:
                del remembered[next(iter(remembered))]


def _candidates(database: Database, events: Events, part: int) -> str:
    """Return a query of the events that may repeat, in log order.

    ``until`` is when the id is forgotten; ``others`` is how many other ids were remembered before.
    """
    until = "greatest({})".format(
        ", ".join(
            f"CASE WHEN {events.cuts.sure(layer)} THEN"
            f" {sql.window_end(layer, sql.window_start(layer, 'time'))}"
            f" + {layer.max_out_of_orderness_ms + layer.allowed_lateness_ms} END"
            for layer in events.layers
        )
    )
    known = "before IS NULL OR before < until"
    rows = (
        f'SELECT "offset", place, id, before, {until} AS until FROM {events.table}'
        f" WHERE part = {part} AND id IS NOT NULL"
    )
    database.run(
        "CREATE OR REPLACE TABLE several AS SELECT hash(id) AS hashed FROM"
        f" {events.table} WHERE part = {part} AND id IS NOT NULL GROUP BY ALL HAVING count(*) > 1"
    )
    may_repeat = "hash(id) IN (FROM several)"
    all_remembered = database.number(f"SELECT count(*) FROM ({rows}) WHERE {known}")
    if all_remembered <= events.source.ids_max:
        return f'SELECT *, 0 AS others FROM ({rows}) WHERE {may_repeat} ORDER BY "offset", place'
    counted = f"SELECT *, {may_repeat} AS may_repeat FROM ({rows})"
    return (
        f'SELECT "offset", place, id, before, until, others FROM (SELECT *,'
        f' count(*) FILTER (WHERE NOT may_repeat AND ({known})) OVER (ORDER BY "offset", place'
        f" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS others FROM ({counted}))"
        ' WHERE may_repeat ORDER BY "offset", place'
    )


def _load(database: Database, table: str, rows: list[tuple[int, int, int]]) -> None:
    if rows:
        schema = {"part": pl.Int32, "offset": pl.Int64, "place": pl.Int32}
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        database.load(f"INSERT INTO {table} FROM incoming", frame)
