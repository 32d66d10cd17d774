"""Real Kafka and Cassandra on fixed ports, to try and to develop with: ``make servers``.

They are those of the tests: from Maven's jars, with the settings of the compose file, without
logins and encryption, on loopback alone. Their data stays in a folder and is there the next time.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from pathlib import Path

import click

from tests import ROOT
from tests.support import servers

INTERRUPTED = 130
_CHECK_S = 1.0
_PORT = click.IntRange(1, 65_535)


@click.command()
@click.option("--kafka-port", type=_PORT, default=9092, show_default=True)
@click.option("--cassandra-port", type=_PORT, default=9042, show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=ROOT / ".cache/servers",
    help="The folder of their data and logs.  [default: .cache/servers]",
)  # fmt: skip
def command(kafka_port: int, cassandra_port: int, folder: Path) -> None:
    """Run Kafka and Cassandra on 127.0.0.1 until Ctrl-C; needs Java 17 and, once, Maven."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run(kafka_port, cassandra_port, folder.resolve())
    except servers.ServerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("stopped")
        sys.exit(INTERRUPTED)


def _run(kafka_port: int, cassandra_port: int, folder: Path) -> None:
    ports: dict[servers.ServerName, int] = {"kafka": kafka_port, "cassandra": cassandra_port}
    for name, port in ports.items():
        if reason := servers.why_missing(name):
            raise servers.ServerError(reason)
        if servers.listens(port):
            raise servers.ServerError(
                f"cannot start {name}: a program listens on port {port} of this machine; end it, or"
                f" give {name.upper()}_PORT="
            )
    for name in ports:
        # The first time Maven fetches them.
        servers.jars(name)
    kafka = servers.KafkaServer(folder / "kafka", port=kafka_port)
    cassandra = servers.CassandraServer(folder / "cassandra", port=cassandra_port)
    with contextlib.ExitStack() as ending:
        for server in (kafka, cassandra):
            click.echo(f"{server.name} starts; its log is {server.log}")
            ending.callback(server.stop)
            server.spawn()
        for server in (kafka, cassandra):
            server.wait_until_serving()
        click.echo(f"kafka at {kafka.bootstrap}, cassandra at {cassandra.host}:{cassandra.port}")
        click.echo("point commands and workers to them, in another terminal:")
        click.echo(f"  export TREASURE_MAP_BROKERS={kafka.bootstrap}")
        click.echo("  export TREASURE_MAP_ARCHIVE=cassandra")
        click.echo(f"  export TREASURE_MAP_CASSANDRA_PORT={cassandra.port}")
        click.echo("  python -m app map apply MAP.toml")
        click.echo("  python -m app worker --map MAP.toml")
        click.echo(f"their data is in {folder}; Ctrl-C ends them")
        pause = threading.Event()
        while not pause.wait(_CHECK_S):
            kafka.check()
            cassandra.check()


if __name__ == "__main__":
    command(prog_name="python -m tests.servers")
