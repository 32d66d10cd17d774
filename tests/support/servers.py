"""Kafka, Cassandra and a schema registry as child processes, from Maven: without containers.

Each server has its own folder and ports, chosen once, so that ``restart`` comes back at the same
port. Settings are those of ``docker-compose.yml`` but for hosts, ports, folders and options of
tests. Versions stand in ``tests/support/jars/pom.xml``; the jars are fetched once into
``.cache/jars/``.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self

from tests import ROOT
from tests.support.compose_file import (
    cassandra_fields,
    cassandra_jvm,
    environment,
    kafka_properties,
)
from tests.support.waiting import wait_until

ServerName = Literal["kafka", "cassandra", "apicurio"]

POM = ROOT / "tests" / "support" / "jars" / "pom.xml"
JARS = ROOT / ".cache" / "jars"

JAVA_MAJOR = 17
START_SECONDS_MAX = 240
STOP_SECONDS_MAX = 30
FETCH_SECONDS_MAX = 600
LOG_LINES_IN_ERROR = 30

# Below Linux's range for outgoing connections (32768 and up), so that no client takes the port of a
# server that is down for a restart.
_PORTS = range(20_000, 32_000)

# Java 17 keeps its internals shut; these are the ones Cassandra 5.0 reaches into, as its own
# conf/jvm17-server.options lists them.
_CASSANDRA_EXPORTS = (
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.rmi/sun.rmi.transport.tcp",
    "java.sql/java.sql",
    "java.base/java.lang.ref",
    "java.base/java.util.concurrent.locks",
    "jdk.naming.dns/com.sun.jndi.dns",
)
_CASSANDRA_OPENS = (
    "java.base/java.lang.module",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.util.jar",
    "jdk.management/com.sun.management.internal",
    "java.base/sun.nio.ch",
    "java.base/java.io",
    "java.base/java.lang",
    "java.base/java.lang.reflect",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/java.nio",
    "java.base/java.net",
    "java.base/sun.util.locale",
)
# A test's server starts quickly and lives for seconds. A measured one is compiled and collected as
# in production: by Kafka's own scripts, and Cassandra's conf/jvm17-server.options.
_QUICK_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_MEASURED_JVM: Mapping[ServerName, tuple[str, ...]] = {
    "kafka": (
        "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20",
        "-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent",
    ),
    "cassandra": (
        "-server", "-XX:+UseG1GC", "-XX:+ParallelRefProcEnabled", "-XX:MaxTenuringThreshold=2",
        "-XX:G1HeapRegionSize=16m", "-XX:+UnlockExperimentalVMOptions",
        "-XX:G1NewSizePercent=50", "-XX:G1RSetUpdatingPauseTimePercent=5",
        "-XX:MaxGCPauseMillis=300", "-XX:InitiatingHeapOccupancyPercent=70",
    ),
}  # fmt: skip

_LOGBACK = """<configuration>
  <appender name="STDOUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %date{ISO8601} %logger{20} %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="STDOUT"/></root>
