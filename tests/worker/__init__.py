"""Tests of a worker's parts together, in this process: no broker, no server of others."""
