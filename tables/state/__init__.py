"""The state of a source partition: its journal, its layer tables, its local store."""
