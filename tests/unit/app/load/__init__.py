"""Tests of `app/load/`."""
