"""The Faust App of a worker, for Faust's own command line: ``faust -A app.worker worker -l info``.

It is made from the environment and the settings file when this module is imported.
"""

from treasure_map.installed import require_worker

require_worker()

import sys

from faust.cli.worker import worker as faust_command

from app.config.settings import load_settings
from app.runtime.wiring import build
from app.runtime.worker_process import ignore_hangups, report_exit
from tables.model.errors import TreasureMapError

ignore_hangups()
# The log names map, address and partitions; Faust's own table of settings is left out.
faust_command.on_worker_created = lambda *_: None
try:
    app = build(load_settings())
except TreasureMapError as error:
    # Faust's command line would show a traceback of its own search for the App.
    report_exit(error)
    sys.exit(1)
