"""Measurements of the whole job, each of which checks its answer before it tells a time."""
