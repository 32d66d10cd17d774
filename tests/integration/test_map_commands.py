"""The map commands, as a person runs them."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from click.testing import CliRunner, Result

from agents.partition.claims import OTHER_PARTITIONS
from app.cluster.topics import topics_found
from app.commands.map import command
from app.demo.embedded_broker import EmbeddedBroker
from app.mapfile.load import load_map
from tables.archive.cassandra.cql import CassandraTable
from tables.model.errors import ArchiveError, MapError, SettingError, TreasureMapError
from tables.state.input_plan import InputPlan, plans_of
from tables.state.journal import Claim, encode_entry
from tests import ROOT

FLIGHTS = ROOT / "app" / "demo" / "flights" / "map.toml"


@pytest.fixture(scope="module")
def brokers() -> Iterator[str]:
    """Run an embedded broker; give its bootstrap address."""
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


@pytest.fixture
def own_map(tmp_path: Path) -> Path:
    """Give the map of the demo under names and topics that no other test has."""
    name = f"m{uuid.uuid4().hex[:8]}"
    text = FLIGHTS.read_text().replace('name = "flights"', f'name = "{name}"')
    text = text.replace('"flights.raw"', f'"{name}.flights"').replace(
        '"radar.raw"', f'"{name}.radar"'
    )
    path = tmp_path / "map.toml"
    path.write_text(text)
    return path


def run(*arguments: str | Path) -> Result:
    """Run a map command that is to work."""
    result = CliRunner().invoke(
        command, [str(one) for one in arguments], catch_exceptions=False, prog_name="map"
    )
    assert result.exit_code == 0, result.output
    return result


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program as its own process."""
    return subprocess.run(
        [sys.executable, "-m", "app", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_check_says_ok_with_counts() -> None:
    """One line has the counts of the map."""
    digest = load_map(FLIGHTS).digest
    assert run("check", FLIGHTS).stdout == (
        f"ok: map flights, revision 1, digest {digest}: 2 sources, 14 layers "
        "(8 made from finer ones), 11 input topics\n"
    )


def test_check_lists_all_problems_and_exits_with_1(tmp_path: Path) -> None:
    """Every problem with its place on standard error, no traceback, exit code 1."""
    path = tmp_path / "map.toml"
    text = FLIGHTS.read_text()
    text = text.replace('window = "5s"', 'window = "7s"').replace("time = ", "tim = ", 1)
    path.write_text(text)
    done = python("map", "check", path)
    assert (done.returncode, done.stdout) == (1, "")
    first, *lines = done.stderr.splitlines()
    assert first == f"error: cannot use map {path}: 3 problem(s)"
    assert [line.split(": ")[0] for line in lines] == [
        "  - sources.flights.time",
        "  - sources.flights.tim",
        "  - layers.contacts_minute.window",
    ]


def test_check_and_show_import_no_client_of_a_server() -> None:
    """A map is checked in a moment, on a machine that has neither Kafka nor Cassandra."""
    program = (
        "import sys; from app.__main__ import group\n"
        f"for verb in 'check', 'show': group(['map', verb, {str(FLIGHTS)!r}], None, None, False)\n"
        "loaded = {'aiokafka', 'cassandra', 'faust'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_show_draws_every_layer_below_what_it_is_made_from() -> None:
    """Deeper in the tree means coarser; each layer says its window, key, topics and table."""
    lines = run("show", FLIGHTS).stdout.splitlines()
    themap = load_map(FLIGHTS)
    place = {
        layer.name: next(
            (number, line.index(layer.name))
            for number, line in enumerate(lines)
            if f"{layer.name}  per " in line
        )
        for layer in themap.layers
    }
    for layer in themap.layers:
        number, indent = place[layer.name]
        if layer.finer is not None:
            above, outer = place[layer.finer]
            assert number > above
            assert indent > outer
        key = ", ".join(field.name for field in layer.key)
        assert lines[number].endswith(f"{layer.name}  per {layer.window} by {key}")
        below = [line[indent:] for line in lines[number : number + 7]]
        topic = themap.input_topic(layer)
        partitions = "1 partition)" if layer.partitions == 1 else f"{layer.partitions} partitions)"
        assert f"input    {topic} ({partitions}" in below
        assert f"journal  {themap.journal_topic(topic)}" in below
        assert f"archive  {CassandraTable(themap, layer, 'any').name}" in below
        merged = "merged   from 4 source partitions, as the source is not keyed by part of its key"
        assert (merged in below) == layer.merged


def test_show_names_the_feed_of_a_published_layer(tmp_path: Path) -> None:
    """The line has its partitions and its form; other layers have no such line."""
    text = FLIGHTS.read_text().replace(
        "[layers.arrivals_day]", "[layers.arrivals_day]\npublish = true"
    )
    path = tmp_path / "map.toml"
    path.write_text(text)
    lines = [line.strip("│ ") for line in run("show", path).stdout.splitlines()]
    feeds = [line for line in lines if line.startswith("feed ")]
    assert feeds == ["feed     flights.feed.arrivals_day (4 partitions, json)"]
    assert "feed " not in run("show", FLIGHTS).stdout


def test_show_draws_every_source_with_its_topic() -> None:
    """It draws the producers' key and the number of partitions."""
    output = run("show", FLIGHTS).stdout
    assert "flights  source keyed by origin" in output
    assert "topic    radar.raw (2 partitions)" in output
    assert "journal  flights.journal.radar.raw" in output


def test_show_draws_the_topics_of_letters() -> None:
    """They are made by apply like the others, with as many partitions as the widest source."""
    lines = [line.strip("│└─ ") for line in run("show", FLIGHTS).stdout.splitlines()]
    assert "late     flights.late (4 partitions)" in lines
    assert "dead     flights.dead (4 partitions)" in lines


@pytest.mark.parametrize("verb", ["check", "show", "apply"])
def test_a_file_that_is_not_there_is_an_error(verb: str, tmp_path: Path) -> None:
    """All commands read the map first."""
    with pytest.raises(MapError, match="No such file"):
        run(verb, tmp_path / "none.toml")


def test_apply_makes_the_topics_and_says_which(own_map: Path, brokers: str) -> None:
    """The first time each is named; the second time nothing is made."""
    first = run("apply", own_map, "--brokers", brokers)
    created = [line for line in first.stdout.splitlines() if line.startswith("created topic ")]
    # Eleven inputs, as many journals, two side topics.
    assert len(created) == 24
    assert "topics: 24 created with 1 copy of each partition, 0 existed" in first.stdout
    assert first.stderr == ""
    again = run("apply", own_map, "--brokers", brokers)
    assert "topics: 0 created with 1 copy of each partition, 24 existed" in again.stdout
    assert "archive: embedded, nothing to make" in again.stdout


def test_apply_refuses_topics_that_differ(own_map: Path, brokers: str) -> None:
    """A map whose partitions changed does not fit the topics any more: exit 1, all named."""
    run("apply", own_map, "--brokers", brokers)
    own_map.write_text(own_map.read_text().replace("partitions = 4", "partitions = 5"))
    done = python("map", "apply", own_map, "--brokers", brokers)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot apply topics of map ")
    # The source, its journal and the side topics, which are as wide as the widest source.
    assert done.stderr.count("wrong number of partitions; got 4; want 5") == 4


def revised(path: Path, *changes: tuple[str, str]) -> Path:
    """Return a file with the map as its next revision, with some texts replaced."""
    text = path.read_text().replace("revision = 1", "revision = 2")
    for before, after in changes:
        assert before in text
        text = text.replace(before, after, 1)
    new = path.with_name("new.toml")
    new.write_text(text)
    return new


OTHER_LAYERS = [
    (
        ('window = "5s"', 'window = "10s"'),
        "the window of layer contacts_5s was 5s, now 10s: that is another layer; give it a new",
    ),
    (
        ('key = ["origin", "carrier"]', 'key = ["carrier", "origin"]'),
        r"the key of layer scheduled_hour was origin \(string\), carrier \(string\), now carrier",
    ),
    (('from = "contacts_minute"', 'from = "contacts_5s"'), "the input of layer contacts_hour"),
    (("partitions = 1", "partitions = 2"), "the partitions of layer"),
]


@pytest.mark.parametrize(("change", "problem"), OTHER_LAYERS, ids=["window", "key", "from", "p"])
def test_check_against_the_map_in_use_refuses_other_layers_under_the_same_names(
    tmp_path: Path, change: tuple[str, str], problem: str
) -> None:
    """A revision changes no key, window, input or partitions."""
    path = tmp_path / "old.toml"
    path.write_text(FLIGHTS.read_text())
    with pytest.raises(MapError, match=problem):
        run("check", revised(path, change), "--against", path)


def test_check_against_the_map_in_use_takes_what_a_revision_may_change(tmp_path: Path) -> None:
    """Measures and layers come and go; but any change needs a higher revision."""
    path = tmp_path / "old.toml"
    path.write_text(FLIGHTS.read_text())
    change = 'measures = ["count"', 'measures = ["count", "max(delay_min)"'
    new = revised(path, change)
    assert "ok: map flights, revision 2" in run("check", new, "--against", path).stdout
    new.write_text(new.read_text().replace("revision = 2", "revision = 1"))
    with pytest.raises(MapError, match="raise the revision with every change"):
        run("check", new, "--against", path)
    new.write_text(new.read_text().replace('name = "flights"', 'name = "other"', 1))
    with pytest.raises(MapError, match="want two revisions of one map"):
        run("check", new, "--against", path)


def test_diff_tells_the_changes_and_whether_they_may_be_applied(tmp_path: Path) -> None:
    """Scripts go by the exit code."""
    old = tmp_path / "old.toml"
    old.write_text(FLIGHTS.read_text())
    assert "equal: both are map flights, revision 1" in run("diff", old, FLIGHTS).stdout
    new = revised(old, ('measures = ["count"', 'measures = ["count", "max(delay_min)"'))
    told = run("diff", old, new).stdout
    assert told.startswith("map flights: revision 1 -> 2\nlayer ")
    assert "  + measure max(delay_min): null in earlier windows" in told
    assert "may be applied: run `map apply`" in told
    new.write_text(new.read_text().replace("revision = 2", "revision = 1"))
    result = CliRunner().invoke(command, ["diff", str(old), str(new)])
    assert result.exit_code == 1
    assert "  ! the map in use is revision 1; got 1; want 2 or more" in result.output


def test_apply_refuses_other_layers_than_those_that_journals_know(
    own_map: Path, brokers: str
) -> None:
    """A claim that did not stand says nothing; and nothing is made if one is refused."""
    run("apply", own_map, "--brokers", brokers)
    themap = load_map(own_map)
    more = '[layers.more]\nfrom = "contacts_5s"\nkey = ["sector"]\nwindow = "1h"\n\n'
    before = "[layers.contacts_minute]"
    new = revised(own_map, ('window = "5s"', 'window = "10s"'), (before, more + before))
    (plan,) = [one for one in plans_of(themap).values() if one.topic.endswith(".radar")]
    other = InputPlan(load_map(new), plan.topic, 7, ())
    asyncio.run(write(brokers, plan.journal, plan.claim(0), other.claim(0)))
    with pytest.raises(MapError, match="the window of layer contacts_5s was 5s, now 10s"):
        run("apply", new, "--brokers", brokers)
    assert f"{themap.name}.layer.more" not in asyncio.run(topics_found(brokers))
    text = new.read_text().replace('window = "10s"', 'window = "5s"')
    new.write_text(text)
    assert (
        f"created topic {themap.name}.layer.more" in run("apply", new, "--brokers", brokers).stdout
    )


def test_apply_refuses_what_workers_would_be_refused_with(own_map: Path, brokers: str) -> None:
    """Another map as the journals' revision, a lower revision, another number of partitions."""
    run("apply", own_map, "--brokers", brokers)
    (plan,) = [one for one in plans_of(load_map(own_map)).values() if one.topic.endswith(".radar")]
    new = revised(own_map, ("[layers.contacts_hour]", "[layers.more]"))
    new.write_text(new.read_text().replace("revision = 2", "revision = 1"))
    assert "no worker has used this map yet" in run("apply", new, "--brokers", brokers).stdout
    asyncio.run(write(brokers, plan.journal, plan.claim(0)))
    told = run("apply", own_map, "--brokers", brokers).stdout
    assert "journals: workers have used revision 1" in told
    before = asyncio.run(topics_found(brokers)).keys()
    more = '[layers.other]\nfrom = "contacts_5s"\nkey = ["sector"]\nwindow = "1h"\n\n'
    new.write_text(own_map.read_text() + more)
    with pytest.raises(MapError, match="with every change of the map, here to 2"):
        run("apply", new, "--brokers", brokers)
    assert asyncio.run(topics_found(brokers)).keys() == before
    new = revised(own_map, ('measures = ["count"', 'measures = ["count", "max(delay_min)"'))
    higher = new.read_text()
    new.write_text(higher.replace("revision = 2", "revision = 1"))
    with pytest.raises(MapError, match="another map was used as revision 1; raise the revision"):
        run("apply", new, "--brokers", brokers)
    new.write_text(higher)
    run("apply", new, "--brokers", brokers)
    claim = plans_of(load_map(new))[plan.topic].claim(0)
    asyncio.run(write(brokers, plan.journal, claim))
    with pytest.raises(MapError, match="journals are at map revision 2; got 1; to go back, use"):
        run("apply", own_map, "--brokers", brokers)
    wider = higher.replace(f"partitions = {plan.partitions}", f"partitions = {plan.partitions + 1}")
    new.write_text(wider)
    with pytest.raises(MapError) as refused:
        run("apply", new, "--brokers", brokers)
    assert str(refused.value).endswith(
        f"1 problem(s)\n  - the map declares {plan.partitions + 1} partitions of {plan.topic}; "
        f"its journal was begun with {plan.partitions}; {OTHER_PARTITIONS}"
    )


def test_apply_reads_the_journals_of_all_partitions(own_map: Path, brokers: str) -> None:
    """A worker claims each by itself: the others may still be those of the revision before."""
    run("apply", own_map, "--brokers", brokers)
    (plan,) = [one for one in plans_of(load_map(own_map)).values() if one.topic.endswith(".radar")]
    new = revised(own_map, ('measures = ["count"', 'measures = ["count", "max(delay_min)"'))
    newer = plans_of(load_map(new))[plan.topic]
    for partition in range(plan.partitions - 1):
        asyncio.run(write(brokers, plan.journal, plan.claim(0), partition=partition))
    assert "workers have used revision 1" in run("apply", own_map, "--brokers", brokers).stdout
    last = plan.partitions - 1
    asyncio.run(write(brokers, plan.journal, newer.claim(0), partition=last))
    assert "workers have used revision 2" in run("apply", new, "--brokers", brokers).stdout
    with pytest.raises(MapError, match="journals are at map revision 2; got 1; to go back, use"):
        run("apply", own_map, "--brokers", brokers)


async def write(brokers: str, topic: str, *claims: Claim, partition: int = 0) -> None:
    """Write claims into a partition of a journal."""
    async with AIOKafkaProducer(bootstrap_servers=brokers) as producer:
        for claim in claims:
            await producer.send_and_wait(topic, encode_entry(claim), partition=partition)


def test_apply_takes_its_settings_from_the_environment(own_map: Path, brokers: str) -> None:
    """Flags are one of the places that settings come from."""
    result = CliRunner().invoke(
        command,
        ["apply", str(own_map)],
        env={"TREASURE_MAP_BROKERS": brokers},
        catch_exceptions=False,
    )
    assert "topics: 24 created" in result.stdout


def test_apply_refuses_a_keyspace_over_other_data_centres(own_map: Path, brokers: str) -> None:
    """It is refused before any topic is made."""
    arguments = ("apply", own_map, "--brokers", brokers, "--archive", "cassandra")
    with pytest.raises(SettingError, match="cannot make keyspace treasure_map"):
        run(*arguments, "--cassandra-replication", "east:3,west:3")
    assert "0 existed" in run("apply", own_map, "--brokers", brokers).stdout


def test_apply_refuses_certificates_that_cannot_be_read(own_map: Path, tmp_path: Path) -> None:
    """The message says which settings to check."""
    with pytest.raises(SettingError, match=r"cannot use kafka_ca_file: No such file.*none\.pem"):
        run("apply", own_map, "--kafka-ca-file", tmp_path / "none.pem")


@pytest.mark.cassandra
def test_apply_makes_and_checks_the_tables_of_cassandra(
    own_map: Path, brokers: str, cassandra: tuple[str, int]
) -> None:
    """Tables are made once and checked after; a layer that differs from its table is refused."""
    host, port = cassandra
    keyspace = f"k{uuid.uuid4().hex[:8]}"
    arguments = (
        "apply", own_map, "--brokers", brokers, "--archive", "cassandra",
        "--cassandra-hosts", host, "--cassandra-port", str(port), "--cassandra-keyspace", keyspace,
    )  # fmt: skip
    for _ in range(2):
        output = run(*arguments).stdout
        assert f"archive: 14 tables in keyspace {keyspace} made or checked" in output
    text = own_map.read_text().replace("[layers.arrivals_day]", "[layers.arrivals_day]\nslots = 3")
    own_map.write_text(
        text + '[layers.more]\nfrom = "arrivals_day"\nkey = ["origin"]\nwindow = "month"\n'
    )
    with pytest.raises(ArchiveError, match="slots"):
        run(*arguments)
    made = asyncio.run(topics_found(brokers))
    assert f"{load_map(own_map).name}.layer.more" not in made


def test_apply_without_a_broker_is_an_operating_error(own_map: Path) -> None:
    """Port 1 of this machine serves nobody."""
    with pytest.raises(
        TreasureMapError, match=r"cannot apply map .*: nothing listens at 127\.0\.0\.1:1;"
    ):
        run("apply", own_map, "--brokers", "127.0.0.1:1")


def test_rights_are_printed_as_words_that_a_shell_takes_as_they_are() -> None:
    """Whatever settings and user have in them."""
    name = "o'brien; $(reboot)"
    done = run("acl", str(FLIGHTS), "--user", name, "--brokers", "$(reboot):1, `ls`;x:2",
               "--insecure")  # fmt: skip
    for line in done.output.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[:3] == ["kafka-acls", "--bootstrap-server", "$(reboot):1,`ls`;x:2"]
            assert f"User:{name}" in words


@pytest.mark.parametrize("user", ["", "*", "a\nb", "a\x1b[2J"])
def test_rights_are_for_one_user(user: str) -> None:
    """Kafka takes a star for everybody."""
    for names in (["--user", user], ["--user", "a", "--role", user or "*"]):
        done = CliRunner().invoke(command, ["acl", str(FLIGHTS), *names])
        assert done.exit_code == 2
        assert "want the name of one user" in done.output
        assert "kafka-acls" not in done.output


def test_rights_of_kafka_and_cassandra_are_told_apart() -> None:
    """Two administrators run them, and the role of Cassandra may have a name of its own."""
    arguments = ("acl", FLIGHTS, "--user", "ann", "--role", "ann_db", "--archive", "cassandra")
    both = run(*arguments).stdout
    of_kafka, heading, of_cassandra = both.partition("-- Cassandra, for its administrator:\n")
    assert heading
    assert "--command-config FILE" in of_kafka.partition("kafka-acls")[0]
    for line in of_cassandra.splitlines():
        assert re.fullmatch(r'GRANT \w+ ON TABLE .* TO "ann_db";', line)
    assert run(*arguments, "--only", "kafka").stdout == of_kafka
    assert run(*arguments, "--only", "cassandra").stdout == heading + of_cassandra
    nothing = run("acl", FLIGHTS, "--user", "ann", "--only", "cassandra").stdout
    assert nothing == "-- Nothing: a worker needs no right of the archive embedded.\n"


def test_the_keyspace_is_made_by_an_administrator() -> None:
    """Rights on a keyspace can be granted once it exists."""
    output = run(
        "acl", FLIGHTS, "--user", "ann", "--for", "apply", "--only", "cassandra",
        "--archive", "cassandra", "--cassandra-replication", "east:3,west:2",
    ).stdout  # fmt: skip
    assert output.splitlines()[1] == (
        'CREATE KEYSPACE IF NOT EXISTS "treasure_map" WITH replication = '
        "{'class': 'NetworkTopologyStrategy', 'east': 3, 'west': 2};"
    )
    assert output.count('GRANT CREATE ON KEYSPACE "treasure_map" TO "ann";') == 1


def events(count: int) -> list[bytes]:
    """Return events of two devices, one a second."""
    return [
        json.dumps({"sentAt": 1_711_872_000 + i, "type": "reading", "dev": {"id": f"d{i % 2}"}})
        .encode()
        for i in range(count)
    ]  # fmt: skip


def test_init_proposes_a_map_for_a_file_that_check_takes(tmp_path: Path) -> None:
    """The file of a map is new, or nothing is written."""
    sample, out = tmp_path / "Shop Readings.ndjson", tmp_path / "map.toml"
    sample.write_bytes(b"\n".join(events(50)))
    printed = run("init", "--sample", sample).stdout
    assert 'name = "shop_readings"' in printed
    assert 'topic = "shop_readings.raw"' in printed
    options = ("--sample", sample, "--name", "shop", "--topic", "shop.in", "--out", out)
    assert f"wrote {out}" in run("init", *options).stdout
    assert "ok: map shop, revision 1" in run("check", out).stdout
    before = out.read_text()
    result = CliRunner().invoke(command, ["init", *map(str, options)])
    assert (result.exit_code, out.read_text()) == (2, before)
    assert "it exists; name another file" in result.output


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "want --sample FILE, or --topic TOPIC"),
        (["--sample", "s", "--name", "No"], "not a safe name"),
        (["--sample", "s", "--name", "n" * 25], "want at most 24"),
    ],
)
def test_init_refuses_options_it_cannot_use(options: list[str], says: str) -> None:
    """Each message says what is wanted."""
    result = CliRunner().invoke(command, ["init", *options])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_init_reads_the_last_records_of_a_topic(brokers: str, tmp_path: Path) -> None:
    """The number of partitions is the topic's; heartbeats and lines are as workers take them."""
    topic, out = f"t{uuid.uuid4().hex[:8]}", tmp_path / "map.toml"
    asyncio.run(fill(brokers, topic))
    run("init", "--topic", topic, "--brokers", brokers, "--records", "30", "--out", out)
    text = out.read_text()
    [source] = load_map(out).sources
    assert (source.topic, source.partitions, source.time_unit_ms) == (topic, 3, 1_000)
    assert "from 21 events of the last records" in text
    with pytest.raises(TreasureMapError, match="show this user no such topic"):
        run("init", "--topic", f"{topic}.none", "--brokers", brokers)


async def fill(brokers: str, topic: str) -> None:
    """Fill two of three partitions: with 20 events; with 8, a record of 3 and one of none."""
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 3, 1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=brokers) as producer:
        for number, value in enumerate(events(20)):
            await producer.send_and_wait(topic, value, partition=0)
            if number < 8:
                await producer.send_and_wait(topic, value, partition=1)
        await producer.send_and_wait(topic, b"\n".join(events(3)), partition=1)
        await producer.send_and_wait(topic, None, key=b"none", partition=1)
