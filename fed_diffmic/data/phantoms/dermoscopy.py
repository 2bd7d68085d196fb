"""Dermoscopy phantoms: the seven classes of HAM10000, each with the pattern that a dermatologist looks for.

======  ============================  ==================================================================
class   lesion                        drawn as
======  ============================  ==================================================================
mel     melanoma                      asymmetric, ragged border, black, brown, red and a blue-white veil
nv      melanocytic nevus             oval, even brown with a regular network, smooth border
bcc     basal cell carcinoma          pearly pink, branching vessels, blue-grey nests
akiec   actinic keratosis, Bowen      rough red patch without pigment, yellow-white scale
bkl     benign keratosis              tan, sharp border, milia-like cysts (white) and openings (dark)
df      dermatofibroma                faint brown halo around a white scar
vasc    vascular lesion               sharply bounded red to purple lacunes
======  ============================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fed_diffmic.data.phantoms import canvas
from fed_diffmic.data.phantoms.canvas import Point, Style, mix

CLASSES = ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class _Lesion:
    """Where the lesion lies and its two generators: the lesion's own, and the photograph's."""

    side: int
    centre: Point
    radii: Point
    angle: float
    subject: np.random.Generator
    view: np.random.Generator

    def outline(self, raggedness: float, cells: int) -> np.ndarray:
        """Distance from the border (H, H), below zero inside; ``raggedness`` moves the border."""
        distance = canvas.ellipse(self.side, self.centre, self.radii, self.angle)
        return distance + np.float32(raggedness) * canvas.fractal(self.subject, self.side, cells, 2) - 1

    def spots(self, count: int, reach: float, radius: tuple[float, float]) -> np.ndarray:
        """Mask of ``count`` small discs within ``reach`` of the lesion's size."""
        points = canvas.scattered(self.subject, count, self.centre, (self.radii[0] * reach, self.radii[1] * reach))
        return canvas.dots(self.side, points, self.subject.uniform(*radius, count).tolist())


def draw(label: int, style: Style, subject: np.random.Generator, view: np.random.Generator, side: int) -> np.ndarray:
    """One photograph of one lesion.

    Args:
        label: index in :data:`CLASSES`.
        style: of the institution.
        subject: what belongs to the lesion and its owner; seeded alike for a second photograph.
        view: what belongs to this photograph.
        side: H, pixels.

    Returns:
        (H, H, 3) uint8.
    """
    size = subject.uniform(0.40, 0.62)
    stretch = subject.uniform(0.8, 1.2)
    lesion = _Lesion(
        side=side,
        centre=(float(view.uniform(-0.15, 0.15)), float(view.uniform(-0.15, 0.15))),
        radii=(size * stretch, size / stretch),
        angle=float(view.uniform(0, np.pi)),
        subject=subject,
        view=view,
    )
    image = _PATTERNS[CLASSES[label]](_skin(lesion), lesion)
    return canvas.finish(_hairs(image, lesion), style, view)


def _skin(lesion: _Lesion) -> np.ndarray:
    tone = lesion.subject.uniform(-1, 1)
    colour = np.array([0.86, 0.62 + 0.05 * tone, 0.58 + 0.07 * tone], dtype=np.float32)
    light = 1 - 0.10 * canvas.ellipse(lesion.side, (0, 0), (1, 1)) ** 2
    texture = 1 + 0.025 * canvas.fractal(lesion.view, lesion.side, 6, 4)
    redness = 0.02 * canvas.noise(lesion.view, lesion.side, 4)
    image = colour * (light * texture)[..., None]
    image[..., 1] -= redness
    return image


def _hairs(image: np.ndarray, lesion: _Lesion) -> np.ndarray:
    if lesion.view.random() > 0.3:
        return image
    heading = lesion.view.uniform(0, 2 * np.pi)
    hairs = [
        (
            canvas.wander(
                lesion.view, tuple(lesion.view.uniform(-1, 1, 2)), heading + lesion.view.normal(0, 0.4), 1.2, 0.5
            ),
            0.012,
        )
        for _ in range(lesion.view.integers(2, 8))
    ]
    return mix(image, 0.75 * canvas.lines(lesion.side, hairs), (0.20, 0.13, 0.10))


def _network(lesion: _Lesion, step: float) -> np.ndarray:
    """Pigment network: a honeycomb of soft dark lines, (H, H) in [0, 1]."""
    x, y = canvas.grid(lesion.side)
    x = x + 0.045 * canvas.noise(lesion.subject, lesion.side, 10)
    y = y + 0.045 * canvas.noise(lesion.subject, lesion.side, 10)
    k = np.float32(2 * np.pi / step)
    wave = np.cos(k * x) + np.cos(k * (0.5 * x + 0.866 * y)) + np.cos(k * (0.5 * x - 0.866 * y))
    fading = 0.75 + 0.3 * canvas.noise(lesion.subject, lesion.side, 6)
    return np.clip(0.5 - 0.4 * wave, 0, 1) * np.clip(fading, 0, 1)


def _nevus(image: np.ndarray, lesion: _Lesion) -> np.ndarray:
    body = canvas.inside(lesion.outline(0.07, 4), 0.18)
    shade = lesion.subject.uniform(0.8, 1.1)
    image = mix(image, 0.85 * body, (0.52 * shade, 0.31 * shade, 0.20 * shade))
    return mix(image, 0.6 * body * _network(lesion, 0.13), (0.28, 0.15, 0.09))


