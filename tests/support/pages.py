"""Commands of a page, run in one shell as a reader would, block by block."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests import ROOT

BLOCK_S_MAX = 120.0
_DONE = "the block is done: "


def blocks(page: str, heading: str) -> list[str]:
    """Return the blocks of bash in the section of a page with this heading, in their order."""
    text = (ROOT / page).read_text("utf-8")
    found = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page} has no section {heading}"
    return re.findall(r"^```bash\n(.*?)^```$", found[1], re.DOTALL | re.MULTILINE)


class Shell:
    """A bash in a folder, which ends with all processes that it has started.

    Args:
        folder: the folder that it works in.
        settings: settings in its environment, as ``TREASURE_MAP_`` variables.
        replaced: texts of the blocks, such as ports, and those that stand for them in the test.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, str], replaced: Mapping[str, str]
    ) -> None:
        own = {name: value for name, value in os.environ.items() if "TREASURE_MAP" not in name}
        own |= {f"TREASURE_MAP_{name.upper()}": value for name, value in settings.items()}
        own |= {
            "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{own['PATH']}",
        }  # fmt: skip
        self._replaced = replaced
        self._process = subprocess.Popen(
            ["bash", "--norc"], cwd=folder, env=own, start_new_session=True, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def run(self, block: str) -> str:
        """Run a block, of which no command may fail; return its output.

        A block that takes longer than ``BLOCK_S_MAX`` ends the shell.
        """
        for text, other in self._replaced.items():
            block = block.replace(text, other)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # A command that fails ends the shell, and with it the output.
        self._process.stdin.write(f"set -e\n{block}\nset +e\necho '{_DONE}'\n")
        self._process.stdin.flush()
        said = ""
        deadline = threading.Timer(BLOCK_S_MAX, os.killpg, [self._process.pid, signal.SIGKILL])
        deadline.start()
        try:
            while not said.endswith(f"{_DONE}\n"):
                line = self._process.stdout.readline()
                assert line, f"it ended after:\n{said}\nof the block:\n{block}"
                said += line
        finally:
            deadline.cancel()
        return said.removesuffix(f"{_DONE}\n")
