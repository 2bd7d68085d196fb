"""Small data sets in the published layouts, written for the tests of their readers."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int, side: int = 40, mode: str = "RGB") -> Path:
    """An image of noise; equal seeds give equal pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], separator: str = ",") -> Path:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def codes(findings: Iterable) -> dict[str, str]:
    """Code of each finding, to its severity."""
    return {item.code: item.severity for item in findings}


def one(findings: Iterable, code: str):
    """The only finding of that code."""
    found = [item for item in findings if item.code == code]
    assert len(found) == 1, [str(item) for item in findings]
    return found[0]
