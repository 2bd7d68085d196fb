"""Tables of HAM10000 with one institution left out, which is then a test set from elsewhere for the other three.

    python -m benchmarks.left_out DIR OUT

``DIR`` is the data set's folder (``HAM10000_metadata.csv`` and ``images/``). For each institution NAME it writes
``OUT/NAME/manifest.csv``, the images of the other institutions, and ``OUT/NAME/elsewhere/manifest.csv``, its own,
of the images that are there; a lesion that both have stays with the other institutions. Images are linked, not copied.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Iterable
from pathlib import Path

from fed_diffmic.files import atomic_write

Row = dict[str, str]
COLUMNS = ("image", "label", "patient_id", "institution")


def rows(root: Path) -> list[Row]:
    """What the metadata say of the images that are there, as rows of a table of one's own."""
    with (root / "HAM10000_metadata.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    present = {path.name for path in (root / "images").iterdir()}
    return [
        dict(zip(COLUMNS, (f"images/{row['image_id']}.jpg", row["dx"], row["lesion_id"], row["dataset"]), strict=True))
        for row in found
        if f"{row['image_id']}.jpg" in present
    ]


def divided(found: Iterable[Row], institution: str) -> tuple[list[Row], list[Row]]:
    """The rows of the other institutions, and those of this one whose lesions no other has."""
    found = list(found)
    others = [row for row in found if row["institution"] != institution]
    known = {row["patient_id"] for row in others}
    own = [row for row in found if row["institution"] == institution and row["patient_id"] not in known]
    return others, own


def write(root: Path, out: Path) -> list[str]:
    """Write all tables; the institutions' names."""
    found = rows(root)
    names = sorted({row["institution"] for row in found})
    for name in names:
        for folder, part in zip((out / name, out / name / "elsewhere"), divided(found, name), strict=True):
            folder.mkdir(parents=True)
            (folder / "images").symlink_to((root / "images").resolve(), target_is_directory=True)
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(part)
            atomic_write(folder / "manifest.csv", text.getvalue().encode())
    return names


def main() -> None:
    """Read the arguments, write the tables, print their names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    print("\n".join(write(given.root, given.out)))


if __name__ == "__main__":
    main()
