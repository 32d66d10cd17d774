"""``python -m app query`` prints the answer of the endpoint, as a table or JSON."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from click.testing import CliRunner, Result

from app.commands.query import command
from app.commands.query_tables import sparkline
from app.trust.tokens import make_token
from app.verify.errors import RefusedError
from app.verify.workers import Workers
from tables.model.errors import QueryError, SettingError
from tests.support.common import HOUR_MS, small_map
from tests.support.pki import Authority
from tests.support.servers import free_ports
from tests.support.web_support import in_thread, release_before, served, stored

MAP = small_map()
DAY = ["--from", "1970-01-01", "--to", "1970-01-02"]


async def run(*arguments: str, **environment: str) -> Result:
    """Run the command beside the server; its operating errors are raised."""
    return await in_thread(
        CliRunner().invoke, command, arguments, env=environment, catch_exceptions=False
    )


async def test_a_table_shows_keys_windows_and_measures(tmp_path: Path) -> None:
    """Times are RFC 3339; nothing is cut if the output is not a terminal."""
    long = "x" * 200
    async with served(MAP, tmp_path, [stored(), stored(long, hour=1)]) as (_, url):
        result = await run("hour", *DAY, "--url", url)
    assert result.exit_code == 0
    for text in ("hour", "origin", "mean_delay", "1970-01-01T01:00:00Z", "1.000000", long):
        assert text in result.stdout
    assert "2 cells" in result.stdout
    assert result.stderr == ""


async def test_json_holds_the_cells_and_what_is_missing(tmp_path: Path) -> None:
    """One document; integers beyond 64 bits are text, as over HTTP."""
    rows = [stored("EWR"), stored("JFK"), stored("JFK", hour=1) | {"sum_delay": -(2**80)}]
    async with served(MAP, tmp_path, rows[:2], rows[2:]) as (_, url):
        result = await run("hour", *DAY, "--key", "origin=JFK", "--json", "--url", url)
    document: Any = orjson.loads(result.stdout)
    assert (document["layer"], document["partial"], document["more"]) == ("hour", False, False)
    assert [cell["window_start"] for cell in document["cells"]] == [0, HOUR_MS]
    sums = [cell["measures"]["sum_delay"] for cell in document["cells"]]
    assert sums == [1, str(-(2**80))]


async def test_a_limit_and_a_missing_owner_are_told(tmp_path: Path) -> None:
    """Standard error has them, so that the output stays a document; the title says partial too."""
    async with served(MAP, tmp_path, [stored(hour=hour) for hour in range(3)]) as (view, url):
        view.live.served = {0}
        result = await run("hour", *DAY, "--limit", "2", "--url", url)
        assert "… 1 more cell; --limit 0 shows all" in result.stdout
        assert "2 cells, from 1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z" in result.stdout
        whole = await run("hour", *DAY, "--limit", "0", "--url", url)
        assert ("3 cells" in whole.stdout, "more" in whole.stdout) == (True, False)
        assert "partial: owners" in result.stderr
        assert "hour (partial)" in result.stdout
        document = orjson.loads((await run("hour", *DAY, "--json", "--url", url)).stdout)
    assert (document["partial"], document["more"]) == (True, False)


async def test_a_file_has_values_as_they_are(tmp_path: Path) -> None:
    """CSV in a file or a pipe, and Parquet: keys that differ by a colour are two keys."""
    origins = {"", "a", "\x1b[31ma", 'a,"b"\r\nc', "=1+1", "\x00", "\u202e"}
    file = tmp_path / "rows.parquet"
    async with served(MAP, tmp_path / "archive", list(map(stored, origins))) as (_, url):
        text = (await run("hour", *DAY, "--csv", "--url", url)).stdout_bytes.decode()
        await run("hour", *DAY, "--parquet", str(file), "--url", url)
        with pytest.raises(QueryError, match="cannot write /dev/full: No space left on device"):
            await run("hour", *DAY, "--parquet", "/dev/full", "--url", url)
    assert {row["origin"] for row in csv.DictReader(io.StringIO(text, newline=""))} == origins
    assert set(pl.read_parquet(file)["origin"]) == origins


@pytest.mark.parametrize("page_rows_max", [500, 10_000])
async def test_a_limit_above_one_page_follows_the_cursor(
    tmp_path: Path, page_rows_max: int
) -> None:
    """1,200 cells are three pages of an endpoint with small ones."""
    rows = [stored(f"o{number}") for number in range(1_200)]
    async with served(MAP, tmp_path, rows, query_limit_max=page_rows_max) as (_, url):
        table = await run("hour", *DAY, "--limit", "1100", "--csv", "--url", url)
        assert len(table.stdout.splitlines()) == 1_101
        result = await run("hour", *DAY, "--limit", "1100", "--json", "--url", url)
    document = orjson.loads(result.stdout)
    assert (len(document["cells"]), document["more"]) == (1_100, True)
    assert document["rows_after"] == 100
    assert "… 100 more cells; --limit 0 shows all" in result.stderr
    origins = {cell["key"]["origin"] for cell in document["cells"]}
    assert len(origins) == 1_100


async def test_data_cannot_steer_the_terminal(tmp_path: Path) -> None:
    """Control characters are shown as escapes, and markup of rich as it stands."""
    async with served(MAP, tmp_path, [stored("\x1b[2J", "[bold]")]) as (_, url):
        result = await run("hour", *DAY, "--url", url)
    assert "\x1b" not in result.stdout
    assert r"\x1b[2J" in result.stdout
    assert "[bold]" in result.stdout


ROWS = [
    stored(origin, hour=hour, delays=[delay])
    for origin, delays in (("JFK", [0, 7, 14]), ("LGA", [5, 5]))
    for hour, delay in enumerate(delays)
]


async def test_steps_of_a_family_are_rows_or_bars(tmp_path: Path) -> None:
    """As bars: a line a key, a column a measure; a step without rows is a gap."""
    words = ["--step", "1h", "--group", "origin", "--measure", "sum_delay"]
    async with served(MAP, tmp_path, ROWS) as (_, url):
        # Any layer of the family names it.
        table = await run("day", *DAY, *words, "--url", url)
        assert table.stdout.count("JFK") == 3
        assert "5 rows, from 1970-01-01T00:00:00Z to 1970-01-02T00:00:00Z, exact" in table.stdout
        result = await run("hour", *DAY, *words, "--bars", "--url", url)
    lines = result.stdout.splitlines()
    (jfk,) = [line for line in lines if "JFK" in line]
    (lga,) = [line for line in lines if "LGA" in line]
    assert "▁▄█" in jfk
    assert " 14 " in jfk
    assert "▅▅ " in lga
    assert "exact" in result.stdout


async def test_rows_of_a_family_without_steps_are_a_table(tmp_path: Path) -> None:
    """Several keys are one request; everything may be added up."""
    words = ["--group", "-", "--key", "origin=JFK", "--key", "origin=LGA"]
    async with served(MAP, tmp_path, ROWS) as (_, url):
        result = await run("hour", *DAY, *words, "--url", url)
        assert "1 row, from" in result.stdout
        assert " 31 " in result.stdout
        document = orjson.loads(
            (await run("hour", *DAY, "--step", "1h", "--json", "--url", url)).stdout
        )
    assert document["exactness"] == "exact"
    assert [row["measures"]["count"] for row in document["rows"]] == [2, 2, 1]


async def test_csv_and_parquet_have_all_rows(tmp_path: Path) -> None:
    """Whatever is cut or missing stands on standard error, so that the file stays a table."""
    words = ["--step", "1h", "--group", "origin", "--measure", "sum_delay"]
    rows = [*ROWS, *(stored("big", hour=hour) | {"sum_delay": 2**80} for hour in range(1_200))]
    span = ["--from", "1970-01-01", "--to", "1970-03-01"]
    async with served(MAP, tmp_path / "a", rows) as (view, url):
        result = await run("hour", *span, *words, "--csv", "--url", url)
        lines = result.stdout.splitlines()
        assert len(lines) == 1_206
        assert lines[:3] == [
            "origin,window_start,window_end,sum_delay",
            "JFK,1970-01-01T00:00:00Z,1970-01-01T01:00:00Z,0",
            "LGA,1970-01-01T00:00:00Z,1970-01-01T01:00:00Z,5",
        ]
        assert f"big,1970-01-01T00:00:00Z,1970-01-01T01:00:00Z,{2**80}" in lines
        assert result.stderr == ""
        view.live.served = {0}
        some = await run("hour", *span, "--csv", "--limit", "1100", "--url", url)
        assert len(some.stdout.splitlines()) == 1_101
        assert "partial: owners" in some.stderr
        assert "… 105 more cells; --limit 0 shows all" in some.stderr
        file = tmp_path / "rows.parquet"
        done = await run("hour", *span, *words, "--parquet", str(file), "--url", url)
        assert f"1,205 rows in {file}" in done.stderr
        assert done.stdout == ""
        frame = pl.read_parquet(file)
        assert frame.schema["window_start"] == pl.Datetime("ms", "UTC")
        assert frame.schema["sum_delay"] == pl.Decimal(38, 0)
        assert frame["sum_delay"].sum() == 31 + 1_200 * 2**80
        with pytest.raises(QueryError, match=r"cannot write .*No such file"):
            await run("hour", *span, "--parquet", str(tmp_path / "no" / "x"), "--url", url)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--json", "--csv"], "cannot use --json with --csv: give one of them"),
        (["--watch", "--csv"], "cannot use --watch with --csv"),
        (["--watch", "--parquet", "x"], "cannot use --watch with --parquet"),
        (["--bars"], "cannot use --bars without --step"),
        (["--limit", "-1"], "-1 is not in the range"),
    ],
)
async def test_forms_exclude_each_other(flags: list[str], message: str) -> None:
    """The command ends before anything is asked."""
    result = await run("hour", *DAY, *flags)
    assert (result.exit_code, message in result.stderr) == (2, True)


async def test_times_of_the_clock_and_open_ends_are_sent_on(tmp_path: Path) -> None:
    """The worker reads them; the caption has the range."""
    async with served(MAP, tmp_path, ROWS) as (view, url):
        view.live.first_ms, view.live.last_ms = 0, 2 * HOUR_MS
        result = await run("hour", "--url", url)
        assert "5 cells, from 1970-01-01T00:00:00Z to 1970-01-01T03:00:00Z" in result.stdout
        result = await run("hour", "--from", "-1h", "--to", "now", "--url", url)
        assert "0 cells, from 20" in result.stdout
        with pytest.raises(QueryError, match="from: not a time; got 'noon'"):
            await run("hour", "--from", "noon", "--url", url)


async def test_a_worker_that_starts_is_asked_again_later(tmp_path: Path) -> None:
    """The refusal says so, instead of the number of steps in the calendar."""
    async with served(MAP, tmp_path, ROWS) as (view, url):
        view.live.served = set()
        for form in ([], ["--csv"], ["--json"]):
            with pytest.raises(QueryError, match=r"owners of .* do not answer yet.* ask again"):
                await run("hour", "--step", "day", *form, "--url", url)


async def test_answers_of_the_release_before_are_shown(tmp_path: Path) -> None:
    """They have neither the range nor the number of rows after them; nothing is made up."""
    async with served(MAP, tmp_path, ROWS) as (_, url), release_before(url) as older:
        result = await run("hour", *DAY, "--limit", "2", "--url", older)
        assert result.stdout.splitlines()[-2:] == ["2 cells", "… more cells; --limit 0 shows all"]
        result = await run("hour", *DAY, "--step", "1h", "--limit", "2", "--url", older)
        assert result.stdout.splitlines()[-2:] == [
            "2 rows, exact", "… more rows; --limit 0 shows all",
        ]  # fmt: skip
        result = await run("hour", *DAY, "--csv", "--url", older)
        assert (len(result.stdout.splitlines()), result.stderr) == (6, "")


async def test_the_address_is_that_of_the_settings(tmp_path: Path) -> None:
    """Those of the environment count too, a URL before a port."""
    async with served(MAP, tmp_path, ROWS) as (_, url):
        port = url.rpartition(":")[2]
        other = str(free_ports(1)[0])
        assert "5 cells" in (await run("hour", *DAY, TREASURE_MAP_WEB_PORT=port)).stdout
        both = {"TREASURE_MAP_WEB_PORT": other, "TREASURE_MAP_WEB_URL": f"{url}/"}
        assert "5 cells" in (await run("hour", *DAY, **both)).stdout
        file = tmp_path / "settings.toml"
        file.write_text(f'web_port = {other}\nweb_url = "{url}"\n')
        found = await run("hour", *DAY, TREASURE_MAP_SETTINGS=str(file))
        assert "5 cells" in found.stdout
        with pytest.raises(QueryError, match=f"cannot reach http://127.0.0.1:{other}"):
            await run("hour", *DAY, TREASURE_MAP_WEB_PORT=other)


async def test_watching_draws_again_until_it_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is away for a moment is waited for."""
    asked: list[float] = []
    async with served(MAP, tmp_path, ROWS) as (view, url):

        def pause(seconds: float) -> None:
            asked.append(seconds)
            view.live.frame = view.live.frame.head(1)
            if len(asked) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr("app.commands.query.time.sleep", pause)
        result = await run("hour", *DAY, "--watch", "--url", url)
    assert result.exit_code == 0
    assert len(asked) == 3
    assert "5 cells" in result.stdout or "1 cell," in result.stdout
    refused = await run("hour", *DAY, "--watch", "--json")
    assert (refused.exit_code, "cannot use --watch with --json" in refused.stderr) == (2, True)


