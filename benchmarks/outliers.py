"""Are turned and inverted images found, and how many others are accused with them?

Takes images of each folder, turns and inverts some of them (half of those planted are turned by 90, 180 or 270 degrees,
half are inverted), and counts over several draws: recall of what was planted, false alarms among what was not. An image
that was turned counts as found when the angle is right. Nothing says that the images in the folder are right to begin
with: what is wrong in them counts as a false alarm.

    python benchmarks/outliers.py ROOT [--count 300] [--share 0.05] [--draws 5]

ROOT holds folders of images, one a modality, for example chestxray14/images.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fed_diffmic.data.outliers import find_outliers

ENDINGS = {".jpg", ".jpeg", ".png"}


def load(folder: Path, count: int, seed: int, side: int = 112) -> np.ndarray:
    """``(n, 3, side, side)`` uint8 of a seeded choice of the images below a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    chosen = np.random.default_rng(seed).permutation(len(paths))[:count]
    pictures = []
    for index in chosen:
        with Image.open(paths[index]) as image:
            pictures.append(np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(pictures).transpose(0, 3, 1, 2)


def plant(images: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images with mistakes, how each must be turned to mend it (quarters), and which are inverted."""
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(images), max(4, round(share * len(images))), replace=False)
    turned, inverted = np.zeros(len(images), int), np.zeros(len(images), bool)
    planted = images.copy()
    for place, index in enumerate(wrong):
        if place % 2:
            inverted[index] = True
            planted[index] = 255 - images[index]
        else:
            turned[index] = 1 + rng.integers(3)
            planted[index] = np.rot90(images[index], -turned[index], axes=(1, 2))
    return planted, turned, inverted


def measure(folder: Path, modality: str, count: int, share: float, draws: int) -> str:
    """One line of the table."""
    hits = np.zeros(2)
    totals = np.zeros(2)
    alarms = np.zeros(2)
    innocent = 0
    agreement, checked, seconds = [], [], 0.0
    for draw in range(draws):
        images = load(folder, count, seed=draw)
        planted, turned, inverted = plant(images, share, seed=draw)
        tensor = torch.from_numpy(planted)
        start = time.perf_counter()
        found = find_outliers(lambda rows, pixels=tensor: pixels[rows], np.arange(len(tensor)), modality=modality)
        seconds += time.perf_counter() - start
        if found is None:
            raise SystemExit(f"{folder}: too few images")
        best = np.zeros(len(tensor), int) if found.orientation is None else found.orientation.best
        agreement.append(float("nan") if found.orientation is None else found.orientation.agreement)
        checked.append(found.orientation is not None and found.orientation.checked)
        right = (turned == 0) & ~inverted
        hits += [(best[turned > 0] == turned[turned > 0]).sum(), (found.inversion.best[inverted] == 1).sum()]
        totals += [(turned > 0).sum(), inverted.sum()]
        alarms += [(best[right] > 0).sum(), (found.inversion.best[right] == 1).sum()]
        innocent += int(right.sum())
    recall, false = hits / totals, alarms / innocent
    turned = f"{recall[0]:.2f} | {100 * false[0]:.1f} %" if any(checked) else "not checked | -"
    agreed = "-" if np.isnan(agreement).all() else f"{np.mean(agreement):.2f}"
    return (
        f"| {folder.parent.name} | {modality} | {len(images)} | {sum(checked)} of {draws} | {agreed} "
        f"| {turned} | {recall[1]:.2f} | {100 * false[1]:.1f} % | {seconds / draws:.1f} |"
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| images of | `modality` | images | orientation checked | agreement | recall, turned | false alarms "
          "| recall, inverted | false alarms | seconds |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, modality in (
        ("chestxray14", "chest"),
        ("chest_pneumonia", "chest"),
        ("ultrasound_busi", "ultrasound"),
        ("fundus_idrid", "fundus"),
        ("ham10000", "dermoscopy"),
        ("ham10000", "none"),
    ):
        folder = arguments.root / name / "images"
        print(measure(folder, modality, arguments.count, arguments.share, arguments.draws), flush=True)


if __name__ == "__main__":
    main()
