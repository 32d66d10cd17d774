"""Tests of ``tables.archive.embedded``."""