async def test_an_empty_answer_is_a_table_without_rows(tmp_path: Path) -> None:
    """No cells is an answer, not an error."""
    async with served(MAP, tmp_path) as (_, url):
        result = await run("hour", *DAY, "--url", url)
    assert result.exit_code == 0
    assert "0 cells" in result.stdout


async def test_the_token_comes_from_the_environment(tmp_path: Path) -> None:
    """Never from a flag, which would stand in the process list."""
    token = "correct-horse-battery"  # noqa: S105 - no password of anything
    async with served(MAP, tmp_path, [stored()], web_token=token) as (_, url):
        arguments = ("hour", *DAY, "--url", url)
        assert (await run(*arguments, TREASURE_MAP_WEB_TOKEN=token)).exit_code == 0
        with pytest.raises(QueryError, match="the token is missing or wrong"):
            await run(*arguments)
        file = tmp_path / "token"
        file.write_text(f"{token}\n")
        assert (await run(*arguments, TREASURE_MAP_WEB_TOKEN_FILE=str(file))).exit_code == 0
        with pytest.raises(SettingError, match=r"web_token_file \(environment .*cannot read"):
            await run(*arguments, TREASURE_MAP_WEB_TOKEN_FILE=str(tmp_path / "none"))


async def test_what_a_reader_lacks_is_named(tmp_path: Path) -> None:
    """A token, an authority, the scheme: a worker runs there already."""
    authority = Authority(tmp_path / "authority")
    issued = authority.issue("worker", "127.0.0.1", "localhost")
    guarded: dict[str, Any] = {
        "web_token": "correct-horse-battery", "web_cert_file": str(issued.cert_file),
        "web_key_file": str(issued.key_file),
    }  # fmt: skip
    ca_file = str(authority.ca_file)
    async with served(MAP, tmp_path, [stored()], **guarded) as (_, url):
        place = url.removeprefix("https://")
        with pytest.raises(QueryError, match="give its PEM file with `ca_file`, or --ca-file"):
            await run("hour", *DAY, "--url", url)
        with pytest.raises(QueryError, match="give https:// instead of http://"):
            await run("hour", *DAY, "--url", f"http://{place}")
        with pytest.raises(QueryError, match="TREASURE_MAP_WEB_TOKEN, or TREASURE_MAP_WEB_TOKEN_"):
            await run("hour", *DAY, "--url", url, "--ca-file", ca_file)
        wrong = {"TREASURE_MAP_WEB_TOKEN": "wrong-horse-battery"}
        with pytest.raises(QueryError, match=r"valid now$"):
            await run("hour", *DAY, "--url", url, "--ca-file", ca_file, **wrong)
        file = tmp_path / "settings.toml"
        given = guarded | {"web_ca_file": ca_file}
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in given.items()]
        file.write_text("".join(lines) + f"web_port = {place.rpartition(':')[2]}\n")
        result = await run("hour", *DAY, "--settings", str(file))
        assert "1 cell," in result.stdout
    async with served(MAP, tmp_path / "plain", [stored()]) as (_, url):
        with pytest.raises(QueryError, match="give http:// instead of https://"):
            await run("hour", *DAY, "--url", url.replace("http:", "https:"))


