"""Dead letters on brokers: listed once, counted by reason, replayed once whatever dies between."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from click.testing import CliRunner, Result

from app.__main__ import group
from app.cluster.topics import apply_topics
from app.deadletters import replay as deadletters
from app.deadletters.replay import DeadLetters, Replayed, ReplayError
from app.deadletters.side_topic import MARK_HEADER, Mark, read_records
from app.kafka.log import KafkaLog
from app.kafka.scan import ScanError
from tables.model.errors import OutcomeUnknownError
from tables.model.layer import Map
from tables.record.letter import Letter
from tests.support.common import small_map

MAP_TEXT = """
revision = 1
name = "{name}"
[sources.flights]
topic = "{name}.raw"
partitions = 2
time = "at"
type = "type"
keyed_by = ["origin"]
[sources.flights.fields]
origin = "string"
[layers.hour]
source = "flights"
events = ["flight.*"]
key = ["origin"]
window = "1h"
measures = ["count"]
"""


@pytest.fixture
async def themap(brokers: str) -> Map:
    """Make the topics of a map of its own."""
    name = f"m{uuid.uuid4().hex[:12]}"
    base = small_map()
    source = msgspec.structs.replace(base.sources[0], topic=f"{name}.raw")
    themap = msgspec.structs.replace(base, name=name, sources=(source,))
    await apply_topics(brokers, themap)
    return themap


@pytest.fixture
async def log(brokers: str) -> AsyncIterator[KafkaLog]:
    """Connect."""
    log = KafkaLog(brokers, 16 << 20)
    await log.start()
    yield log
    await log.stop()


async def write(
    log: KafkaLog, themap: Map, offset: int, reason: str = "json", **fields: Any
) -> int:
    """Write one letter to partition 1; return its offset."""
    letter = Letter(f"{themap.name}.raw", 1, offset, "0", 1, reason, "why", "application/json")
    letter = msgspec.structs.replace(letter, **fields)
    return await log.append(f"{themap.name}.dead", 1, b"value %d" % offset, letter.headers())


async def offsets(letters: DeadLetters, **options: Any) -> list[int]:
    """Return the offsets, in the source, of all letters."""
    found = [entry async for entry in letters.letters(lambda _: True, **options)]
    return [entry.letter.offset for entry in found if entry.letter is not None]


async def source_values(brokers: str, themap: Map) -> list[bytes]:
    """Return the values in partition 1 of the source."""
    records = read_records(brokers, f"{themap.name}.raw", {1: 0}, {})
    return [record.value async for _, record in records]


async def test_a_letter_written_twice_is_one_letter(
    brokers: str, themap: Map, log: KafkaLog
) -> None:
    """A crash between the letter and the delta repeats it."""
    for offset in (3, 4, 3, 5):
        await write(log, themap, offset)
    await write(log, themap, 3, reason="missing")
    assert await offsets(DeadLetters(brokers, themap, "dead", {})) == [3, 4, 5, 3]


async def test_letters_that_are_not_read_to_their_end_leave_nothing_open(
    brokers: str, themap: Map, log: KafkaLog
) -> None:
    """A generator that only the collector closes fails the loop's end, in lines on stderr."""
    for offset in (3, 4, 5):
        await write(log, themap, offset)
    unclosed: list[Any] = []
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(hooks.firstiter, unclosed.append)
    try:
        letters = DeadLetters(brokers, themap, "dead", {})
        async with contextlib.aclosing(letters.letters(lambda _: True)) as entries:
            async for entry in entries:
                assert entry.letter is not None
                break

        def differs(_: Letter) -> bool:
            raise ReplayError("a letter that nobody wants")

        with pytest.raises(ReplayError, match="nobody wants"):
            await letters.replay(differs)
        gc.collect()
    finally:
        sys.set_asyncgen_hooks(hooks.firstiter, hooks.finalizer)
    assert unclosed == []


