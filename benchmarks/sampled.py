"""``python -m benchmarks.sampled worker``: a worker that samples its CPU time by stage.

A timer interrupts the main thread. Each time, the CPU time that the process has used since is put
down to the stage of the innermost frame of our own code: native calls (polars with its threads,
msgspec, sockets) belong to who called them. The time of other Python threads, those that write
the archive for instance, is taken from it and told by the thread's name. The notes are written as
JSON to the file that ``PROFILE_FILE`` names, once a second.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType

import orjson

import app.__main__

ROOT = str(Path(__file__).resolve().parent.parent) + os.sep
INTERVAL_SECONDS = 0.002
WRITE_SECONDS = 1.0

STAGES = {
    "app/kafka/aiokafka_private.py": "walk record batches",
    "agents/decode/records.py": "decode",
    "agents/decode/run_decoder.py": "decode",
    "agents/decode/decoded_events.py": "decode",
    "agents/decode/json_format.py": "decode",
    "agents/decode/json_events.py": "decode",
    "agents/decode/arrow_format.py": "decode",
    "agents/decode/column_events.py": "decode",
    "tables/record/arrow_stream.py": "decode",
    "agents/decode/event_batch.py": "fold",
    "agents/fold/classify.py": "fold",
    "agents/fold/dedupe.py": "ids",
    "tables/state/id_table.py": "ids",
    "agents/fold/layers.py": "fold",
    "agents/fold/aggregate.py": "fold",
    "agents/ingest.py": "cycle",
    "agents/rollup.py": "rollup",
    "agents/fold/gather.py": "rollup",
    "tables/state/contribution.py": "rollup",
    "agents/partition/owner.py": "cycle",
    "agents/partition/owners.py": "cycle",
    "agents/partition/owned_partition.py": "cycle",
    "agents/partition/deltas.py": "cycle",
    "tables/state/partition_state.py": "cycle",
    "tables/state/journal.py": "cycle",
    "tables/model/ledger.py": "cycle",
    "tables/state/block.py": "blocks",
    "tables/state/block_table.py": "blocks",
    "tables/state/layer_table.py": "blocks",
    "tables/state/snapshot.py": "snapshots",
    "tables/state/store.py": "local store",
    "app/kafka/log.py": "append to Kafka",
    "agents/partition/emitter.py": "emit",
    "agents/partition/writers.py": "emit",
    "agents/partition/sinks.py": "emit",
    "tables/archive/embedded/archive.py": "archive",
    "tables/archive/embedded/runs.py": "archive",
    "tables/archive/cassandra/archive.py": "archive",
    "tables/archive/cassandra/cql.py": "archive",
    "app/kafka/transport.py": "transport",
    "app/kafka/lane.py": "transport",
}
"""Files of ours to stages; other files of ours are ``other``."""

LIBRARIES = {"aiokafka/consumer": "fetch", "aiokafka/producer": "append to Kafka",
             "aiokafka": "Kafka client", "aiohttp": "web", "faust": "faust"}  # fmt: skip
"""Parts of paths of libraries to stages, for stacks without a frame of ours."""


OUTERMOST = (
    "benchmarks/",
    "app/__main__",
    "app/runtime/worker_process",
    "app/commands",
    "app/config/",
)
"""Frames that every stack has: the command line, and the loop that runs all else."""


class Sampler:
    """Counts CPU seconds by stage, and by line of our own code."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stages: defaultdict[str, float] = defaultdict(float)
        self._lines: defaultdict[str, float] = defaultdict(float)
        self._used = time.process_time()
        self._threads: dict[str, float] = {}

    def start(self) -> None:
        """Begin to sample the main thread, which must be the calling one."""
        signal.signal(signal.SIGALRM, self._sample)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL_SECONDS, INTERVAL_SECONDS)
        threading.Thread(target=self._write_forever, daemon=True, name="profile").start()

    def _sample(self, number: int, frame: FrameType | None) -> None:
        del number
        used = time.process_time()
        spent, self._used = used - self._used, used
        for name, seconds in _thread_seconds().items():
            aside = max(0.0, seconds - self._threads.get(name, 0.0))
            self._threads[name] = seconds
            self._stages[name] += aside
            spent -= aside
        stage, line = _place(frame)
        self._stages[stage] += spent
        self._lines[line] += spent

    def _write_forever(self) -> None:
        while True:
            time.sleep(WRITE_SECONDS)
            lines = dict(heapq.nlargest(100, self._lines.items(), key=lambda item: item[1]))
            beside = self._file.with_suffix(".new")
            beside.write_bytes(orjson.dumps({"stages": dict(self._stages), "lines": lines}))
            beside.replace(self._file)


def _thread_seconds() -> dict[str, float]:
    """Return the CPU seconds of all Python threads but the main one, by the kind of their name."""
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread is threading.main_thread() or thread.native_id is None:
            continue
        name = f"thread {re.sub('[-_ ]?[0-9]+$', '', thread.name)}"
        with contextlib.suppress(OSError):  # It may have ended since it was listed.
            seconds = time.clock_gettime(_cpu_clock(thread.native_id))
            found[name] = found.get(name, 0.0) + seconds
    return found


def _cpu_clock(native_id: int) -> int:
    """Return the clock of a thread's CPU time, as ``pthread_getcpuclockid`` of glibc builds it.

    Python's function of that name reads the memory of the thread, which one that ended has not.
    """
    return ~native_id << 3 | 0b110


def _place(frame: FrameType | None) -> tuple[str, str]:
    """Return the stage of a stack and, for a closer look, the line it stands at."""
    library, at = "event loop", ""
    while frame is not None:
        path = frame.f_code.co_filename
        at = at or f"{path.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        if path.startswith(ROOT) and "site-packages" not in path:
            name = path.removeprefix(ROOT)
            if not name.startswith(OUTERMOST):
                return STAGES.get(name, "other"), f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
        elif library == "event loop":
            known = (stage for part, stage in LIBRARIES.items() if f"/{part}/" in path)
            library = next(known, library)
        frame = frame.f_back
    return library, at


if __name__ == "__main__":
    Sampler(Path(os.environ["PROFILE_FILE"])).start()
    sys.argv[0] = "app"
    app.__main__.main()
