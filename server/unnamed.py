"""What a node is called that has not said whose it is, where no roster knows: a random label."""

from __future__ import annotations

import secrets

UNNAMED = "unnamed/"


def new_label() -> str:
    """A label for a node, for one run; no site can be called so."""
    return f"{UNNAMED}{secrets.token_hex(4)}"
