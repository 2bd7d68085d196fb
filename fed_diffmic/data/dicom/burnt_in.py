"""Text that is burnt into a picture: found by how it looks, not by what it says.

Letters are small, sharp, of one brightness, alike in height, and stand in a line with small gaps. Strokes that are
brighter (or darker) than all that is around them are cut out by a top-hat; what hangs together and is of a letter's
size is a candidate; several candidates of like height and brightness on one line, close to each other, are text. The
outer part of the picture is looked at, where devices write names, dates and numbers.

Nothing is read: a line of text is reported, and a person looks. How many drawn lines it finds, and how often it sees
text where there is none, is measured in ``tests/data/dicom/test_burnt_in.py`` and written in docs/dicom.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

LETTERS = 4
"""Fewest letters of a line: fewer are a side marker (L, R), a tick or chance."""

_LONGEST = 2048  # larger pictures are looked at in blocks of pixels that each become their brightest and darkest
_TALLEST, _SMALLEST = 48, 5  # height of a letter, pixels
_STROKE = 9  # pixels; wider structures are no strokes
_CONTRAST = 0.22  # of the full range, between a stroke and what is around it
_ALIKE = 0.08  # difference of brightness between neighbouring letters, of the full range
_WIDEST = 1.6  # width of a letter, in heights
_CENTRE = 0.25  # this much from each edge is looked at, and what lies further in is not
_WHITE = 65535.0


@dataclass(frozen=True, eq=False)
class _Boxes:
    """Candidates: edges in pixels, ``(n,)`` each."""

    top: np.ndarray
    bottom: np.ndarray
    left: np.ndarray
    right: np.ndarray
    peak: np.ndarray


def lines_of_text(pixels: np.ndarray) -> int:
    """How many lines of text seem to stand in the outer part of a picture.

    Args:
        pixels: ``(h, w)`` uint16 or ``(h, w, 3)`` uint8.
    """
    grey = pixels / _WHITE if pixels.ndim == 2 else pixels.max(axis=2) / 255.0
    grey = grey.astype(np.float32)
    factor = -(-max(grey.shape) // _LONGEST)
    return max(_lines(_candidates(_shrunk(bright, factor))) for bright in (grey, 1 - grey))


def _shrunk(grey: np.ndarray, factor: int) -> np.ndarray:
    if factor == 1:
        return grey
    rows, columns = (size // factor * factor for size in grey.shape)
    blocks = grey[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor)
    return blocks.max(axis=(1, 3))


def _candidates(grey: np.ndarray) -> _Boxes:
    """Strokes that stand out, of a letter's size, in the outer part."""
    around = ndimage.grey_opening(grey, size=(_STROKE, _STROKE))
    strokes = grey - around > _CONTRAST
    rows, columns = grey.shape
    inner = (
        slice(int(rows * _CENTRE), rows - int(rows * _CENTRE)),
        slice(int(columns * _CENTRE), columns - int(columns * _CENTRE)),
    )
    strokes[inner] = False
    labels, count = ndimage.label(strokes, structure=np.ones((3, 3)))
    if not count:
        nothing = np.zeros(0)
        return _Boxes(nothing, nothing, nothing, nothing, nothing)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = np.array([(y.start, y.stop, x.start, x.stop) for y, x in ndimage.find_objects(labels)], dtype=np.float64)
    height, width = boxes[:, 1] - boxes[:, 0], boxes[:, 3] - boxes[:, 2]
    filled = areas / (height * width)
    letter = (height >= _SMALLEST) & (height <= _TALLEST) & (width <= _WIDEST * height) & (width >= 0.08 * height)
    letter &= (filled > 0.12) & ((filled < 0.9) | (width < 0.4 * height))
    peaks = np.asarray(ndimage.maximum(grey, labels, np.arange(1, count + 1)))
    top, bottom, left, right = boxes[letter].T
    return _Boxes(top, bottom, left, right, peaks[letter])


def _lines(boxes: _Boxes) -> int:
    """Lines of :data:`LETTERS` or more: each letter is followed by one of like height and brightness, not far away."""
    order = np.argsort(boxes.left, kind="stable")
    top, bottom = boxes.top[order], boxes.bottom[order]
    left, right, peak = boxes.left[order], boxes.right[order], boxes.peak[order]
    height = bottom - top
    letters = np.ones(len(order), dtype=np.int64)
    starts = np.arange(len(order))
    for i in range(len(order)):
        near = slice(i + 1, int(np.searchsorted(left, right[i] + 1.2 * height[i], side="right")))
        like = np.maximum(height[near], height[i]) <= 1.6 * np.minimum(height[near], height[i])
        like &= np.abs(bottom[near] - bottom[i]) <= 0.25 * height[i]
        like &= np.abs(peak[near] - peak[i]) <= _ALIKE
        like &= left[near] >= right[i] - 0.25 * height[i]
        for j in np.flatnonzero(like) + i + 1:
            if letters[i] + 1 > letters[j]:
                letters[j], starts[j] = letters[i] + 1, starts[i]
    return len(set(starts[letters >= LETTERS].tolist()))