async def test_a_verifier_does_not_wait_for_a_token_to_change(tmp_path: Path) -> None:
    """A ledger wants the scope admin: asking again until the deadline gives the same."""
    file = tmp_path / "tokens.json"
    secret = make_token(file, "reader", ["read"])
    async with (
        served(MAP, tmp_path / "archive", web_tokens_file=str(file)) as (_, url),
        Workers(MAP, [url], secret, None, early=False, page_cells=9) as workers,
    ):
        with pytest.raises(RefusedError, match=r"scope admin; .* web_token or web_token_file"):
            await workers.quiet({})


def test_a_verifier_wants_every_worker() -> None:
    """Partitions of other workers are not at the given URLs."""
    workers = Workers(MAP, ["http://a:1"], None, None, early=False, page_cells=9)
    assert workers.missing({}, {("raw", 9): 1}) == (
        "raw[9] is not owned by http://a:1; give --url of every worker"
    )


async def test_a_refusal_of_the_endpoint_is_passed_on(tmp_path: Path) -> None:
    """The error has the change to make."""
    async with served(MAP, tmp_path) as (_, url):
        with pytest.raises(QueryError, match=r"did you mean key.origin\?"):
            await run("hour", *DAY, "--key", "orign=JFK", "--url", url)


@pytest.mark.parametrize("keys", [["origin"], ["=JFK"], ["origin=a", "origin=b"]])
async def test_keys_that_are_no_pairs_are_usage_errors(keys: list[str]) -> None:
    """The command ends before anything is asked."""
    flags = [part for key in keys for part in ("--key", key)]
    result = await run("hour", *DAY, *flags)
    assert result.exit_code == 2
    assert "cannot use --key" in result.stderr


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([1, 2, 3], "▁▄█"),
        ([5, 5], "▅▅"),
        ([None, 1.5, 3.0], " ▁█"),
        ([None, "text"], "  "),
        ([-(2**90), 0, 2**90], "▁▄█"),
        ([1.0, 9e307, 5.0], "▁█▁"),
        ([-1.7e308, 0.0, 1.7e308], "▁▄█"),
        ([1.0, float("inf"), float("nan"), 2.0], "▁  █"),
        ([2**1100, 0, 1.5], "█▁▁"),
    ],
)
def test_bars_go_from_the_least_to_the_greatest(values: list[Any], bars: str) -> None:
    """Numbers may be of any size; a missing number is a space."""
    assert sparkline(values) == bars


def test_without_a_worker_the_command_fails_with_one_line() -> None:
    """Exit code 1 and a message, no traceback; no module of the worker is imported."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    arguments = ["-X", "importtime", "-m", "app", "query", "hour", *DAY, "--url", url]
    done = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: cannot reach {url}")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "treasure_map.query" in imported
    assert not imported & {"faust", "aiokafka", "aiohttp", "rocksdict"}
