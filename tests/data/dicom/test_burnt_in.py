"""How much of drawn text the detector finds, and how often it sees text where there is none.

Text as devices write it (white or yellow, near a corner, 12 to 32 pixels) over phantoms of every modality at 512 px.
``python -m tests.data.dicom.test_burnt_in 24`` measures more images; docs/dicom.md has the metrics of that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from fed_diffmic.data.dicom.burnt_in import lines_of_text
from fed_diffmic.data.phantoms.canvas import site_style
from fed_diffmic.data.phantoms.writer import draw

MODALITIES = ("dermoscopy", "fundus", "chest", "ultrasound")
SIZES = (10, 12, 16, 24, 32)
COLOURS = ((255, 255, 255), (255, 220, 0))
TEXTS = ("DOE^JANE 12.03.1961", "ID 4711-0815", "2024-05-17 10:32", "MUELLER, ANNA F", "St. Elsewhere", "0123456789")
_FONTS = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"
FONTS = ("DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf")
IMAGES = 4


def phantom(modality: str, number: int, side: int = 512) -> np.ndarray:
    """``(side, side, 3)`` uint8."""
    label = frozenset() if modality == "chest" else number % 4
    rng = np.random.default_rng
    return draw(modality, label, site_style(number % 4), rng(number), rng(1000 + number), side)


def stamped(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """The image with one line of text near a corner."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(str(_FONTS / FONTS[rng.integers(len(FONTS))]), size)
    text, colour = TEXTS[rng.integers(len(TEXTS))], COLOURS[rng.integers(len(COLOURS))]
    margin, corner = int(rng.integers(4, 20)), int(rng.integers(4))
    x = margin if corner % 2 == 0 else image.shape[1] - pen.textlength(text, font=font) - margin
    y = margin if corner < 2 else image.shape[0] - 1.3 * size - margin
    pen.text((x, y), text, fill=colour, font=font)
    return np.asarray(canvas)


def measured(modality: str, count: int, sizes: tuple[int, ...] = SIZES) -> tuple[float, dict[int, float]]:
    """False alarms a picture without text, and recall by size of the letters."""
    rng = np.random.default_rng(0)
    images = [phantom(modality, number) for number in range(count)]
    alarms = sum(lines_of_text(image) > 0 for image in images) / count
    recall = {size: sum(lines_of_text(stamped(image, size, rng)) > 0 for image in images) / count for size in sizes}
    return alarms, recall


@pytest.mark.parametrize("modality", MODALITIES)
def test_most_drawn_text_is_seen_and_none_where_there_is_none(modality):
    alarms, recall = measured(modality, IMAGES, (16, 24))
    assert alarms == 0
    assert all(share >= 0.75 for share in recall.values()), recall


def test_grey_of_16_bits_is_looked_at_like_colour():
    rng = np.random.default_rng(3)
    image = phantom("chest", 1)
    grey = stamped(image, 20, rng).max(axis=2).astype(np.uint16) * 257
    assert lines_of_text(grey) > 0 == lines_of_text(image.max(axis=2).astype(np.uint16) * 257)
    large = np.kron(grey, np.ones((5, 5), dtype=np.uint16))  # 2,560 px: looked at in blocks
    assert lines_of_text(large) > 0


def test_a_side_marker_is_no_text():
    image = Image.fromarray(np.zeros((256, 256), dtype=np.uint8))
    ImageDraw.Draw(image).text((20, 20), "L", fill=255, font=ImageFont.truetype(str(_FONTS / FONTS[0]), 30))
    assert lines_of_text(np.asarray(image).astype(np.uint16) * 257) == 0


@pytest.mark.parametrize("pixels", [np.zeros((1, 1), np.uint16), np.full((9, 300), 65535, np.uint16)])
def test_pictures_of_any_shape(pixels):
    assert lines_of_text(pixels) == 0


if __name__ == "__main__":
    for name in MODALITIES:
        print(name, *measured(name, int(sys.argv[1])), flush=True)
