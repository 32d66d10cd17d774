"""The files that a site and its tools read: they fit their schemas, and match this repository."""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from typing import Any

import jsonschema
import pytest
import yaml

from tests import ROOT
from tests.support.compose_file import published_schema

SCHEMAS = {
    ".github/workflows/ci.yml": "github-workflows",
    ".github/dependabot.yml": "dependabot",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/idea.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
}


def read(path: str) -> Any:
    """Return a YAML file of the repository as data."""
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


@pytest.mark.parametrize("path", SCHEMAS)
def test_a_file_of_the_site_is_one_by_its_published_schema(path: str) -> None:
    """And the schema refuses a file with a field that it does not know."""
    validator = jsonschema.Draft7Validator(published_schema(SCHEMAS[path]))
    document = read(path)
    assert [error.message for error in validator.iter_errors(document)] == []
    document["fields"] = {}
    assert list(validator.iter_errors(document))


def test_every_file_of_the_site_is_checked() -> None:
    """A workflow or template that is added is checked too."""
    found = {str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml")}
    assert found == set(SCHEMAS)


def test_the_workflow_runs_what_stands_in_ci_from_the_oldest_python_on() -> None:
    """It has the Java that the servers of the tests need."""
    job = read(".github/workflows/ci.yml")["jobs"]["test"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    versions = [tuple(map(int, one.split("."))) for one in job["strategy"]["matrix"]["python"]]
    assert f">={'.'.join(map(str, versions[0]))}" == project["requires-python"]
    assert versions == [(3, minor) for minor in range(versions[0][1], versions[-1][1] + 1)]
    given = {
        step["uses"].split("@")[0]: step.get("with") for step in job["steps"] if "uses" in step
    }
    assert int(given["actions/setup-java"]["java-version"]) >= 17
    assert (ROOT / given["actions/setup-java"]["cache-dependency-path"]).is_file()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


def test_hooks_before_a_commit_are_those_of_make_lint() -> None:
    """They run from the same environment, so that nobody meets another version's opinion."""
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    names = [hook["id"] for hook in local["hooks"]]
    assert len(set(names)) == len(names)
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")
        assert all((ROOT / word).is_file() for word in hook["entry"].split() if ".py" in word)
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert lint is not None
    of_make = set(re.findall(r"\$\(BIN\)/([\w-]+)", lint[1]))
    of_hooks = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in local["hooks"]}
    assert of_make <= of_hooks


def test_dependabot_looks_where_versions_are_pinned() -> None:
    """Each folder that it is sent to has the file that it reads there."""
    reads = {
        "pip": "pyproject.toml", "docker": "Dockerfile", "docker-compose": "docker-compose.yml",
        "maven": "pom.xml", "github-actions": ".github/workflows/ci.yml",
    }  # fmt: skip
    updates = read(".github/dependabot.yml")["updates"]
    assert {one["package-ecosystem"] for one in updates} == set(reads)
    for one in updates:
        folder = ROOT / one["directory"].lstrip("/")
        assert (folder / reads[one["package-ecosystem"]]).is_file()


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    """Changes not released yet come first, then each release with its date, the newest first."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    first, *releases = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert first == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d\d-\d\d)", one) for one in releases]
    versions = [tuple(map(int, one.groups()[:3])) for one in found if one]
    dates = [dt.date.fromisoformat(one[4]) for one in found if one]
    assert len(versions) == len(releases) > 0
    assert versions == sorted(versions, reverse=True)
    assert dates == sorted(dates, reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Previously"}
    for part in re.split(r"^## .+\n", text, flags=re.MULTILINE)[1:]:
        names = re.findall(r"^### (.+)$", part, re.MULTILINE)
        assert set(names) <= kinds
        assert len(set(names)) == len(names)


def test_coverage_counts_every_package_and_nothing_else() -> None:
    """A package that is renamed or added would be left out in silence."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]
    packages = tools["setuptools"]["packages"]["find"]["include"]
    assert sorted(tools["coverage"]["run"]["source"]) == sorted(one.rstrip("*") for one in packages)
