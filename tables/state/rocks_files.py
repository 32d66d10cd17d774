"""Files that RocksDB leaves in a folder, and the words of its errors about damaged ones."""

from __future__ import annotations

import re

DAMAGE = ("Corruption", "No such file")
"""Words in RocksDB's errors about files that are not as it left them, or are not there."""

ROCKS_FILE = re.compile(
    r"\d+\.(sst|log|blob)|MANIFEST-\d+|OPTIONS-\d+(\.dbtmp)?|LOG(\.old.*)?|CURRENT|IDENTITY|LOCK"
    r"|rocksdict-config\.json"
)
"""Names of files that RocksDB makes, and rocksdict beside it."""
