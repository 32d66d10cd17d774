"""docs/client.md: its snippets give the shown results, with the worker of the shown command."""

from __future__ import annotations

import doctest
import re

import pytest

from tests import ROOT
from tests.support.commands import read_until, running

PAGE = ROOT / "docs" / "client.md"
COMMAND = "python -m app try examples/shop.toml examples/shop.ndjson"


@pytest.mark.slow
def test_every_snippet_of_the_page_gives_the_shown_result() -> None:
    """They run one after the other, as a reader pastes them; only addresses differ."""
    text = PAGE.read_text("utf-8")
    assert COMMAND in text
    with running(*COMMAND.split()[3:]) as process:
        said = read_until(process.stdout, "it serves queries until Ctrl-C")
        url = re.search(r"all routes: (\S+)/docs", said)
        brokers = re.search(r"broker at (\S+),", said)
        assert url is not None, said
        assert brokers is not None, said
        text = text.replace("http://127.0.0.1:6066", url[1]).replace("127.0.0.1:9092", brokers[1])
        # A fence would be part of the shown result before it.
        snippets = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
        page = doctest.DocTestParser().get_doctest(snippets, {}, "client.md", str(PAGE), 0)
        told: list[str] = []
        runner = doctest.DocTestRunner(verbose=False)
        result = runner.run(page, out=told.append, clear_globs=False)
        page.globs["client"].close()
    assert result.failed == 0, "".join(told)
    assert result.attempted == text.count("\n>>> ") > 30
