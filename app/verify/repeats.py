"""Events whose id is remembered, by docs/formats/journal.md rule 17.

How long an id is remembered follows from the layers that the map has. If that is in doubt (see
``cuts.py``), duplicates are those of the layers that it surely had. The events that differ if it
had all that it may have had are counted.

An id that is in a partition once repeats nothing. So only ids that may be there again are read in
the order of the log; of all others only the number remembered between them counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from app.verify import sql
from app.verify.database import Database
from app.verify.events import Events
from tables.model.layer import Layer


def find_repeats(database: Database, events: Events) -> str:
    """Make the table of the duplicates of a source, and return its name.

    Moves them in the ledgers of the partitions from classified events to duplicates.
    """
    source = events.source
    table = f"repeats_{source.name}"
    database.run(f'CREATE OR REPLACE TABLE {table} (part INTEGER, "offset" BIGINT, index INTEGER)')
    if source.id_field is None:
        return table
    for partition in events.partitions:
        number = partition.number
        found = database.insert(table, _repeats(database, events, number, events.cuts.sure))
        partition.ledger["events.duplicate"] += found
        partition.ledger["events.classified"] -= found
    if events.cuts:
        _count_doubtful(database, events, table)
    return table


def _count_doubtful(database: Database, events: Events, table: str) -> None:
    """Count the events that are duplicates, or are not, if the map had all that it may have had."""
    other = f"{table}_possible"
    database.run(f"CREATE OR REPLACE TABLE {other} AS FROM {table} LIMIT 0")
    for partition in events.partitions:
        number = partition.number
        database.insert(other, _repeats(database, events, number, events.possible))
        partition.repeats_in_doubt = database.number(
            f"SELECT count(*) FROM ((FROM {table} WHERE part = {number} EXCEPT FROM {other}) UNION"
            f" ALL (FROM {other} WHERE part = {number} EXCEPT FROM {table}))"
        )


def _repeats(
    database: Database, events: Events, part: int, has: Callable[[Layer], str]
) -> Iterator[tuple[int, int, int]]:
    """Yield partition, offset and index of each duplicate.

    ``has`` returns, in SQL, whether the map had a layer at an event.
    """
    ids_max = events.source.ids_max
    remembered: dict[str, tuple[int, int]] = {}
    again = 0  # how many of those that may repeat were remembered
    for offset, index, name, before, until, others in database.rows(
        _candidates(database, events, part, has)
    ):
        known = remembered.get(name)
        number = others + again
        if known and (before is None or before < known[0]) and number - known[1] < ids_max:
            yield part, offset, index
        elif before is None or before < until:
            again += 1
            remembered.pop(name, None)
            remembered[name] = until, number + 1
            if len(remembered) > ids_max:
                del remembered[next(iter(remembered))]


def _candidates(database: Database, events: Events, part: int, has: Callable[[Layer], str]) -> str:
    """Return a query of the events that may repeat, in log order.

    ``until`` is the time at which the id is forgotten; ``others`` the number of other ids that
    were remembered before.
    """
    until = "greatest({})".format(
        ", ".join(
            f"CASE WHEN {has(layer)} THEN"
            f" {sql.window_end(layer, sql.window_start(layer, 'time'))}"
            f" + {layer.max_out_of_orderness_ms + layer.allowed_lateness_ms} END"
            for layer in events.layers
        )
    )
    known = "before IS NULL OR before < until"
    rows = (
        f'SELECT "offset", index, id, before, {until} AS until FROM {events.table}'
        f" WHERE part = {part} AND id IS NOT NULL"
    )
    database.run(
        "CREATE OR REPLACE TABLE several AS SELECT hash(id) AS hashed FROM"
        f" {events.table} WHERE part = {part} AND id IS NOT NULL GROUP BY ALL HAVING count(*) > 1"
    )
    may_repeat = "hash(id) IN (FROM several)"
    all_remembered = database.number(f"SELECT count(*) FROM ({rows}) WHERE {known}")
    if all_remembered <= events.source.ids_max:
        return f'SELECT *, 0 AS others FROM ({rows}) WHERE {may_repeat} ORDER BY "offset", index'
    counted = f"SELECT *, {may_repeat} AS may_repeat FROM ({rows})"
    return (
        f'SELECT "offset", index, id, before, until, others FROM (SELECT *,'
        f' count(*) FILTER (WHERE NOT may_repeat AND ({known})) OVER (ORDER BY "offset", index'
        f" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS others FROM ({counted}))"
        ' WHERE may_repeat ORDER BY "offset", index'
    )
