"""Between our payloads and Flower's messages; the only room that touches Flower's internals.

Importing it first, before ``flwr``, keeps Flower and Ray from calling home.
"""

import os

for _name, _value in (
    ("FLWR_TELEMETRY_ENABLED", "0"),
    ("FLWR_DISABLE_UPDATE_CHECK", "1"),
    ("RAY_USAGE_STATS_ENABLED", "0"),
):
    os.environ[_name] = _value
