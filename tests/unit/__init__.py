"""Tests of one module each, in the folders of the modules."""
