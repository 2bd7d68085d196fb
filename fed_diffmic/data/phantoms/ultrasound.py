"""Ultrasound phantoms: the placenta in four grades of maturity (Grannum et al. 1979), as in PMG2000.

=====  ==========================================  =================================================
grade  chorionic plate (towards the fluid)          substance and basal plate
=====  ==========================================  =================================================
0      smooth                                       even echoes
1      slightly wavy                                a few scattered bright points
2      comma-like indentations                      bright streaks along the basal plate
3      indentations down to the basal plate         bright rings around dark centres, shadows
=====  ==========================================  =================================================

The image is drawn in the probe's own coordinates (depth by angle), where speckle belongs, and then
scanned into a sector.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fed_diffmic.data.phantoms import canvas
from fed_diffmic.data.phantoms.canvas import Style

CLASSES = ("0", "1", "2", "3")

_HALF_ANGLE = 0.74
_NEAR, _FAR = 0.22, 1.0


def draw(label: int, style: Style, subject: np.random.Generator, view: np.random.Generator, side: int) -> np.ndarray:
    """One frame of one placenta.

    Args:
        label: grade, index in :data:`CLASSES`.
        style: of the institution.
        subject: what belongs to the pregnancy.
        view: what belongs to this frame.
        side: H, pixels.

    Returns:
        (H, H, 3) uint8, grey.
    """
    echo = _tissue(label, subject, view, side)
    speckle = np.sqrt(-np.log(view.uniform(1e-4, 1, (side, side)).astype(np.float32)))  # Rayleigh
    speckle = (np.roll(speckle, 1, axis=1) + 2 * speckle + np.roll(speckle, -1, axis=1)) / 4  # beams overlap sideways
    compressed = np.log1p(5 * echo * (0.35 + 0.75 * speckle)) / np.float32(np.log(6))  # the scanner's log compression
    depth, angle, field = _sector(side)
    frame = compressed[depth, angle] * field
    return canvas.finish(frame, style, view, keep_black=field)


@lru_cache(maxsize=4)
def _sector(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel the sample (depth index, angle index) shown there, and the field of view (H, H)."""
    x, y = canvas.grid(side)
    v = (y + 1) / 2 * 0.88 + _NEAR * np.float32(np.cos(_HALF_ANGLE)) - 0.02
    u = x * np.float32(0.70)
    radius, angle = np.hypot(u, v), np.arctan2(u, v)
    field = canvas.inside((np.abs(angle) - _HALF_ANGLE) * radius, 0.01) * canvas.inside(
        np.abs(radius - 0.61) - 0.39, 0.01
    )
    depth = np.clip((radius - _NEAR) / (_FAR - _NEAR) * side, 0, side - 1).astype(np.intp)
    across = np.clip((angle / _HALF_ANGLE + 1) / 2 * side, 0, side - 1).astype(np.intp)
    return depth, across, field


def _tissue(grade: int, subject: np.random.Generator, view: np.random.Generator, side: int) -> np.ndarray:
    """Echogenicity (H, H): rows are depth, columns are angle."""
    x, y = canvas.grid(side)
    depth = (y + 1) / 2
    bend = 0.05 * x * np.float32(subject.normal()) + 0.07 * x * x * np.float32(subject.uniform(0.3, 1.2))
    wall = np.float32(subject.uniform(0.16, 0.22)) + bend
    thickness = np.float32(subject.uniform(0.33, 0.41)) * (1 - 0.35 * x * x)
    basal = wall + 0.03
    depth_in = (depth - basal) / thickness  # 0 at the basal, 1 at the chorionic plate
    notches, clefts = _clefts(subject, x, depth_in, 0.11 if grade == 1 else 0.06)
    chorionic = basal + thickness * (1 - np.array([0.0, 0.07, 0.14, 0.16], np.float32)[grade] * notches)
    within = canvas.inside(basal - depth, 0.01) * canvas.inside(depth - chorionic, 0.012)

    echo = 0.010 + 0.02 * np.clip(canvas.noise(view, side, 5), 0, 1)  # amniotic fluid
    layers = 0.35 + 0.22 * np.cos(70 * (depth - bend)) * np.exp(-4 * depth)
    echo = np.where(depth < wall, layers, echo)
    echo = np.maximum(echo, 0.55 * np.exp(-(((depth - wall) / 0.012) ** 2)))  # uterine wall
    substance = 0.24 * (1 + 0.10 * canvas.noise(subject, side, 7))
    echo = echo * (1 - within) + substance * within
    plate = np.exp(-(((depth - chorionic) / 0.014) ** 2)) * (np.abs(x) < 0.97)
    echo = np.maximum(echo, 0.75 * plate)
    echo = _calcium(echo, grade, within, depth_in, clefts, subject, side)
    return _fetus(echo, chorionic, depth, subject, side) * np.float32(1.15 - 0.35 * depth)


