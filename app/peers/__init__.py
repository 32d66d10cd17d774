"""Live reads of other workers: requests, their bytes, and faults of workers."""
