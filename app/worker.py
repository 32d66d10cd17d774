"""The Faust App of a worker, for Faust's own command line: ``faust -A app.worker worker -l info``.

It is made from the environment and the settings file when this module is imported.
"""

from app.settings import load_settings
from app.station import build

app = build(load_settings())
