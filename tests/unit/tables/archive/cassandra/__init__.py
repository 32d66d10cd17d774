"""Tests of ``tables.archive.cassandra``."""