def _clefts(
    subject: np.random.Generator, x: np.ndarray, depth_in: np.ndarray, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Septa between the cotyledons, curved like commas: how near each sample is to one, in [0, 1] (H, H).

    Returns:
        The same for the chorionic plate, straight and of ``width``; and for the septa, thin and curved.
    """
    count = int(subject.integers(4, 6))
    notches, septa = np.zeros_like(x), np.zeros_like(x)
    for centre in np.linspace(-0.75, 0.75, count) + subject.uniform(-0.12, 0.12, count):
        strength, lean = subject.uniform(0.8, 1.0), np.float32(subject.uniform(-0.16, 0.16))
        off = x - np.float32(centre)
        notches = np.maximum(notches, np.float32(strength) * np.exp(-((off / np.float32(width)) ** 2)))
        curve = lean * (1 - np.clip(depth_in, 0, 1)) ** 2
        septa = np.maximum(septa, np.float32(strength) * np.exp(-(((off - curve) / 0.028) ** 2)))
    return notches, septa


def _calcium(
    echo: np.ndarray,
    grade: int,
    within: np.ndarray,
    depth_in: np.ndarray,
    septa: np.ndarray,
    subject: np.random.Generator,
    side: int,
) -> np.ndarray:
    """Bright points (grade 1 on), septa half way and basal streaks (2), whole septa, dark centres, shadows (3)."""
    if grade == 0:
        return echo
    points = canvas.dots(
        side, canvas.scattered(subject, 60, (0, -0.2), (0.95, 0.7)), subject.uniform(0.012, 0.024, 60).tolist()
    )
    echo = np.maximum(echo, 0.9 * points * within)
    broken = np.clip(1.3 * canvas.noise(subject, side, 11) + 0.8, 0, 1)
    if grade >= 2:
        start = 0.5 if grade == 2 else 0.0
        echo = np.maximum(echo, 0.95 * septa * within * np.clip((depth_in - start) / 0.1, 0, 1))
        streaks = np.exp(-(((depth_in - 0.08) / 0.05) ** 2)) * broken
        echo = np.maximum(echo, (0.8 if grade == 2 else 1.1) * streaks)
    if grade == 3:
        hollow = np.exp(-(((depth_in - 0.52) / 0.24) ** 2)) * np.clip(1 - 3 * septa, 0, 1) * within
        echo = echo * (1 - 0.7 * hollow)
        shadow = np.clip(2 * septa - 0.8, 0, 1) * (depth_in > 1)
        echo = echo * (1 - 0.8 * shadow)
    return echo


def _fetus(
    echo: np.ndarray, chorionic: np.ndarray, depth: np.ndarray, subject: np.random.Generator, side: int
) -> np.ndarray:
    """A part of the fetus in the fluid: a bright curved line of bone with soft tissue behind it."""
    centre = (float(subject.uniform(-0.6, 0.6)), float(subject.uniform(0.75, 1.0)))
    ring = canvas.ellipse(side, centre, (float(subject.uniform(0.35, 0.5)), float(subject.uniform(0.28, 0.4))))
    free = canvas.inside(chorionic + 0.03 - depth, 0.01)
    echo = np.maximum(echo, 0.85 * free * np.exp(-(((ring - 1) / 0.07) ** 2)))
    return np.maximum(echo, 0.16 * free * canvas.inside(ring - 1, 0.05))
