"""Tests of `tables/state/`."""
