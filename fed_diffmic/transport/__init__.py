"""Between our payloads and Flower's messages; the only room that touches Flower's internals.

Importing it first, before ``flwr`` and ``ray``, keeps both from calling home and Ray on loopback.
"""

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray takes the machine's outward address, even if asked for 127.0.0.1, and its services then listen
# on every interface. This switch, named after the systems where it is the default, makes it stay on
# loopback; whoever runs a Ray cluster of several machines sets it to 1.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
