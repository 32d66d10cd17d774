"""Tests of `tables/record/`."""
