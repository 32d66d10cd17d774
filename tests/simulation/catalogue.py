"""All rules that can be dropped, in the order of docs/formats/journal.md."""

from __future__ import annotations

import importlib

from tests.simulation.rules import FOUND, Rule

for _module in ("rules_log", "rules_results", "rules_revisions"):
    importlib.import_module(f"tests.simulation.{_module}")

RULES: tuple[Rule, ...] = tuple(sorted(FOUND, key=lambda rule: rule.number))


def rule_named(name: str) -> Rule:
    """Return a rule by its name."""
    return next(rule for rule in RULES if rule.name == name)
