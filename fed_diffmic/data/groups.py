"""Groups (patients, lesions) as the rows that may be moved: size, labels and stratum of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.data.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Groups:
    """The G groups of a manifest of N images and C classes, sorted by name.

    Attributes:
        names: (G,) str.
        of_row: (N,) int64, group of each image.
        sizes: (G,) int64, images.
        class_counts: (G, C) int64, images that carry each label.
        strata: (G,) int64, the one label that stands for the group when sampling is stratified. Of several
            (multi-label, or a patient with images of several classes) it is the one that the fewest groups carry:
            a common label balances itself, a rare one does not. C for a group without any label.
    """

    names: np.ndarray
    of_row: np.ndarray
    sizes: np.ndarray
    class_counts: np.ndarray
    strata: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, manifest: Manifest) -> Groups:
        """The groups of ``manifest``; the order of its rows does not matter."""
        names, of_row = np.unique(manifest.table["group"].to_numpy(dtype=object).astype(str), return_inverse=True)
        count = len(manifest.classes)
        one_hot = manifest.labels if manifest.task == "multilabel" else np.eye(count)[manifest.labels]
        class_counts = np.zeros((len(names), count), dtype=np.int64)
        np.add.at(class_counts, of_row, one_hot.astype(np.int64))
        return cls(names, of_row, np.bincount(of_row, minlength=len(names)), class_counts, _strata(class_counts))


def _strata(class_counts: np.ndarray) -> np.ndarray:
    carries = class_counts > 0
    rarest_first = np.argsort(carries.sum(axis=0), kind="stable")
    carries = np.column_stack([carries[:, rarest_first], np.ones(len(carries), dtype=bool)])
    return np.append(rarest_first, class_counts.shape[1])[carries.argmax(axis=1)]
