"""Queries: requests, the planner, the merge of live and archived cells."""
