"""Names that follow from a map and must not be the same: topics in Kafka, tables in the archive."""

from __future__ import annotations

from collections.abc import Iterable

from app.mapfile.section import Section, topic_problem
from tables.archive.cassandra.cql import TABLE_NAME_CHARS_MAX

_SIDES = ("late", "dead")


def note_tables(section: Section, name: str | None, layers: Iterable[str]) -> None:
    """Note layers whose archive tables would be one, or could not be named.

    Cassandra folds names without quotes to small letters, and people do not quote in cqlsh.
    """
    first: dict[str, str] = {}
    for layer in sorted(layers):
        table = f"{name}_{layer}"
        if name is not None and len(table) > TABLE_NAME_CHARS_MAX:
            section.note(
                f"layers.{layer}",
                f"the name of its archive table is too long; got {table!r}; want at most "
                f"{TABLE_NAME_CHARS_MAX} characters; shorten the name of the map or of the layer",
            )
        other = first.setdefault(layer.lower(), layer)
        if other != layer:
            section.note(
                f"layers.{layer}",
                f"has the same archive table as layers.{other}; rename one of them",
            )


def note_topics(
    section: Section,
    name: str | None,
    inputs: Iterable[tuple[str, str]],
    feeds: Iterable[tuple[str, str]],
) -> None:
    """Note topics that collide with each other or with the map's own topics.

    Kafka refuses a topic whose name differs from another's only in dots and underscores, because
    their metrics would have the same name (``kafka.common.internals.Topic.hasCollision``).

    Args:
        section: the whole map.
        name: the map's name, or None if it is wrong; then only the inputs are compared.
        inputs: each input topic, with the table of the map that it comes from.
        feeds: likewise each feed, which has no journal.
    """
    sides = [f"{name}.{kind}" for kind in _SIDES] if name is not None else []
    claimed = {_unified(side): (side, "of every map") for side in sides}
    for topic, where in inputs:
        journal = f"{name}.journal.{topic}"
        problem = topic_problem(journal)
        if problem is not None:
            section.note(where, f"its journal topic cannot be made: {problem}")
        _claim(section, claimed, where, (topic, journal) if name is not None else (topic,))
    for feed, where in feeds:
        _claim(section, claimed, where, (feed,))


def _claim(
    section: Section, claimed: dict[str, tuple[str, str]], where: str, topics: Iterable[str]
) -> None:
    """Note the first topic of a table whose name is in use."""
    for topic in topics:
        mine = (topic, f"of {where}")
        other = claimed.setdefault(_unified(topic), mine)
        if other is not mine:
            section.note(
                where,
                f"topic {topic!r} collides with {other[0]!r} {other[1]}: Kafka counts "
                "them as one, as '.' and '_' are the same there; rename the topic",
            )
            return


def _unified(topic: str) -> str:
    return topic.replace(".", "_")
