"""Drawing tools that the modalities share: smooth noise, soft shapes, lines, a site's style.

Images are float32 arrays of intensities in [0, 1]: (H, H) grey or (H, H, 3) RGB. Coordinates run from -1
(left, top) to 1 (right, bottom).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
"""(x, y)."""

_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Style:
    """How one institution's device and export look.

    Attributes:
        gain: factor on intensities.
        contrast: factor on the distance from mid grey.
        gamma: exponent.
        cast: factors on red, green and blue (modalities in colour).
        noise: standard deviation of the sensor's noise.
    """

    gain: float = 1.0
    contrast: float = 1.0
    gamma: float = 1.0
    cast: tuple[float, float, float] = (1.0, 1.0, 1.0)
    noise: float = 0.01


def site_style(site: int) -> Style:
    """Style of the ``site``-th institution: the same in every data set, spread evenly however many there are."""
    steps = [(0.5 + site * ratio) % 1 - 0.5 for ratio in (0.618034, 0.754878, 0.569840, 0.430160, 0.245122, 0.381966)]
    red, green, blue = (1 + 0.16 * step for step in steps[3:])
    return Style(
        gain=1 + 0.35 * steps[0],
        contrast=1 + 0.4 * steps[1],
        gamma=1 - 0.4 * steps[2],
        cast=(red, green, blue),
        noise=0.008 + 0.01 * (steps[0] + 0.5),
    )


@lru_cache(maxsize=8)
def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (x, y) of the pixels, (H, H) each; not to be written to."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def resized(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A float32 array (h, w) resampled to ``shape`` by bicubic interpolation."""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC))


def noise(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Smooth random field (H, H) of about unit variance; ``cells`` bumps across the image."""
    if cells >= side:
        return rng.standard_normal((side, side), dtype=np.float32)
    return resized(rng.standard_normal((cells, cells), dtype=np.float32), (side, side)) * np.float32(1.2)


def fractal(rng: np.random.Generator, side: int, cells: int, octaves: int = 3) -> np.ndarray:
    """Sum of smooth fields, each twice as fine and half as strong as the last: (H, H)."""
    return np.sum([noise(rng, side, cells * 2**i) * np.float32(0.5**i) for i in range(octaves)], axis=0)


def inside(distance: np.ndarray, softness: float) -> np.ndarray:
    """Soft mask in [0, 1]: 1 where ``distance`` is below zero, 0 above, over a band of ``softness``."""
    return np.clip(np.float32(0.5) - distance / np.float32(2 * softness), 0, 1)


def ellipse(side: int, centre: Point, radii: Point, angle: float = 0.0) -> np.ndarray:
    """Scaled distance from an ellipse's centre (H, H): 1 on the outline. ``angle`` in radians, clockwise."""
    x, y = grid(side)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = x - np.float32(centre[0]), y - np.float32(centre[1])
    along, across = (u * cos + v * sin) / np.float32(radii[0]), (v * cos - u * sin) / np.float32(radii[1])
    return np.sqrt(along * along + across * across)


def disc(side: int, centre: Point, radius: float, softness: float = 0.03) -> np.ndarray:
    """Soft disc mask (H, H)."""
    return inside((ellipse(side, centre, (1, 1)) - np.float32(radius)), softness)


def dots(side: int, centres: Iterable[Point], radii: Iterable[float]) -> np.ndarray:
    """Mask (H, H) of many small discs."""
    scale = side * _SUPERSAMPLING / 2
    image = Image.new("L", (side * _SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(image)
    for (x, y), radius in zip(centres, radii, strict=True):
        box = [(x + 1 - radius) * scale, (y + 1 - radius) * scale, (x + 1 + radius) * scale, (y + 1 + radius) * scale]
        pen.ellipse(box, fill=255)
    return _reduced(image)


def lines(side: int, paths: Iterable[tuple[Sequence[Point], float]]) -> np.ndarray:
    """Mask (H, H) of polylines, each with its width (in coordinates, where the image is 2 wide)."""
    scale = side * _SUPERSAMPLING / 2
    image = Image.new("L", (side * _SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(image)
    for path, width in paths:
        points = [((x + 1) * scale, (y + 1) * scale) for x, y in path]
        pen.line(points, fill=255, width=max(1, round(width * scale)), joint="curve")
    return _reduced(image)


def _reduced(image: Image.Image) -> np.ndarray:
    return np.asarray(image.reduce(_SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def wander(
    rng: np.random.Generator, start: Point, heading: float, length: float, bend: float, steps: int = 12
) -> list[Point]:
    """A path that leaves ``start`` in direction ``heading`` (radians) and bends at random: hairs and vessels."""
    headings = heading + np.cumsum(rng.normal(0, bend / np.sqrt(steps), steps))
    x = start[0] + np.cumsum(np.cos(headings)) * (length / steps)
    y = start[1] + np.cumsum(np.sin(headings)) * (length / steps)
    return [start, *zip(x.tolist(), y.tolist(), strict=True)]


def scattered(rng: np.random.Generator, count: int, centre: Point, radii: Point) -> list[Point]:
    """``count`` points spread evenly over an ellipse."""
    angle, distance = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.uniform(0, 1, count))
    return [
        (centre[0] + radii[0] * r * np.cos(a), centre[1] + radii[1] * r * np.sin(a))
        for a, r in zip(angle.tolist(), distance.tolist(), strict=True)
    ]


def mix(image: np.ndarray, mask: np.ndarray, colour: Sequence[float] | float) -> np.ndarray:
    """Paint ``colour`` over ``image`` (H, H) or (H, H, 3) where ``mask`` (H, H) says, to its degree."""
    if image.ndim == 2:
        return image + mask * (np.float32(colour) - image)  # type: ignore[arg-type]
    return image + mask[..., None] * (np.asarray(colour, dtype=np.float32) - image)


def finish(
    image: np.ndarray, style: Style, rng: np.random.Generator, keep_black: np.ndarray | None = None
) -> np.ndarray:
    """Apply a site's style and noise to (H, H) or (H, H, 3); (H, H, 3) uint8.

    Args:
        keep_black: (H, H), 0 where the device writes pure black (outside the field of view).
    """
    image = np.clip(image, 0, 1) ** np.float32(style.gamma)
    image = (image - np.float32(0.5)) * np.float32(style.contrast) + np.float32(0.5)
    image = image * np.float32(style.gain)
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(style.noise)
    if image.ndim == 3:
        image = image * np.asarray(style.cast, dtype=np.float32)
    else:
        image = np.repeat(image[..., None], 3, axis=2)
    if keep_black is not None:
        image = image * keep_black[..., None]
    return np.clip(image * 255 + np.float32(0.5), 0, 255).astype(np.uint8)