async def test_a_replay_sends_what_was_chosen_once(
    brokers: str, themap: Map, log: KafkaLog
) -> None:
    """It goes to its own partition, with its content type; a second replay does not send it."""
    for offset, reason in ((3, "json"), (4, "missing"), (3, "json"), (5, "json")):
        await write(log, themap, offset, reason)
    await write(log, themap, 6, topic="other")
    await write(log, themap, 7, cut=99)
    letters = DeadLetters(brokers, themap, "dead", {})
    done = await letters.replay(lambda letter: letter.reason == "json")
    assert done == Replayed(sent=2, landed=0, cut=1, foreign=1)
    records = [r async for _, r in read_records(brokers, f"{themap.name}.raw", {1: 0}, {})]
    assert [record.value for record in records] == [b"value 3", b"value 5"]
    assert dict(records[0].headers) == {"letter": b"1:0", "content-type": b"application/json"}
    assert await letters.replay(lambda letter: letter.reason == "json") == Replayed(0, 0, 1, 1)
    assert await offsets(letters) == [4, 6, 7]
    assert await offsets(letters, replayed=True) == [3, 4, 5, 6, 7]
    await write(log, themap, 8, reason="batch")
    assert await letters.replay(lambda letter: letter.reason == "batch") == Replayed(cut=1)


@pytest.mark.parametrize("brokers", [pytest.param("kafka", marks=pytest.mark.kafka)], indirect=True)
async def test_a_letter_that_its_topic_does_not_take_stays_and_hinders_no_other(
    brokers: str, themap: Map, log: KafkaLog
) -> None:
    """A record as large as its topic takes has no room for the header of a replay.

    The embedded broker takes records of any size.
    """
    largest = Letter(f"{themap.name}.raw", 1, 2, "0", 1, "json", "why", "application/json")
    await write(log, themap, 1)
    await log.append(f"{themap.name}.dead", 1, b"x" * 1_048_560, largest.headers())
    await write(log, themap, 3)
    letters = DeadLetters(brokers, themap, "dead", {})
    assert await letters.replay(lambda _: True) == Replayed(sent=2, large=1)
    assert await source_values(brokers, themap) == [b"value 1", b"value 3"]
    assert await offsets(letters) == [2]
    assert await letters.replay(lambda _: True) == Replayed(large=1)


@pytest.mark.parametrize("sends", range(5))
async def test_a_replay_that_was_cut_off_is_brought_to_its_end(
    brokers: str, themap: Map, log: KafkaLog, monkeypatch: pytest.MonkeyPatch, sends: int
) -> None:
    """Killed before its first send, between sends, or before its last word: each lands once."""
    for offset in range(4):
        await write(log, themap, offset)
    letters, whole, sent = DeadLetters(brokers, themap, "dead", {}), deadletters._send, 0

    async def fails(log: KafkaLog, entry: Any, letter: Letter, to: str) -> int:
        nonlocal sent
        if sent == sends:
            raise OutcomeUnknownError("killed")
        sent += 1
        return await whole(log, entry, letter, to)

    monkeypatch.setattr(deadletters, "_send", fails)
    monkeypatch.setattr(deadletters, "SENDS_MAX", 1)
    if sends == 4:
        say = letters._say
        said: list[str] = []

        async def once(log: KafkaLog, partition: int, mark: Mark) -> None:
            if said:
                raise OutcomeUnknownError("killed")
            said.append(mark.state)
            await say(log, partition, mark)

        monkeypatch.setattr(letters, "_say", once)
    with pytest.raises(OutcomeUnknownError):
        await letters.replay(lambda _: True)
    monkeypatch.undo()
    with pytest.raises(ReplayError, match="--resume"):
        await letters.replay(lambda _: True)
    assert await letters.replay(lambda _: True, resume=True) == Replayed(4 - sends, sends)
    assert sorted(await source_values(brokers, themap)) == [b"value %d" % n for n in range(4)]
    assert await letters.replay(lambda _: True) == Replayed()


async def test_of_two_replays_at_once_none_sends_twice(
    brokers: str, themap: Map, log: KafkaLog
) -> None:
    """One of them, or both, is refused before it has sent anything."""
    for offset in range(4):
        await write(log, themap, offset)
    letters = DeadLetters(brokers, themap, "dead", {})
    runs = [letters.replay(lambda _: True) for _ in range(2)]
    outcomes = await asyncio.gather(*runs, return_exceptions=True)
    assert all(isinstance(one, Replayed | ReplayError) for one in outcomes)
    values = await source_values(brokers, themap)
    assert sorted(values) in ([], [b"value %d" % n for n in range(4)])


