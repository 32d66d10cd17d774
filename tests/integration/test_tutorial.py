"""The tutorial: every command, on other events than its own, with the answers recomputed."""

from __future__ import annotations

import collections
import datetime as dt
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.support.page_reader import Check, Reader, Step, steps, table

PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
NOT_RUN = ("make setup", ". .venv/bin/activate")
"""They make the environment in which the tests run already."""

START = dt.datetime(2025, 11, 3, tzinfo=dt.UTC)
NAMES = {
    "rides": "parcels", "ride_finished": "parcel_delivered", "ride_cancelled": "parcel_lost",
    "bike": "van_size", "city_name": "depot_code", "fare_cents": "weight_g",
    "2026-03-01": "2025-11-03", "2026-03-05": "2025-11-07",
}  # fmt: skip
"""Names and times of the page, and those that stand for them in the test's events."""

Rows = dict[tuple[str, ...], tuple[int, int]]
"""By texts of a row's window and key, the number of its parcels and their weight."""


def parcels(seed: int) -> list[dict[str, Any]]:
    """Return other events than the page's: other names, other depths, several in a minute."""
    chance = random.Random(seed)
    made = []
    for number in range(4 * 24 * 90):
        at = START + dt.timedelta(seconds=40 * number + chance.randint(0, 39))
        delivered = chance.random() < 0.7
        parcel: dict[str, Any] = {
            "messageId": f"p{seed}-{number}",
            "body": {
                "vanSize": chance.choice(["small", "large"]),
                "route": {"depotCode": chance.choice(["N1", "N2", "S1", "W7"])},
            },
            "meta": {
                "messageType": "parcel.delivered" if delivered else "parcel.lost",
                "sentAt": at.isoformat().replace("+00:00", "Z"),
            },
        }
        if delivered:
            parcel["body"]["weightG"] = chance.randint(20, 31_500)
        made.append(parcel)
    return made


