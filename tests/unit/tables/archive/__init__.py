"""Tests of `tables/archive/`."""
