"""Tests of `tables/model/`."""
