"""Tests of `agents/fold/`."""
