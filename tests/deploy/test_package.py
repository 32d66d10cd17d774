"""The packages people install: sdist and wheel, the library for clients alone, and the worker."""

from __future__ import annotations

import asyncio
import email
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from app.__main__ import COMMANDS
from tests import ROOT
from tests.support.common import flight
from tests.support.deploy_support import closure, project, top_packages
from tests.support.package_support import attempt, build, make_environment, run, tracked
from tests.support.waiting import until
from tests.support.worker_process import HOUR_MS, SECONDS_MAX, Process, apply
from treasure_map.installed import WORKER_MODULES

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("package")]

ASK = """
import importlib.util, sys
from treasure_map import QueryClient
foreign = [name for name in ("polars", "faust", "rocksdict", "aiohttp", "aiokafka", "click")
           if importlib.util.find_spec(name)]
assert not foreign, foreign
with QueryClient(sys.argv[1]) as client:
    for cell in client.cells("hour", {"origin": "JFK"}, 0, "2030-01-01").cells:
        print(cell.key["carrier"], cell.window_start, cell.measures["count"])
"""
WANTS = """
import treasure_map
try:
    %s
except treasure_map.MissingExtraError as error:
    print(error.extra, error.name, error)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return sdist and wheel."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def client_python(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with msgspec and the wheel, and nothing else."""
    return make_environment(tmp_path_factory.mktemp("client") / "env", built[1], ["msgspec"])


