"""The status of a worker: layers that select nothing, types that no layer selects, its lag."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec import UNSET

from app.runtime.worker_status import WorkerStatus
from tables.archive.embedded.archive import EmbeddedArchive
from tables.model.layer import Map
from tests.support.common import (
    DAY_MS,
    HOUR_MS,
    NO_PRESSURE,
    MemoryLog,
    dataclasses_replace,
    flight,
    small_map,
)
from tests.support.local_worker import RAW, LocalWorker
from tests.support.owned import KEYED, UNKEYED


class Lags:
    """The transport of a status, with one partition that is behind."""

    def lag_records(self) -> dict[tuple[str, int], int | None]:
        """Return the lag of one partition, and one that is not known."""
        return {(RAW, 1): None, (RAW, 0): 7}


@pytest.fixture
async def archive(tmp_path: Path) -> AsyncIterator[EmbeddedArchive]:
    """Return a closed archive that is closed again at the end."""
    made = EmbeddedArchive(tmp_path / "archive")
    yield made
    await made.close()


async def status_of(themap: Map, archive: EmbeddedArchive, log: MemoryLog, folder: Path) -> Any:
    """Return a worker that has read a log, and its status."""
    await archive.open(themap)
    house = LocalWorker(log, archive, folder, themap)
    await house.restore()
    while await house.step(RAW, 1_000):
        pass
    transport: Any = Lags()
    status = WorkerStatus(
        themap, archive, house.owners, transport, NO_PRESSURE,
        readiness=list, types=house.ingest.types,
    )  # fmt: skip
    return house, status


def event(kind: str, at: int = 5) -> bytes:
    """Return an event of another type than flights have."""
    return orjson.dumps({**orjson.loads(flight(at)), "type": kind})


async def test_a_layer_that_selects_nothing_is_told_with_the_types_seen(
    archive: EmbeddedArchive, tmp_path: Path
) -> None:
    """A pattern in the wrong case selects nothing; nobody sees that in counts of zero."""
    hour, day = small_map().layers
    wrong = dataclasses_replace(hour, name="landed", events=("Flight.landed",))
    themap = small_map(layers=(hour, day, wrong))
    log = MemoryLog()
    for _ in range(3):
        log.put(RAW, 0, flight(HOUR_MS + 5))
    log.put(RAW, 1, flight(DAY_MS, "EWR"))
    for kind in ("bird.strike", "bird.strike", "drone"):
        log.put(RAW, 1, event(kind))
    house, status = await status_of(themap, archive, log, tmp_path / "state")
    layers = {layer.name: layer for layer in status.layers()}
    assert (layers["hour"].selected, layers["hour"].hint) == (4, UNSET)
    assert layers["landed"].selected == 0
    assert layers["landed"].hint == (
        "landed has selected nothing of 7 events: it selects Flight.landed; types seen:"
        " bird.strike, drone, flight.departed"
    )
    assert layers["day"].hint is UNSET
    assert status.unselected() == {"flights": {"bird.strike": 2, "drone": 1}}
    assert (layers["hour"].first_ms, layers["hour"].last_ms) == (HOUR_MS, DAY_MS)
    assert (layers["landed"].first_ms, layers["landed"].last_ms) == (None, None)
    assert status.lag() == {RAW: {"0": 7, "1": None}}
    await house.kill()
    house.start()
    await house.restore()
    again = WorkerStatus(
        themap, archive, house.owners, Lags(), NO_PRESSURE, readiness=list,  # type: ignore[arg-type]
        types=house.ingest.types,
    )  # fmt: skip
    (hint,) = [layer.hint for layer in again.layers() if layer.name == "landed"]
    assert str(hint).endswith("types seen: none since the worker started")
    await house.kill()


@pytest.mark.parametrize("themap", [KEYED, UNKEYED], ids=["keyed", "merged"])
async def test_windows_and_selected_events_are_counted(
    themap: Map, archive: EmbeddedArchive, tmp_path: Path
) -> None:
    """Archived windows count too; a merged layer's events are those of its combiner."""
    log = MemoryLog()
    for hour in range(30):
        log.put(RAW, hour % 2, flight(hour * HOUR_MS, ("LGA", "JFK")[hour % 2]))
    for partition in range(2):
        log.put(RAW, partition, 10 * DAY_MS)
    house, status = await status_of(themap, archive, log, tmp_path / "state")
    await house.settle()
    layers = {layer.name: layer for layer in status.layers()}
    assert layers["hour"].selected == 30
    assert layers["hour"].first_ms == 0
    assert 29 * HOUR_MS <= layers["hour"].last_ms <= 10 * DAY_MS
    assert layers["day"].selected > 0, "contributions of hours"
    assert layers["day"].first_ms == 0
    await house.kill()
