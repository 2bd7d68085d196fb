"""Where a real site's data come from: its own configuration, split by its own seed and name."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from client.copies import copies_folder, site_copies
from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.datasets import get_dataset
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.open import OpenDataset, cache_folder, open_dataset
from fed_diffmic.data.pixels import pixel_digests
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.data.splits import split_site
from fed_diffmic.deadline import check_time
from fed_diffmic.privacy.account import FOLDER

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
        self._copies = site_copies(config)

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
                self._open[side] = self.read(side, spec.run_id)
                while len(self._open) > KEPT:
                    self._open.popitem(last=False)
            self._open.move_to_end(side)
            self._copies.use(spec.run_id, _copy(self._open[side]))
            return self._open[side]

    def read(self, image_side: int, run: str = "") -> SiteData:
        """Read, check, decode and split the images (findings with file names go to the site's own file).

        Args:
            image_side: H, pixels.
            run: that asks; empty: a person at the site.
        """
        site = self._config.site
        opened = open_dataset(
            self._dataset(),
            image_side,
            findings_path=self._folder / FINDINGS,
            progress=lambda *_: check_time(),
            room=self._copies.room(run, self._let_go),
        )
        manifest = opened.manifest.in_stable_order()
        parts = split_site(manifest, site.name, site.split_seed, site.val_fraction, site.test_fraction)
        return self._with_pixels(SiteData.from_manifest(site.name, parts, opened.cache), opened)

    def _with_pixels(self, data: SiteData, opened: OpenDataset) -> SiteData:
        """With what each training image decodes to, where a privacy ledger asks whom something was spent on."""
        if self._config.privacy.name != "dp_sgd" and not (self._folder / FOLDER).exists():
            return data
        table = opened.manifest.table
        path_of = dict(zip(table["row"].tolist(), table["image"].tolist(), strict=True))
        rows = data.train.rows.tolist()
        contents = [opened.cache.digests[row] for row in rows]
        pixels = pixel_digests([path_of[row] for row in rows], contents, cache_folder(self._dataset()))
        return replace(data, train=replace(data.train, pixels=np.array(pixels, dtype=str)))

    def _let_go(self, name: str) -> None:
        """Close a copy that is about to be removed; what is mapped keeps its space on the disk."""
        for side in [side for side, data in self._open.items() if _copy(data) == name]:
            del self._open[side]

    @property
    def _folder(self) -> Path:
        return Path(str(self._config.site.folder))

    def _dataset(self) -> DatasetConfig:
        """``dataset`` with decoded images in the site's folder, unless another place was chosen."""
        return replace(self._config.dataset, cache_dir=str(copies_folder(self._config)))

    def _labels(self) -> SiteData:
        """Classes and task, from the tables alone: no image is decoded before the size is known."""
        dataset = self._dataset()
        manifest = get_dataset(dataset.name)(dataset, Findings(None))
        none: Any = None
        empty = Examples(np.empty(0, np.int64), manifest.labels[:0], np.empty(0, str), np.empty(0, np.uint64), none)
        return SiteData(self._config.site.name, manifest.task, manifest.classes, empty, empty, empty)


def _copy(data: SiteData) -> str:
    """The name of the decoded copy behind a site's data."""
    return data.train.cache.name
