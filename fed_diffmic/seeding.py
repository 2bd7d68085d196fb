"""Seeds derived from names, so that every draw of a run is named and none depends on call order."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *parts: str | int) -> int:
    """A 63-bit seed from the run's seed and the names of what it is for (BLAKE2b)."""
    text = json.dumps([seed, *parts], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def torch_generator(seed: int, *parts: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator on ``device`` seeded by :func:`derive_seed`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, *parts))


def numpy_generator(seed: int, *parts: str | int) -> np.random.Generator:
    """A numpy generator seeded by :func:`derive_seed`."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *parts)))
