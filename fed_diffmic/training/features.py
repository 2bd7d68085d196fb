"""Inputs of a stage for a set of examples, with features that nothing trains computed only once.

Where the stage trains nothing in front of its features (``stages.diffusion.encoders=frozen``), the
features of an image depend only on the stage's base, so a :class:`FeatureStore` keeps them from
round to round. They derive from patients' images and live in memory only.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import normalise
from fed_diffmic.deadline import check_time
from fed_diffmic.training.stage import StageModule

CHUNK = 64


class FeatureStore:
    """Least-recently-used features in memory, bounded in bytes.

    Args:
        max_bytes: the most that is kept; a larger single entry is computed and not kept.
    """

    def __init__(self, max_bytes: int = 2 * 1024**3) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """The entry, or none."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Hashable, features: Any) -> None:
        """Keep ``features``, dropping what was used longest ago."""
        if _bytes(features) > self.max_bytes:
            return
        self._entries[key] = features
        while sum(_bytes(entry) for entry in self._entries.values()) > self.max_bytes:
            self._entries.popitem(last=False)


SHARED = FeatureStore()
"""The process's own: its sites, arms and runs share what they can."""


def feature_key(spec: RunSpec, stage: str, base: str, examples: Examples, *, own: str = "") -> tuple[str, ...]:
    """Names everything that features which nothing trains depend on: network, its frozen part, images and their order.

    Who asks, and with which algorithm, is no part of it: arms and runs of one process share features.

    Args:
        base: digest of the part of the stage's state that is never changed.
        own: digest of what in it is the site's own.
    """
    images = hashlib.sha256(np.ascontiguousarray(examples.keys).tobytes()).hexdigest()
    return (_network(spec.to_json()), stage, base, own, images)


@functools.lru_cache(maxsize=8)
def _network(text: str) -> str:
    """What of a specification decides what a network makes of an image; its weights are named by the base."""
    spec = json.loads(text)
    model = {k: v for k, v in spec["model"].items() if k not in ("weights", "prior_weights", "pretrained")}
    return json.dumps([model, spec["mean"], spec["std"], spec["threads"]], sort_keys=True)


def _bytes(features: Any) -> int:
    return sum(column.numel() * column.element_size() for column in features)


def normalised_images(
    module: StageModule, examples: Examples, index: np.ndarray, device: torch.device | str
) -> torch.Tensor:
    """``(b, 3, H, H)`` float32, without augmentation."""
    check_time()
    return normalise(examples.images(index).to(device), module.spec.mean, module.spec.std)


def all_features(
    module: StageModule,
    examples: Examples,
    device: torch.device | str,
    store: FeatureStore | None = None,
    key: Hashable = None,
) -> Any:
    """Features of every example, in order; kept under ``key`` where a store is given.

    Args:
        module: with ``features_once``; its frozen parts decide the features.
        key: must name the stage's base, the site and the split.
    """
    found = store.get(key) if store is not None and key is not None else None
    if found is not None:
        return found
    with torch.no_grad():
        parts = [
            module.inputs(normalised_images(module, examples, part, device)) for part in chunks(len(examples), CHUNK)
        ]
    features = type(parts[0])(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    if store is not None and key is not None:
        store.put(key, features)
    return features


def select(features: Any, index: np.ndarray) -> Any:
    """The rows ``index`` of every column."""
    return type(features)(*(column[torch.from_numpy(index).to(column.device)] for column in features))


def chunks(count: int, size: int) -> list[np.ndarray]:
    """``0..count-1`` in consecutive pieces of at most ``size``."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