def sums(made: list[dict[str, Any]], hours: int, *fields: str) -> Rows:
    """Return count and weight of the delivered parcels, by windows of so many hours and fields."""
    found: dict[tuple[str, ...], list[int]] = collections.defaultdict(lambda: [0, 0])
    for parcel in made:
        if parcel["meta"]["messageType"] == "parcel.delivered":
            body = parcel["body"]
            at = dt.datetime.fromisoformat(parcel["meta"]["sentAt"])
            window = START + dt.timedelta(hours=(at - START) // dt.timedelta(hours=hours) * hours)
            values = {"vanSize": body["vanSize"], "depotCode": body["route"]["depotCode"]}
            row = found[window.strftime("%Y-%m-%dT%H:%M:%SZ"), *(values[name] for name in fields)]
            row[0] += 1
            row[1] += body["weightG"]
    return {key: (count, weight) for key, (count, weight) in found.items()}


def epoch_ms(time: str) -> int:
    """Return the milliseconds of a time's text since 1970."""
    return round(dt.datetime.fromisoformat(time).timestamp() * 1000)


def checks(made: list[dict[str, Any]]) -> dict[str, Check]:
    """Return how the output of commands that begin so is compared with the events."""
    by_city = sums(made, 24, "depotCode")
    by_both = {
        (start, *sorted(key)): row
        for (start, *key), row in sums(made, 24, "vanSize", "depotCode").items()
    }
    halves = sums(made, 12, "depotCode")
    ranks = sums(made, 96, "vanSize", "depotCode")
    by_van = sums(made, 24, "vanSize")

    def days(output: str) -> bool:
        found = {(row[0], *sorted(row[2:4])): int(row[4]) for row in table(output)}
        return found == {key: count for key, (count, _) in by_both.items()}

    def cities(output: str) -> bool:
        found = {(row[0], row[2]): (int(row[3]), int(row[4])) for row in table(output)}
        return found == by_city

    def steps_of_12h(output: str) -> bool:
        answer = json.loads(output)
        found = {}
        for row in answer["rows"]:
            key = row["window_start"], row["key"]["depot_code"]
            found[key] = row["measures"]["count"], row["measures"]["mean_weight_g"]
        want = {
            (epoch_ms(start), depot): (count, pytest.approx(weight / count))
            for (start, depot), (count, weight) in halves.items()
        }
        return bool(found == want and answer["exactness"] == "exact")

    def bars(output: str) -> bool:
        return all(re.search(rf"\b{depot}\b.*[▁-█]", output) for depot in ("N1", "S1", "W7"))

    def layers(output: str) -> bool:
        counts = collections.Counter(one["meta"]["messageType"] for one in made)
        return all(f"{count:,}" in output for count in counts.values())

    def top(output: str) -> bool:
        cells = json.loads(output)["cells"]
        heaviest = sorted((weight for _, weight in ranks.values()), reverse=True)[:2]
        return [cell["measures"]["sum_weight_g"] for cell in cells] == heaviest

    def client(output: str) -> bool:
        *rows, last = output.splitlines()
        want = [f"{epoch_ms(start)} {van} {n}" for (start, van), (n, _) in sorted(by_van.items())]
        return rows == want and last == "these rows are exact"

    return {
        "python -m app query ride_finished_day": days,
        "python -m app query ride_finished_5m --from": steps_of_12h,
        "python -m app query ride_finished_5m --step": bars,
        "python -m app layers": layers,
        "python -m app query cities_day": cities,
        "curl": top,
        "python - <<": client,
        "python -m app verify": lambda output: "all equal" in output,
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_reader_who_does_as_it_says_gets_the_right_answers(tmp_path: Path) -> None:
    """Each answer equals a recomputation from a file that the page does not know."""
    made = parcels(random.randrange(1_000_000))  # pytest prints the seed of all chance
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "parcels.ndjson").write_text("".join(json.dumps(one) + "\n" for one in made))
    known = checks(made)
    used = set()
    with Reader(tmp_path, NAMES) as reader:
        for step in steps(PAGE):
            if step.command in NOT_RUN or "> rides.ndjson" in step.command:
                continue
            begin = next((one for one in known if step.command.startswith(one)), None)
            used.add(begin)
            output = reader.follow(step, known[begin] if begin is not None else None)
            if step.command.startswith("python -m app try"):
                delivered = sum("weightG" in one["body"] for one in made)
                assert f"{delivered:,} folded into parcel_delivered_5m" in output
                assert f"{len(made) - delivered:,} folded into parcel_lost_5m" in output
    assert used - {None} == set(known)
    chart = (tmp_path / "parcels.svg").read_text("utf-8")
    per_day = [count for _, (count, _) in sorted(sums(made, 24).items())]
    assert re.findall(r">([\d,]+)</text>", chart) == [f"{count:,}" for count in per_day]


def test_the_page_s_own_file_gives_the_names_that_it_uses(tmp_path: Path) -> None:
    """And the counts that it shows."""
    with Reader(tmp_path, {}) as reader:
        for step in steps(PAGE):
            if "> rides.ndjson" in step.command or "map init" in step.command:
                reader.follow(step)
    text = (tmp_path / "rides.toml").read_text("utf-8")
    for name in NAMES:
        assert name in text or name.startswith("2026")
    types = collections.Counter(
        json.loads(line)["eventType"] for line in (tmp_path / "rides.ndjson").open(encoding="utf-8")
    )
    assert f"read {types.total():,} events of rides.raw" in PAGE
    for name, count in types.items():
        assert f"{count:,} folded into {name.replace('.', '_')}_5m" in PAGE


def test_steps_are_read_as_a_reader_reads_them() -> None:
    """Lines that continue, documents in a command, servers that end."""
    block = "a \\\n  b\ncat > x <<'END'\n1\n\nEND\nc\n"
    page = f"```sh\n{block}```\nEnd `try` with Ctrl-C.\n```\nz\n```\n"
    assert list(steps(page)) == [
        Step("a \\\n  b"), Step("cat > x <<'END'\n1\n\nEND"), Step("c"), Step(ended="try"),
    ]  # fmt: skip
