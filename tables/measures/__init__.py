"""Measures: one module for each, with its arithmetic over columns and over plain values."""
