"""Tests of `app/demo/`."""
