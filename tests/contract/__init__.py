"""Batteries that every implementation of one protocol passes, and what pinned libraries promise."""
