"""Findings of an examination: a level, the thing that was looked at, and a sentence."""

from __future__ import annotations

from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """One finding.

    Attributes:
        level: ``ok``; ``warn`` for a thing that works and should be mended; ``fail`` for one that
            keeps workers or commands from working.
        subject: the thing, in few words.
        text: its state; after the last semicolon the command or setting that mends it.
    """

    level: Level
    subject: str
    text: str


def of_problem(level: Level, problem: str) -> Finding:
    """Return the finding of a problem that reads ``SUBJECT: FAULT; REMEDY``."""
    subject, _, text = problem.partition(": ")
    return Finding(level, subject, text) if text else Finding(level, "problem", problem)
