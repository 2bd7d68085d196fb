"""What a request to train and its masked answer say of the sum, for both sides alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fed_diffmic.exchange.audit_lines import canonical
from fed_diffmic.exchange.payload import Tensors, text_digest

MASKED = "masked"
"""The field of a request to train that asks for masked words, and the one tensor of its answer."""

NONE = "none"
"""In the place of keys: the site gives no figures for this sum, and is not in it."""

NOISED = "words"
"""The one tensor of an answer with a share of noise, as long as it is under no masks: it leaves no real site so."""

_ALIKE = ("spec", "run", "arm", "stage", "round", "base", "weights")


def task_digest(header: Mapping[str, Any], form: str) -> str:
    """What all sites of a sum must have been given alike, by the header of a request to train.

    Args:
        form: digest of how updates are written as words.
    """
    alike = {name: header[name] for name in _ALIKE}
    return text_digest(canonical({**alike, "study": header.get("study", ""), "form": form}))


def words_of(tensors: Tensors, bits: int) -> np.ndarray:
    """Masked words as they came: payloads know signed integers only."""
    return np.ascontiguousarray(tensors[MASKED]).view(f"<u{bits // 8}")
