"""Where a real site's data come from: its own configuration, split by its own seed and name."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.datasets import get_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.open import open_dataset
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.data.splits import split_site

FINDINGS = "findings.csv"
KEPT = 2

logger = logging.getLogger(__name__)


class SiteSource:
    """Opens the site's images once at each image side that a run asks for.

    Args:
        config: of the site; ``site.folder`` is set.
    """

    def __init__(self, config: SiteConfig) -> None:
        self._config = config
        self._open: OrderedDict[int, SiteData] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, context: Any, spec: RunSpec | None, header: Any) -> SiteData:
        """The site's data at the run's image side; only its classes where there is no run yet (``spec`` none).

        Raises:
            ConfigError, DataError, PartitionError, MachineError: see :func:`fed_diffmic.data.open.open_dataset`.
        """
        with self._lock:
            if spec is None:
                return next(iter(self._open.values())) if self._open else self._labels()
            side = spec.model.image_side
            if side not in self._open:
                logger.info("reading the site's images at %d pixels", side)
                self._open[side] = self.read(side)
                while len(self._open) > KEPT:
                    self._open.popitem(last=False)
            self._open.move_to_end(side)
            return self._open[side]

    def read(self, image_side: int) -> SiteData:
        """Read, check, decode and split the images (findings with file names go to the site's own file)."""
        site = self._config.site
        opened = open_dataset(self._dataset(), image_side, findings_path=self._folder / FINDINGS)
        manifest = opened.manifest.in_stable_order()
        parts = split_site(manifest, site.name, site.split_seed, site.val_fraction, site.test_fraction)
        return SiteData.from_manifest(site.name, parts, opened.cache)

    @property
    def _folder(self) -> Path:
        return Path(str(self._config.site.folder))

    def _dataset(self) -> DatasetConfig:
        """``dataset`` with decoded images in the site's folder, unless another place was chosen."""
        dataset = self._config.dataset
        return dataset if dataset.cache_dir else replace(dataset, cache_dir=str(self._folder / "cache"))

    def _labels(self) -> SiteData:
        """Classes and task, from the tables alone: no image is decoded before the size is known."""
        dataset = self._dataset()
        manifest = get_dataset(dataset.name)(dataset, Findings(None))
        none: Any = None
        empty = Examples(np.empty(0, np.int64), manifest.labels[:0], np.empty(0, str), np.empty(0, np.uint64), none)
        return SiteData(self._config.site.name, manifest.task, manifest.classes, empty, empty, empty)
