"""Tests, by the parts they run: rules alone, a worker in this process, or processes and servers."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder of the whole project."""
