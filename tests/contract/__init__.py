"""Batteries that every implementation of one protocol passes, and promises of pinned libraries."""
