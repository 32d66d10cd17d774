"""Answers to requests: plans them, asks owners and archive, follows changes."""
