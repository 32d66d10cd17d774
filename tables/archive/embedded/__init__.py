"""The archive inside the worker: one RocksDB in a folder."""
