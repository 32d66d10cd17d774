"""Tests of `app/verify/`."""
