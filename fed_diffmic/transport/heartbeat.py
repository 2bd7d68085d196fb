"""The interval of Flower's heartbeats, which Flower itself keeps as constants."""

from __future__ import annotations

import sys

from flwr.common import constant

STOCK_S = 30.0
NAMES = ("HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_CALL_TIMEOUT", "HEARTBEAT_MIN_INTERVAL")


def set_heartbeat(interval_s: float) -> None:
    """Let this process beat, and expect beats, every ``interval_s`` seconds.

    To be called in a child after its modules of Flower were imported and before they start: each holds a copy
    of the constants under their own names. A call may take a sixth of the interval (5 s at the stock 30 s), and the
    SuperLink takes intervals from a fifth of a second.
    """
    values = {
        "HEARTBEAT_DEFAULT_INTERVAL": interval_s,
        "HEARTBEAT_CALL_TIMEOUT": min(5.0, interval_s / 6),
        "HEARTBEAT_MIN_INTERVAL": min(10.0, max(0.2, interval_s / 3)),
    }
    for name, module in list(sys.modules.items()):
        if name == constant.__name__ or (module is not None and name.partition(".")[0] == "flwr"):
            for key in NAMES:
                if key in vars(module):
                    setattr(module, key, values[key])