@pytest.fixture(scope="module")
def worker_python(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the extra `worker`, and no more."""
    declared = project()["project"]
    needed = closure([*declared["dependencies"], *declared["optional-dependencies"]["worker"]])
    folder = tmp_path_factory.mktemp("worker") / "env"
    return make_environment(folder, built[1], needed, "worker")


def test_the_wheel_has_every_module(built: tuple[Path, Path]) -> None:
    """All packages are there, with the maps that commands play, without tests and benchmarks."""
    with zipfile.ZipFile(built[1]) as wheel:
        inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == set(tracked(*top_packages()))


def test_the_wheel_says_what_it_is(built: tuple[Path, Path]) -> None:
    """Its metadata has author, licence and audience: an index shows these and nothing else."""
    with zipfile.ZipFile(built[1]) as wheel:
        (name,) = [one for one in wheel.namelist() if one.endswith(".dist-info/METADATA")]
        told = email.message_from_bytes(wheel.read(name))
        licence = wheel.read(name.replace("METADATA", "licenses/LICENSE"))
    declared = project()["project"]
    assert (told["Name"], told["Version"]) == ("treasure-map", declared["version"])
    assert told["License-Expression"] == "Apache-2.0"
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert told["Author"] == "Treasure Map contributors"
    assert told["Summary"]
    assert told["Keywords"]
    assert str(told.get_payload()).startswith("# Treasure Map\n")
    assert {one.split(" :: ")[0] for one in told.get_all("Classifier", [])} >= {
        "Development Status", "Intended Audience", "Programming Language", "Typing",
    }  # fmt: skip
    assert set(told.get_all("Provides-Extra", [])) == {
        "worker", "cassandra", "avro", "protobuf", "verify", "demo", "async", "feed", "frame",
    }  # fmt: skip


def test_the_sdist_has_the_examples_and_no_tests(built: tuple[Path, Path]) -> None:
    """And all that the wheel is made of: the wheel of these tests is made of it."""
    with tarfile.open(built[0]) as sdist:
        files = {one.name.partition("/")[2] for one in sdist.getmembers() if one.isfile()}
    assert set(tracked("examples", "docs", "LICENSE", "CHANGELOG.md", *top_packages())) <= files
    assert not {name for name in files if name.startswith(("tests/", "benchmarks/"))}


async def test_the_library_alone_asks_a_worker(
    client_python: Path, processes: Callable[..., Process], tmp_path: Path
) -> None:
    """It needs msgspec and no library of the worker; the answer is that of the events sent."""
    worker = processes()
    await apply(worker)
    worker.start()
    await worker.ready()
    raw = f"{worker.map_name}.raw"
    await worker.send(raw, *((0, flight(at)) for at in (HOUR_MS, HOUR_MS + 1, 2 * HOUR_MS)))

    async def folded() -> bool:
        _, ledger = await worker.get("/v1/ledger")
        return bool(ledger["layers"]["hour"]["folded"] == 3)

    await until(folded, SECONDS_MAX)
    url = f"http://127.0.0.1:{worker.port}"
    told = await asyncio.to_thread(run, client_python, "-c", ASK, url, cwd=tmp_path)
    assert told == f"UA {HOUR_MS} 2\nUA {2 * HOUR_MS} 1\n"


@pytest.mark.parametrize(
    ("extra", "module", "asked"),
    [
        ("async", "aiohttp", "import treasure_map.query_async"),
        ("feed", "aiokafka", "treasure_map.follow('m.feed.hour').__enter__()"),
        ("frame", "polars", "treasure_map.QueryClient().frame('hour', treasure_map.Range(0, 1))"),
        (
            "frame",
            "polars",
            "import treasure_map.feed as f; f.decode_record(b'\\xff\\xff\\xff\\xff')",
        ),
    ],
)
def test_a_missing_extra_says_how_it_is_installed(
    client_python: Path, extra: str, module: str, asked: str
) -> None:
    """The message has the words of a shell, and comes at the first need."""
    told = run(client_python, "-c", WANTS % asked)
    assert told.startswith(f"{extra} {module} cannot ")
    assert told.endswith(f'run: pip install "treasure-map[{extra}]"\n')


def test_without_the_worker_its_command_says_how_it_is_installed(client_python: Path) -> None:
    """A script and modules do so, with exit code 1 and one line."""
    script = client_python.with_name("treasure-map")
    for command in ([script], [client_python, "-m", "treasure_map"], [client_python, "-m", "app"]):
        done = attempt(*command, "worker")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: cannot start treasure-map: only its library")
        assert done.stderr.endswith(
            'in an environment of its own, run: pip install "treasure-map[worker]"\n'
        )
        assert "got no module aiokafka, click, " in done.stderr


def test_an_installed_worker_has_its_defaults(
    worker_python: Path, embedded: str, tmp_path: Path
) -> None:
    """Far from any source tree: it writes a load of the map that it brings, into this folder."""
    script = worker_python.with_name("treasure-map")
    shown = run(script, "--help", cwd=tmp_path)
    assert set(re.findall(r"^  (\w+)  ", shown, re.MULTILINE)) == COMMANDS.keys()
    default = re.sub(r"\s+", "", run(script, "generate", "--help", cwd=tmp_path))
    (map_file,) = Path(worker_python.parents[1]).glob("lib/*/site-packages/app/load/*.toml")
    assert f"elsethatofashop,{map_file}]" in default
    brokers = {"TREASURE_MAP_BROKERS": embedded}
    run(script, "map", "apply", map_file, cwd=tmp_path, **brokers)
    load = ("generate", "--rate", "500", "--seconds", "1", "--no-settle")
    told = run(script, *load, cwd=tmp_path, **brokers)
    assert "\nwrote 500 events" in told
    assert [file.name for file in (tmp_path / "var").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["demo"], "demo"),
        (["replay", "flights"], "demo"),
        (["verify", "--url", "http://127.0.0.1:1"], "verify"),
        (["map", "apply", "MAP", "--archive", "cassandra"], "cassandra"),
    ],
)
def test_an_installed_worker_says_which_extra_a_command_needs(
    worker_python: Path, embedded: str, tmp_path: Path, arguments: list[str], extra: str
) -> None:
    """Every command is there; one that lacks packages says how they are installed."""
    (map_file,) = Path(worker_python.parents[1]).glob("lib/*/site-packages/app/load/*.toml")
    settings = {"TREASURE_MAP_BROKERS": embedded, "TREASURE_MAP_MAP_FILE": str(map_file)}
    given = [one.replace("MAP", str(map_file)) for one in arguments]
    script = worker_python.with_name("treasure-map")
    run(script, "map", "apply", map_file, cwd=tmp_path, **settings)
    done = attempt(script, *given, cwd=tmp_path, **settings)
    # Verification says with 1 that rows differ, and with 2 that it cannot tell.
    assert done.returncode == (2 if extra == "verify" else 1), done.stderr
    assert done.stderr.startswith("error: cannot ")
    assert f'run: pip install "treasure-map[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_an_installed_library_knows_its_version(client_python: Path, tmp_path: Path) -> None:
    """It reads the metadata that the installer wrote, far from any source tree."""
    told = run(client_python, "-c", "import treasure_map as t; print(t.__version__)", cwd=tmp_path)
    assert told.strip() == project()["project"]["version"]


def test_every_package_of_the_worker_is_looked_for() -> None:
    """Or the first of them that is missing would be told as a traceback."""
    modules = {"faust-streaming": "faust", "prometheus-client": "prometheus_client"}
    extras = project()["project"]["optional-dependencies"]
    names = {Requirement(text).name for text in extras["worker"]}
    assert {modules.get(name, name) for name in names - {"uvloop"}} | {"msgspec"} == set(
        WORKER_MODULES
    )
