"""The general way of folding and merging, also for the few rows that have a shorter one."""

from __future__ import annotations

import pytest


def use_frames(patch: pytest.MonkeyPatch) -> None:
    """Have all rows be too many."""
    for module in ("state.layer_table", "state.rollup_table", "query.answer", "query.top"):
        patch.setattr(f"tables.{module}.SMALL_ROWS_MAX", -1)