async def test_a_replay_that_was_overtaken_by_another_sends_nothing(
    brokers: str, themap: Map, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one began and ended after this one had chosen its letters."""
    for offset in range(4):
        await write(log, themap, offset)
    slow, quick = (DeadLetters(brokers, themap, "dead", {}) for _ in range(2))
    say = slow._say

    async def overtaken(log: KafkaLog, partition: int, mark: Mark) -> None:
        if mark.state == "planned":
            assert await quick.replay(lambda _: True) == Replayed(sent=4)
        await say(log, partition, mark)

    monkeypatch.setattr(slow, "_say", overtaken)
    with pytest.raises(ReplayError, match="at the same time"):
        await slow.replay(lambda _: True)
    assert sorted(await source_values(brokers, themap)) == [b"value %d" % n for n in range(4)]
    assert await slow.replay(lambda _: True) == Replayed()


async def test_late_letters_of_a_layer_go_to_a_topic_of_their_own(
    brokers: str, themap: Map, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, though their replay was cut off; the side topic keeps them for other layers."""
    other = small_map(name=f"{themap.name}x")
    source = msgspec.structs.replace(other.sources[0], topic=f"{themap.name}.again")
    await apply_topics(brokers, msgspec.structs.replace(other, sources=(source,)))
    for offset, layer in ((3, "hour"), (3, "day"), (4, "hour"), (4, "hour"), (5, "hour")):
        letter = Letter(f"{themap.name}.raw", 1, offset, "0", 1, "late", "sealed", "", layer)
        await log.append(f"{themap.name}.late", 1, b"value %d" % offset, letter.headers())
    letters, whole, sent = DeadLetters(brokers, themap, "late", {}), deadletters._send, 0

    async def fails(*arguments: Any) -> int:
        nonlocal sent
        sent += 1
        if sent == 2:
            raise OutcomeUnknownError("killed")
        return await whole(*arguments)

    def of_hour(letter: Letter) -> bool:
        return letter.layer == "hour"

    monkeypatch.setattr(deadletters, "_send", fails)
    monkeypatch.setattr(deadletters, "SENDS_MAX", 1)
    with pytest.raises(OutcomeUnknownError):
        await letters.replay(of_hour, to=source.topic)
    monkeypatch.undo()
    assert await letters.replay(of_hour, resume=True) == Replayed(sent=2, landed=1)
    records = [r async for _, r in read_records(brokers, source.topic, {1: 0}, {})]
    assert [record.value for record in records] == [b"value 3", b"value 4", b"value 5"]
    assert dict(records[0].headers) == {"letter": b"late:1:0"}
    assert await source_values(brokers, themap) == []
    assert await letters.replay(of_hour, to=source.topic) == Replayed()
    assert await offsets(letters) == [3]


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("{}.raw", "they came from it"),
        ("{}.late", "workers of map .* write it"),
        ("{}.nowhere", "no such topic, or none shown; want at least 2 partitions"),
    ],
)
async def test_late_letters_go_only_where_they_help(
    brokers: str, themap: Map, log: KafkaLog, to: str, words: str
) -> None:
    """Refused: a topic where they are late again, a topic that workers write, a missing topic."""
    letter = Letter(f"{themap.name}.raw", 1, 3, "0", 1, "late", "sealed", "", "hour")
    await log.append(f"{themap.name}.late", 1, b"value", letter.headers())
    letters = DeadLetters(brokers, themap, "late", {})
    with pytest.raises(ReplayError, match=words):
        await letters.replay(lambda _: True, to=to.format(themap.name))
    assert not (await letters.known()).planned


async def test_records_that_are_no_letters_are_counted(
    brokers: str, themap: Map, log: KafkaLog
) -> None:
    """Somebody else's records do not stop a replay."""
    await log.append(f"{themap.name}.dead", 0, b"hello", ())
    await log.append(f"{themap.name}.dead", 0, b"{", ((MARK_HEADER, b"done"),))
    await write(log, themap, 1)
    letters = DeadLetters(brokers, themap, "dead", {})
    assert (await letters.known()).problems == 2
    assert await letters.replay(lambda _: True) == Replayed(sent=1)


async def test_a_topic_that_is_not_there_is_named(brokers: str) -> None:
    """The message has the command that makes it."""
    with pytest.raises(ScanError, match="map apply"):
        await DeadLetters(brokers, small_map(name="nobody"), "dead", {}).known()


def run(brokers: str, file: Path, *arguments: str) -> Result:
    """Run the command; it must succeed."""
    where = ["--map", str(file), "--brokers", brokers]
    result = CliRunner().invoke(group, ["deadletters", *arguments, *where])
    assert result.exit_code == 0, result.output
    return result