def _melanoma(image: np.ndarray, lesion: _Lesion) -> np.ndarray:
    body = canvas.inside(lesion.outline(0.20, 5), 0.12)
    image = mix(image, 0.9 * body, (0.33, 0.18, 0.13))
    patches = canvas.noise(lesion.subject, lesion.side, 5)
    image = mix(image, body * np.clip(patches, 0, 1), (0.07, 0.05, 0.06))
    image = mix(image, 0.8 * body * np.clip(-patches - 0.5, 0, 1), (0.62, 0.25, 0.20))
    a = lesion.subject.uniform(0, 2 * np.pi)
    offset = (
        lesion.centre[0] + 0.4 * lesion.radii[0] * np.cos(a),
        lesion.centre[1] + 0.4 * lesion.radii[1] * np.sin(a),
    )
    veil = body * canvas.disc(lesion.side, offset, 0.24, 0.14)
    image = mix(image, 0.8 * veil, (0.50, 0.55, 0.68))
    return mix(image, 0.8 * body * lesion.spots(14, 1.05, (0.02, 0.045)), (0.06, 0.04, 0.05))


def _basal_cell(image: np.ndarray, lesion: _Lesion) -> np.ndarray:
    body = canvas.inside(lesion.outline(0.10, 5), 0.16)
    image = mix(image, 0.75 * body, (0.95, 0.74, 0.74))
    nests = body * lesion.spots(int(lesion.subject.integers(5, 9)), 0.8, (0.05, 0.10))
    image = mix(image, 0.8 * nests, (0.40, 0.42, 0.52))
    vessels = []
    for _ in range(5):
        a = lesion.subject.uniform(0, 2 * np.pi)
        start = (lesion.centre[0] + lesion.radii[0] * np.cos(a), lesion.centre[1] + lesion.radii[1] * np.sin(a))
        trunk = canvas.wander(lesion.subject, start, a + np.pi, 0.8, 1.0)
        vessels.append((trunk, 0.026))
        for at in (3, 5, 7, 9):
            heading = a + np.pi + lesion.subject.choice([-0.9, 0.9])
            vessels.append((canvas.wander(lesion.subject, trunk[at], heading, 0.3, 0.8, 6), 0.016))
    return mix(image, 0.7 * canvas.lines(lesion.side, vessels), (0.74, 0.16, 0.18))


def _keratosis_actinic(image: np.ndarray, lesion: _Lesion) -> np.ndarray:
    body = canvas.inside(lesion.outline(0.16, 6), 0.25)
    image = mix(image, 0.65 * body, (0.80, 0.33, 0.30))
    rough = np.clip(canvas.noise(lesion.subject, lesion.side, 22), 0, 1)
    image = mix(image, 0.4 * body * rough, (0.93, 0.60, 0.52))
    scale = np.clip(canvas.fractal(lesion.subject, lesion.side, 11, 3) - 0.7, 0, 1)
    return mix(image, body * np.minimum(1.6 * scale, 1), (0.97, 0.92, 0.74))


def _keratosis_benign(image: np.ndarray, lesion: _Lesion) -> np.ndarray:
    body = canvas.inside(lesion.outline(0.08, 7), 0.03)
    mottle = 1 + 0.10 * canvas.noise(lesion.subject, lesion.side, 9)
    image = image + body[..., None] * 0.9 * (np.array([0.66, 0.50, 0.30], np.float32) * mottle[..., None] - image)
    image = mix(image, body * lesion.spots(12, 0.85, (0.025, 0.045)), (0.98, 0.95, 0.86))
    return mix(image, 0.85 * body * lesion.spots(12, 0.85, (0.03, 0.055)), (0.24, 0.15, 0.09))


def _dermatofibroma(image: np.ndarray, lesion: _Lesion) -> np.ndarray:
    outline = lesion.outline(0.06, 4)
    halo = canvas.inside(outline, 0.30)
    image = mix(image, 0.55 * halo, (0.62, 0.42, 0.33))
    image = mix(image, 0.4 * halo * _network(lesion, 0.12), (0.42, 0.26, 0.19))
    scar = canvas.inside(outline + lesion.subject.uniform(0.42, 0.55), 0.16)
    return mix(image, 0.9 * scar, (0.96, 0.88, 0.85))


def _vascular(image: np.ndarray, lesion: _Lesion) -> np.ndarray:
    body = canvas.inside(lesion.outline(0.08, 5), 0.05)
    image = mix(image, 0.8 * body, (0.75, 0.20, 0.25))
    image = mix(image, 0.9 * body * lesion.spots(16, 0.9, (0.07, 0.14)), (0.52, 0.07, 0.17))
    return mix(image, 0.8 * body * lesion.spots(7, 0.8, (0.06, 0.11)), (0.30, 0.08, 0.27))


_PATTERNS: dict[str, Callable[[np.ndarray, _Lesion], np.ndarray]] = {
    "mel": _melanoma,
    "nv": _nevus,
    "bcc": _basal_cell,
    "akiec": _keratosis_actinic,
    "bkl": _keratosis_benign,
    "df": _dermatofibroma,
    "vasc": _vascular,
}