</configuration>
"""


class ServerError(Exception):
    """A server that could not be fetched, started or stopped; has the last lines of its log."""


def why_missing(name: ServerName) -> str | None:
    """Return the reason why this machine cannot run ``name``, or None if it can."""
    java = _java()
    if java is None:
        return f"cannot run {name}: java is not on PATH; install Java {JAVA_MAJOR}"
    out = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    match = re.search(r'version "(\d+)', out)
    major = int(match[1]) if match else 0
    # Cassandra 5.0 runs on Java 11 and 17 only; the others on anything from 17 up.
    if major < JAVA_MAJOR or (name == "cassandra" and major != JAVA_MAJOR):
        return f"cannot run {name}: got Java {major}; want {JAVA_MAJOR}; set JAVA_HOME to one"
    if not _folder(name).exists() and shutil.which("mvn") is None:
        return f"cannot run {name}: mvn is not on PATH to fetch its jars; install Maven"
    return None


def jars(name: ServerName) -> Path:
    """Return the folder of the server's jars; the first call fetches them, others wait for it.

    Raises:
        ServerError: Maven failed.
    """
    folder = _folder(name)
    JARS.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            command = [
                "mvn", "-q", "-B", "-f", str(POM), "-P", name, "dependency:copy-dependencies",
                "-DincludeScope=runtime", f"-DoutputDirectory={part}",
            ]  # fmt: skip
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=FETCH_SECONDS_MAX
            )
            if done.returncode != 0:
                raise ServerError(
                    f"cannot fetch jars of {name}: mvn exited with {done.returncode}: "
                    f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
                )
            for archive in part.glob("*.tar.gz"):
                subprocess.run(["tar", "-xzf", archive.name], cwd=part, check=True)
                archive.unlink()
            part.rename(folder)
    return folder


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nothing listens now, each once."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().choice(_PORTS)
        if port in ports:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def wait_for_port(port: int, seconds_max: float = START_SECONDS_MAX) -> None:
    """Return once something listens on a port of this machine.

    Raises:
        ServerError: nothing does in time.
    """
    try:
        wait_until(lambda: listens(port), seconds_max, f"a listener on port {port}")
    except TimeoutError as error:
        raise ServerError(str(error)) from error


def listens(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=1),
    ):
        return True
    return False


class Server:
    """One server process with a folder, a log and a port that tells when it serves.

    ``measured`` has Java run it as in production, not for a quick start.
    """

    name: ServerName

    def __init__(self, folder: Path, port: int, *, measured: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port
        self._jvm = _MEASURED_JVM[self.name] if measured else _QUICK_JVM
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop the server."""
        self.stop()

    @property
    def is_running(self) -> bool:
        """Whether it was started and neither stopped nor killed since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Start the process and return once it serves.

        Raises:
            ServerError: it exited or did not serve in time; holds the end of its log.
        """
        self.spawn()
        try:
            self.wait_until_serving()
        except BaseException:
            self.kill()
            raise

    def spawn(self) -> None:
        """Start the process; :meth:`wait_until_serving` waits for it, in another thread if wanted.

        Raises:
            ServerError: it could not be made ready.
        """
        assert self._process is None, "the server is running"
        self._prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_dies_with_parent(), *self._command()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def stop(self) -> None:
        """Ask the process to end, and wait for it; after a deadline it is killed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End the process at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def check(self) -> None:
        """Check that the process runs.

        Raises:
            ServerError: it has ended; holds the end of its log.
        """
        assert self._process is not None, "the server is not running"
        code = self._process.poll()
        if code is not None:
            raise ServerError(
                f"cannot continue: {self.name} ended with {code}; log:\n{self.log_tail()}"
            )

    def restart(self) -> None:
        """Stop and start again: same folder, same ports."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop the process's clock: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def log_tail(self) -> str:
        """Return the last lines of the log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-LOG_LINES_IN_ERROR:])

    def _prepare(self) -> None:
        """Write the files that the process needs before it starts."""
        raise NotImplementedError

    def _command(self) -> list[str]:
        raise NotImplementedError

    def wait_until_serving(self) -> None:
        """Return once the server takes connections.

        Raises:
            ServerError: it exited or did not serve in time; holds the end of its log.
        """
        process = self._process
        assert process is not None

        def serves() -> bool:
            code = process.poll()
            if code is not None:
                raise ServerError(
                    f"cannot start {self.name}: it exited with {code}; log:\n{self.log_tail()}"
                )
            return listens(self.port)

        try:
            wait_until(serves, START_SECONDS_MAX, f"a listener on port {self.port}")
        except TimeoutError as error:
            raise ServerError(
                f"cannot start {self.name}: {error}; log:\n{self.log_tail()}"
            ) from error


class KafkaServer(Server):
    """One Kafka node, broker and controller in one process (KRaft).

    Attributes:
        bootstrap: ``host:port`` for clients.
        listeners: ``host:port`` of every listener, by its name.
        format_options: more options of the tool that formats its folder the first time.
    """

    name: ServerName = "kafka"

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        measured: bool = False,
    ) -> None:
        """``settings`` are broker properties that replace or add to those of the compose file.

        ``port`` is that of clients; None uses a free one.
        """
        self.cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()
        self._variables = environment("kafka")
        properties = kafka_properties(self._variables)
        names = [listener.partition("://")[0] for listener in properties["listeners"].split(",")]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports["LOOPBACK"] = port or ports["LOOPBACK"]
        super().__init__(folder, ports["LOOPBACK"], measured=measured)
        self.listeners = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        self.bootstrap = self.listeners["LOOPBACK"]
        self.format_options: list[str] = []
        controllers = properties["controller.listener.names"]
        self._properties = {
            **properties,
            "controller.quorum.voters": f"{properties['node.id']}@{self.listeners[controllers]}",
            "listeners": _addresses(self.listeners),
            "advertised.listeners": _addresses(
                {name: at for name, at in self.listeners.items() if name != controllers}
            ),
            "log.dirs": str(folder / "data"),
            **(settings or {}),
        }

    def configure(self, settings: Mapping[str, str]) -> None:
        """Replace or add broker properties; for a node that was never started."""
        self._properties |= settings

    def _prepare(self) -> None:
        """Write the configuration, and format the folder the first time."""
        config = self.folder / "server.properties"
        config.write_text("".join(f"{k}={v}\n" for k, v in self._properties.items()))
        if not (self.folder / "data" / "meta.properties").exists():
            done = subprocess.run(
                [
                    *self._java(),
                    "kafka.tools.StorageTool",
                    "format",
                    f"--cluster-id={self.cluster}",
                    "-c",
                    config,
                    *self.format_options,
                ],
                capture_output=True,
                text=True,
                check=False,
                timeout=START_SECONDS_MAX,
            )
            if done.returncode != 0:
                raise ServerError(f"cannot format kafka: {done.stdout}{done.stderr}")

    def _java(self) -> list[str]:
        return [
            _java() or "java", *self._variables["KAFKA_HEAP_OPTS"].split(), *self._jvm,
            "-Xshare:auto",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-cp", f"{jars('kafka')}/*",
        ]  # fmt: skip

    def _command(self) -> list[str]:
        return [*self._java(), "kafka.Kafka", str(self.folder / "server.properties")]


class CassandraServer(Server):
    """One Cassandra node on 127.0.0.1; its datacenter is ``datacenter1``."""

    name: ServerName = "cassandra"
    host = "127.0.0.1"

    def __init__(self, folder: Path, *, port: int | None = None, measured: bool = False) -> None:
        """``port`` is that of clients; None uses a free one."""
        free, self._storage_port = free_ports(2)
        super().__init__(folder, port or free, measured=measured)
        self._variables = environment("cassandra")

    def _prepare(self) -> None:
        """Write the configuration."""
        (self.folder / "cassandra.yaml").write_text(self._yaml())
        (self.folder / "logback.xml").write_text(_LOGBACK)

    def _yaml(self) -> str:
        data = self.folder / "data"
        fields = cassandra_fields(self._variables)
        fields |= {"listen_address": self.host, "rpc_address": self.host}
        settings = "".join(f"{name}: {value}\n" for name, value in fields.items())
        return f"""{settings}partitioner: org.apache.cassandra.dht.Murmur3Partitioner