def test_letters_do_not_steer_the_terminal(embedded: str, tmp_path: Path) -> None:
    """Types and topics of others are shown with escapes, as tables and as JSON."""
    name = f"m{uuid.uuid4().hex[:12]}"
    file = tmp_path / "map.toml"
    file.write_text(MAP_TEXT.format(name=name))
    applied = CliRunner().invoke(group, ["map", "apply", str(file), "--brokers", embedded])
    assert applied.exit_code == 0, applied.output
    steering = "got \x1b[2J\x1b]0;title\x07\x9b31m\u202e"

    async def fill() -> None:
        log = KafkaLog(embedded, 16 << 20)
        await log.start()
        base = small_map(name=name)
        await write(log, base, 7, reason="unclassified", detail=steering, topic="x\x1b[1m")
        await log.stop()

    asyncio.run(fill())
    for what in ("list", "count"):
        for form in ((), ("--json",)):
            output = run(embedded, file, what, *form).output
            assert all(one.isprintable() or one == "\n" for one in output), ascii(output)
    assert "got \\x1b[2J\\x1b]0;title\\x07\\x9b31m\\u202e" in run(embedded, file, "list").output
    (row,) = map(orjson.loads, run(embedded, file, "list", "--json").output.splitlines())
    assert row["detail"] == steering


def test_the_command_lists_counts_and_replays(embedded: str, tmp_path: Path) -> None:
    """Each command prints tables or JSON."""
    name = f"m{uuid.uuid4().hex[:12]}"
    file = tmp_path / "map.toml"
    file.write_text(MAP_TEXT.format(name=name))
    applied = CliRunner().invoke(group, ["map", "apply", str(file), "--brokers", embedded])
    assert applied.exit_code == 0, applied.output

    async def fill() -> None:
        log = KafkaLog(embedded, 16 << 20)
        await log.start()
        base = small_map(name=name)
        await write(log, base, 7)
        await write(log, base, 8, reason="arrow", index="", events=0)
        await write(log, base, 9, reason="json", index="0-4", events=5)
        late = Letter(f"{name}.raw", 1, 10, "0-1", 2, "late", "sealed", "", "hour")
        late = msgspec.structs.replace(late, lateness_ms=(3_600_001, 5_400_000))
        await log.append(f"{name}.late", 1, b"late", late.headers())
        await log.stop()

    asyncio.run(fill())
    listed = run(embedded, file, "list")
    assert "value 7" in listed.output
    assert "arrow" in listed.output
    (row,) = map(
        orjson.loads, run(embedded, file, "list", "--json", "--reason", "arrow").output.splitlines()
    )
    assert (row["topic"], row["offset"], row["value"]) == (f"{name}.raw", 8, "value 8")
    counted = [
        orjson.loads(line) for line in run(embedded, file, "count", "--json").output.splitlines()
    ]
    assert {row["reason"]: (row["letters"], row["events"]) for row in counted} == {
        "arrow": (1, 0),
        "json": (2, 6),
    }
    assert "json" in run(embedded, file, "count").output
    assert "more" in run(embedded, file, "list", "--limit", "1").stderr
    where = ["--map", str(file), "--brokers", embedded]
    refused = CliRunner().invoke(group, ["deadletters", "replay", "--reason", "jsom", *where])
    assert refused.exit_code == 2
    assert "unknown 'jsom'; want one of arrow, avro, batch, content_type" in refused.stderr
    for form, words in (
        (["--late"], "want --layer and --to"),
        (["--late", "--layer", "huor", "--to", "x"], "unknown 'huor'; want one .*: hour"),
        (["--layer", "hour"], "they are for --late"),
    ):
        refused = CliRunner().invoke(group, ["deadletters", "replay", *form, *where])
        assert (refused.exit_code, re.search(words, refused.stderr) is None) == (2, False)
    assert "replayed 2 letters" in run(embedded, file, "replay", "--reason", "json").output
    assert "arrow" in run(embedded, file, "count", "--json").output
    assert "json" not in run(embedded, file, "count", "--json").output
    assert "1:30:00" in run(embedded, file, "list", "--late").output
    (row,) = map(orjson.loads, run(embedded, file, "list", "--late", "--json").output.splitlines())
    assert (row["layer"], row["lateness_ms"]) == ("hour", [3_600_001, 5_400_000])
