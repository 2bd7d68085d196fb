"""Chest phantoms: frontal radiographs with the fourteen findings of ChestX-ray14, several at once.

Each finding changes the anatomy or adds an opacity (or, for air, takes one away) as it does in a patient:

==================  ==================================================================================
Atelectasis         plate-like bands at one base, which stands high
Cardiomegaly        heart wider than half the chest
Effusion            one base white up to a meniscus
Infiltration        patchy haze in the middle of one lung
Mass                one round opacity, large
Nodule              a few round opacities, small and dense
Pneumonia           soft wedge of opacity in a lower zone, with air bronchograms
Pneumothorax        black rim without markings outside a fine pleural line
Consolidation       dense upper zone, ended sharply below by the fissure
Edema               haze around both hila, and short lines at the periphery
Emphysema           long black lungs, flat diaphragm, narrow heart
Fibrosis            net of lines at both bases
Pleural_Thickening  white band along one chest wall
Hernia              bowel behind the heart: a ring with air in it
==================  ==================================================================================

The left of the image is the patient's right, as radiographs are hung.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from fed_diffmic.data.labels import CHESTXRAY14_LABELS
from fed_diffmic.data.phantoms import canvas
from fed_diffmic.data.phantoms.canvas import Style, mix
from fed_diffmic.data.phantoms.chest_anatomy import LUNG, WHITE, Chest, body, bones, markings, mediastinum

CLASSES = CHESTXRAY14_LABELS


def draw(
    labels: frozenset[str], style: Style, subject: np.random.Generator, view: np.random.Generator, side: int
) -> np.ndarray:
    """One radiograph.

    Args:
        labels: names of :data:`CLASSES`; empty for no finding.
        style: of the institution.
        subject: what belongs to the patient.
        view: what belongs to this exposure.
        side: H, pixels.

    Returns:
        (H, H, 3) uint8, grey.
    """
    width = float(subject.uniform(0.70, 0.80))
    rise = {flank: float(subject.uniform(0.42, 0.50)) for flank in (-1.0, 1.0)}
    rise[-1.0] -= 0.05  # the liver lifts the right dome
    if "Emphysema" in labels:
        rise = {flank: base + 0.20 for flank, base in rise.items()}
    first = float(subject.choice([-1, 1]))
    chest = Chest(side, labels, subject, view, width, rise, itertools.cycle((first, -first)))
    high = chest.flank() if "Atelectasis" in labels else first
    if "Atelectasis" in labels:
        rise[high] -= 0.20
    lungs = {flank: chest.lung(flank) for flank in (-1.0, 1.0)}
    image = body(chest)
    air = 0.10 if "Emphysema" in labels else LUNG
    for lung in lungs.values():
        image = mix(image, lung, air)
    image = markings(image, chest, lungs)
    for name in CLASSES:
        if name in labels and name in _OPACITIES:
            image = _OPACITIES[name](image, chest, lungs)
    if "Atelectasis" in labels:
        image = _atelectasis(image, chest, lungs[high], high)
    image = bones(mediastinum(image, chest), chest)
    if "Hernia" in labels:
        image = _hernia(image, chest)
    exposure = float(view.uniform(0.94, 1.06))
    texture = 0.012 * canvas.fractal(view, side, 24, 2)
    return canvas.finish(image * exposure + texture, style, view)


def _atelectasis(image: np.ndarray, chest: Chest, lung: np.ndarray, flank: float) -> np.ndarray:
    base = chest.bases[flank]
    bands = []
    for offset in (0.06, 0.13, 0.20):
        y = base - offset
        tilt = float(chest.subject.uniform(-0.04, 0.04))
        bands.append(([(flank * 0.18, y + tilt), (flank * chest.half_width * 0.92, y - tilt)], 0.042))
    return mix(image, 0.75 * lung * canvas.lines(chest.side, bands), WHITE)


def _effusion(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    flank = chest.flank()
    x, y = canvas.grid(chest.side)
    level = chest.bases[flank] - chest.subject.uniform(0.46, 0.64)
    outwards = np.clip(flank * x / np.float32(chest.half_width), 0, 1)
    surface = np.float32(level) + 0.22 * (1 - outwards**3)
    fluid = (
        canvas.inside(surface - y, 0.025)
        * (flank * x > 0.05)
        * canvas.inside(flank * x - chest.half_width * 0.96, 0.02)
    )
    return mix(image, 0.95 * fluid * np.maximum(lungs[flank], (y > chest.bases[flank] - 0.02) * 0.5), WHITE)


def _infiltration(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    flank = chest.flank()
    patches = np.clip(0.6 + 1.2 * canvas.noise(chest.subject, chest.side, 16), 0, 1)
    zone = canvas.inside(
        canvas.ellipse(chest.side, chest.point(flank, (0.45, 0.55), (0.5, 0.56)), (0.34, 0.42)) - 1, 0.25
    )
    return mix(image, 0.80 * zone * patches * lungs[flank], 0.76)


def _mass(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    flank = chest.flank()
    radius = float(chest.subject.uniform(0.17, 0.21))
    return mix(image, 0.9 * canvas.disc(chest.side, chest.point(flank, (0.25, 0.6)), radius, 0.03), 0.86)


def _nodule(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    count = int(chest.subject.integers(4, 7))
    points = [chest.point(flank, (0.15, 0.8), (0.35, 0.75)) for flank in chest.subject.choice([-1.0, 1.0], count)]
    mask = canvas.dots(chest.side, points, chest.subject.uniform(0.055, 0.068, count).tolist())
    return mix(image, 0.9 * mask, 0.86)


def _pneumonia(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    flank = chest.flank()
    centre = (flank * chest.half_width * 0.58, chest.bases[flank] - 0.28)
    wedge = canvas.inside(canvas.ellipse(chest.side, centre, (0.32, 0.21), flank * 0.5) - 1, 0.22)
    wedge = wedge * np.clip(0.95 + 0.25 * canvas.noise(chest.subject, chest.side, 9), 0, 1)
    image = mix(image, 0.9 * wedge * lungs[flank], 0.80)
    hilum = (flank * 0.22, chest.bases[flank] - 0.36)
    heading = 0.5 if flank > 0 else np.pi - 0.5
    bronchi = [(canvas.wander(chest.subject, hilum, heading + d, 0.45, 0.3), 0.022) for d in (-0.35, 0.0, 0.35)]
    return mix(image, 0.5 * wedge * canvas.lines(chest.side, bronchi), LUNG)


def _pneumothorax(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    flank = chest.flank()
    top, base = -0.74, chest.bases[flank]
    shrunk = canvas.ellipse(
        chest.side,
        (flank * chest.half_width * 0.40, (top + base) / 2 + 0.12),
        (chest.half_width * 0.33, (base - top) / 2),
    )
    outside = canvas.inside(1 - shrunk, 0.03) * lungs[flank]
    image = mix(image, 0.95 * outside, 0.04)
    pleura = np.exp(-(((shrunk - 1) / 0.035) ** 2)) * lungs[flank]
    return mix(image, 0.7 * pleura, 0.62)


def _consolidation(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    flank = chest.flank()
    x, y = canvas.grid(chest.side)
    fissure = -0.20 + 0.08 * flank * (x - flank * 0.4) + float(chest.subject.uniform(-0.06, 0.06))
    zone = canvas.inside(y - fissure, 0.02) * canvas.inside(-0.66 - y, 0.10) * lungs[flank]
    image = mix(image, 0.85 * zone, 0.78)
    bronchi = [
        (canvas.wander(chest.subject, (flank * 0.18, -0.2), np.arctan2(-0.6, flank) + d, 0.5, 0.3), 0.02)
        for d in (-0.3, 0.2)
    ]
    return mix(image, 0.45 * zone * canvas.lines(chest.side, bronchi), 0.35)


def _edema(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    kerley = []
    for flank in (-1.0, 1.0):
        wing = canvas.inside(canvas.ellipse(chest.side, (flank * 0.30, -0.06), (0.30, 0.40)) - 1, 0.45)
        image = mix(image, 0.75 * wing * lungs[flank], 0.72)
        for i in range(6):
            y = chest.bases[flank] - 0.05 - 0.07 * i
            kerley.append(([(flank * chest.half_width * 0.76, y), (flank * chest.half_width * 0.93, y)], 0.016))
    return mix(image, 0.6 * (lungs[-1.0] + lungs[1.0]) * canvas.lines(chest.side, kerley), 0.75)


def _fibrosis(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    net = []
    for flank in (-1.0, 1.0):
        for _ in range(42):
            start = chest.point(flank, (0.55, 1.0), (0.25, 0.92))
            net.append((canvas.wander(chest.subject, start, chest.subject.uniform(0, 2 * np.pi), 0.16, 2.0, 5), 0.016))
    return mix(image, 0.75 * (lungs[-1.0] + lungs[1.0]) * canvas.lines(chest.side, net), 0.78)


def _pleural_thickening(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    flank = chest.flank()
    x, y = canvas.grid(chest.side)
    lung = lungs[flank]
    inner = np.roll(lung, -int(flank * 0.055 * chest.side), axis=1)  # the lung moved inwards leaves a rim outside
    rim = np.clip(lung - inner, 0, 1) * (flank * x > 0.3) * (y > -0.72)
    return mix(image, 0.95 * rim, 0.88)


def _hernia(image: np.ndarray, chest: Chest) -> np.ndarray:
    centre = (float(chest.subject.uniform(-0.02, 0.10)), max(chest.bases.values()) - 0.14)
    ring = canvas.ellipse(chest.side, centre, (0.20, 0.17))
    _, y = canvas.grid(chest.side)
    air = canvas.inside(ring - 0.85, 0.08) * (y < centre[1] + 0.05)
    image = mix(image, 0.8 * air, 0.30)
    return mix(image, 0.7 * np.exp(-(((ring - 1) / 0.13) ** 2)), 0.95)


_OPACITIES: dict[str, Callable[[np.ndarray, Chest, dict[float, np.ndarray]], np.ndarray]] = {
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
}