data_file_directories: ["{data}/data"]
commitlog_directory: "{data}/commitlog"
saved_caches_directory: "{data}/caches"
hints_directory: "{data}/hints"
cdc_raw_directory: "{data}/cdc"
# As the image has it; the compose file's options replace it.
commitlog_sync: periodic
commitlog_sync_period: 10000ms
commitlog_segment_size: 8MiB
native_transport_port: {self.port}
storage_port: {self._storage_port}
ssl_storage_port: {self._storage_port}
auto_snapshot: false
# A machine busy with other tests must not turn a slow answer into a refused one.
read_request_timeout: 20s
range_request_timeout: 20s
write_request_timeout: 20s
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "127.0.0.1:{self._storage_port}"}}]
"""

    def _heap(self) -> list[str]:
        options = cassandra_jvm(self._variables)
        # G1 chooses the size of the young generation; the environment's is for other collectors.
        fixed = "-XX:+UseG1GC" not in self._jvm
        return [option for option in options if fixed or not option.startswith("-Xmn")]

    def _command(self) -> list[str]:
        folder = jars("cassandra")
        return [
            _java() or "java", *self._heap(), *self._jvm,
            f"-javaagent:{next(folder.glob('jamm-*.jar'))}",
            "-Djdk.attach.allowAttachSelf=true",
            *(f"--add-exports={name}=ALL-UNNAMED" for name in _CASSANDRA_EXPORTS),
            *(f"--add-opens={name}=ALL-UNNAMED" for name in _CASSANDRA_OPENS),
            f"-Dcassandra.storagedir={self.folder / 'data'}",
            f"-Dcassandra.config=file://{self.folder / 'cassandra.yaml'}",
            "-Dcassandra-foreground=yes",
            "-Dcassandra.ring_delay_ms=100",
            f"-Dlogback.configurationFile={self.folder / 'logback.xml'}",
            "-cp", f"{folder}/*",
            "org.apache.cassandra.service.CassandraDaemon",
        ]  # fmt: skip


class ApicurioServer(Server):
    """One schema registry, Apicurio; it keeps schemas in its folder, over a restart too.

    After a restart it gives no new ids: its numbers, unlike its rows, are in memory alone.

    Attributes:
        url: of the interface of Confluent's registry.
    """

    name: ServerName = "apicurio"

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        super().__init__(folder, port)
        self.url = f"http://127.0.0.1:{port}/apis/ccompat/v7"

    def _prepare(self) -> None:
        """Write nothing: all settings are options."""

    def _command(self) -> list[str]:
        (program,) = jars("apicurio").glob("*-runner.jar")
        return [
            _java() or "java", "-Xmx256m", *self._jvm,
            "-Dquarkus.http.host=127.0.0.1",
            f"-Dquarkus.http.port={self.port}",
            f"-Dquarkus.datasource.jdbc.url=jdbc:h2:file:{self.folder / 'schemas'}",
            "-jar", str(program),
        ]  # fmt: skip


def _addresses(listeners: Mapping[str, str]) -> str:
    return ",".join(f"{name}://{at}" for name, at in listeners.items())


def _java() -> str | None:
    home = os.environ.get("JAVA_HOME")
    return shutil.which("java", path=f"{home}/bin" if home else None)


def _folder(name: ServerName) -> Path:
    """Return the place of a server's jars, one for each content of the POM.

    Checkouts that share the cache, and differ in it, leave each other's jars alone.
    """
    return JARS / f"{name}-{hashlib.sha256(POM.read_bytes()).hexdigest()[:16]}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _dies_with_parent() -> list[str]:
    """Return a prefix that ends the child with this process, so that a killed test run leaves none.

    Linux ties the signal to the thread that started the child, hence only the main thread may ask.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None or threading.current_thread() is not threading.main_thread():
        return []
    return [setpriv, "--pdeathsig", "KILL"]
