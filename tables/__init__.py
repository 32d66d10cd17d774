"""State: core rules, layer tables, journal, local store, archive.

A package of the worker of Treasure Map.
"""
