"""Agents: the steps from a chunk of records to applied state and emissions.

A package of the worker of Treasure Map.
"""
