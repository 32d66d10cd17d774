"""Tests of `agents/decode/`."""
