"""The site of docs/: it is built without a warning, has every page, and every link leads on."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest

from app.__main__ import COMMANDS
from app.mapfile.load import load_map
from tests import ROOT
from tests.support.page_reader import commands

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ALL_PAGES = [*PAGES, *sorted(ROOT.glob("*.md"))]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
OUR_COMMAND = re.compile(r"(?:^|[\s(])(?:\.venv/bin/)?python -m app ([^|>#\n]+)")


class Links(HTMLParser):
    """Collects the targets of the links in one part of a page, found by its class."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._part = part
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link inside the part."""
        given = dict(attrs)
        if tag == "div" and (self._depth or self._part in (given.get("class") or "").split()):
            self._depth += 1
        if tag == "a" and self._depth:
            self.found.append(given.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        """Note the end of the part."""
        if tag == "div" and self._depth:
            self._depth -= 1


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as the Makefile does; give its folder."""
    found = re.search(r"\$\(BIN\)/python (-m sphinx .*)", (ROOT / "Makefile").read_text())
    assert found is not None
    folder = tmp_path_factory.mktemp("site")
    line = found[1].replace(".cache/doctrees", str(folder / "trees"))
    line = line.replace("build/docs", str(folder / "pages"))
    built = subprocess.run(
        [sys.executable, *shlex.split(line)],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert "-W" in shlex.split(line)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "pages"


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site: Path) -> None:
    """It has been built without a warning by then, and links to itself by `#`."""
    sidebar = Links("sidebar-tree")
    sidebar.feed((site / "index.html").read_text("utf-8"))
    found = {link.removesuffix(".html") for link in sidebar.found}
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES}
    assert found - {"#"} == pages - {"index"}


@pytest.mark.slow
def test_the_search_knows_words_of_pages_and_docstrings(site: Path) -> None:
    """It is Sphinx's own, in the reader's browser."""
    index = (site / "searchindex.js").read_text("utf-8")
    assert (site / "search.html").is_file()
    assert "lateness-and-partitions" in index
    assert "cells_frame" in index


@pytest.mark.slow
def test_the_library_s_own_names_are_on_the_page_of_its_api(site: Path) -> None:
    """Methods that follow from requests have their answers' types there too."""
    page = (site / "api.html").read_text("utf-8")
    for name in ("query.QueryClient.rows", "query_async.AsyncQueryClient.rows", "follow.follow"):
        assert f'id="treasure_map.{name}"' in page
    assert "FamilyAnswer" in page.partition('id="treasure_map.query.QueryClient.rows"')[2][:4_000]


def anchors(page: Path) -> Iterator[str]:
    """Yield the anchors of a page's headings, as the code host makes them."""
    text = FENCE.sub("", page.read_text("utf-8"))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", heading).lower()
        yield re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_on_in_a_clone(page: Path) -> None:
    """To a file or folder that is there, and to a heading that it has."""
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in LINK.findall(text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}; want one of {list(anchors(file))}"


def our_commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each command of ours in the blocks of a page."""
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language in {"sh", "bash"}:
            for command in commands(block):
                first = command.split("\n")[0] if "<<" in command else command
                for words in OUR_COMMAND.findall(first.replace("\\\n", " ")):
                    yield shlex.split(words.strip().rstrip(")"), comments=True)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_have_the_options_that_they_use(page: Path) -> None:
    """A command or an option that was renamed is found here, on whatever page it stands."""
    for name, *rest in our_commands(page):
        assert name in COMMANDS, f"{page}: there is no command {name}"
        command: click.Command = importlib.import_module(COMMANDS[name]).command
        while isinstance(command, click.Group):
            assert rest[0] in command.commands, f"{page}: {name} has no command {rest[0]}"
            command = command.commands[rest.pop(0)]
        # Raises NoSuchOption; values are not looked at.
        command.make_parser(click.Context(command)).parse_args(args=rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_is_python_and_imports_names_that_exist(page: Path) -> None:
    """A name of the library that was renamed is found here."""
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language != "python" or block.startswith(">>>"):
            continue
        tree = compile(
            textwrap.dedent(block), str(page), "exec",
            ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("treasure_map"):
                library = importlib.import_module(str(node.module))
                assert all(hasattr(library, name.name) for name in node.names), f"{page}: {block}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_map_on_a_page_is_accepted(page: Path, tmp_path: Path) -> None:
    """Whole ones: a block that begins with a revision."""
    for language, block in FENCE.findall(page.read_text("utf-8")):
        if language == "toml" and block.startswith("revision"):
            file = tmp_path / "map.toml"
            file.write_text(block)
            load_map(file)
