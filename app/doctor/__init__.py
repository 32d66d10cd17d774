"""Examinations of a deployment: cluster, archive, host and settings, each finding with a remedy.

They change nothing, and reuse the checks of workers and commands.
"""
