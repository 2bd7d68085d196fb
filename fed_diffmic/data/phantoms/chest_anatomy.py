"""The anatomy of a chest phantom: body, lungs, heart and bones of one patient, before any finding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fed_diffmic.data.phantoms import canvas
from fed_diffmic.data.phantoms.canvas import Point, mix

LUNG, SOFT, HEART, WHITE = 0.24, 0.66, 0.80, 0.88
"""Brightness of air-filled lung, soft tissue, heart and dense opacity."""


@dataclass(frozen=True)
class Chest:
    """Anatomy of one patient, and what it is drawn with. ``flank`` is -1 left of the image, +1 right.

    Attributes:
        side: H, pixels.
        findings: names; some change the anatomy.
        subject, view: generators of the patient and of the exposure.
        half_width: of the chest.
        bases: flank -> height of the diaphragm.
        sides: -1 and 1 in turns.
    """

    side: int
    findings: frozenset[str]
    subject: np.random.Generator
    view: np.random.Generator
    half_width: float
    bases: dict[float, float]
    sides: Iterator[float]

    def flank(self) -> float:
        """A side of the chest for the next one-sided finding: in turns, so that two of them do not hide each other."""
        return next(self.sides)

    def lung(self, flank: float) -> np.ndarray:
        """Mask (H, H) of the lung on one side."""
        x, y = canvas.grid(self.side)
        centre, top, base = flank * self.half_width * 0.54, -0.74, self.bases[flank]
        middle, half = (top + base) / 2, (base - top) / 2
        v = (y - np.float32(middle)) / np.float32(half)
        widening = 0.80 + 0.20 * v  # the apex is narrower than the base
        u = (x - np.float32(centre)) / (np.float32(self.half_width * 0.43) * widening)
        body = canvas.inside((np.abs(u) ** 2.6 + np.abs(np.minimum(v, 0)) ** 2.6) ** (1 / 2.6) - 1, 0.05)
        dome = (
            np.float32(base)
            + 0.13 * ((x - np.float32(centre)) / np.float32(self.half_width * 0.4)) ** 2 * self.flatness()
        )
        return body * canvas.inside(y - dome, 0.015)

    def flatness(self) -> float:
        """How far the diaphragm falls off to the sides: little in emphysema."""
        return 0.15 if "Emphysema" in self.findings else 1.0

    def point(self, flank: float, height: tuple[float, float], across: tuple[float, float] = (0.38, 0.68)) -> Point:
        """A point in a lung; ``height`` in [0, 1] from apex to base, ``across`` in half widths from the middle."""
        top, base = -0.70, self.bases[flank]
        return (
            flank * self.half_width * float(self.subject.uniform(*across)),
            top + (base - top) * float(self.subject.uniform(*height)),
        )


def body(chest: Chest) -> np.ndarray:
    """Soft tissue from the shoulders down (H, H)."""
    x, y = canvas.grid(chest.side)
    shoulders = 0.30 + 0.72 * np.clip((y + 1.05) / 0.50, 0, 1) ** 0.45
    trunk = canvas.inside(np.abs(x) - shoulders * np.float32(chest.half_width + 0.34), 0.06)
    soft = SOFT + 0.10 * np.clip(y, 0, 1) + 0.03 * canvas.noise(chest.subject, chest.side, 4)
    return trunk * soft * (1 - 0.45 * np.clip(np.abs(x) - chest.half_width, 0, 1))


def markings(image: np.ndarray, chest: Chest, lungs: dict[float, np.ndarray]) -> np.ndarray:
    """Vessels that leave the hila and thin out, and the haze of the lungs."""
    paths = []
    for flank in (-1.0, 1.0):
        hilum = (flank * 0.20, -0.05)
        for _ in range(12):
            heading = (0 if flank > 0 else np.pi) + chest.subject.uniform(-1.2, 1.2)
            paths.append((canvas.wander(chest.subject, hilum, heading, chest.subject.uniform(0.3, 0.6), 0.6), 0.016))
    both = lungs[-1.0] + lungs[1.0]
    strength = 0.12 if "Emphysema" in chest.findings else 0.30
    image = image + strength * both * canvas.lines(chest.side, paths) * (SOFT - image)
    for flank in (-1.0, 1.0):
        image = mix(image, 0.35 * canvas.disc(chest.side, (flank * 0.20, -0.05), 0.05, 0.10), HEART)
    return image + 0.015 * both * canvas.fractal(chest.subject, chest.side, 10, 2)


def mediastinum(image: np.ndarray, chest: Chest) -> np.ndarray:
    """Spine, great vessels, aortic knob, heart and trachea over ``image`` (H, H)."""
    x, y = canvas.grid(chest.side)
    column = canvas.inside(np.abs(x - 0.02) - np.float32(0.13) - 0.03 * np.clip(y, 0, 1), 0.04)
    image = mix(image, 0.9 * column, 0.76)
    image = mix(image, 0.85 * canvas.disc(chest.side, (0.12, -0.28), 0.09, 0.05), 0.76)  # aortic knob
    size = chest.subject.uniform(0.54, 0.62) if "Cardiomegaly" in chest.findings else chest.subject.uniform(0.31, 0.36)
    size *= 0.75 if "Emphysema" in chest.findings else 1.0
    base = max(chest.bases.values())
    centre = (0.13 + 0.12 * (size - 0.3), base - 0.17 - 0.15 * (size - 0.3))
    heart = canvas.ellipse(chest.side, centre, (size, 0.25 + 0.35 * (size - 0.31)), 0.62)
    image = mix(image, 0.92 * canvas.inside(heart - 1, 0.07), HEART)
    image = mix(
        image, 0.5 * canvas.inside(y - np.float32(base), 0.04) * canvas.inside(np.abs(x - 0.1) - 0.12, 0.05), HEART
    )
    trachea = canvas.inside(np.abs(x + 0.01) - 0.045, 0.03) * canvas.inside(np.abs(y + 0.75) - 0.30, 0.06)
    return mix(image, 0.35 * trachea, 0.35)


def bones(image: np.ndarray, chest: Chest) -> np.ndarray:
    """Ribs, clavicles and vertebrae over ``image`` (H, H)."""
    ribs, clavicles, vertebrae = [], [], []
    reach = chest.half_width
    for i in range(9):
        height = -0.78 + 0.155 * i
        for flank in (-1.0, 1.0):
            t = np.linspace(0, 1, 14)
            wide = reach * min(0.62 + 0.10 * i, 0.98)
            x = flank * (0.08 + (wide - 0.08) * np.sin(t * np.pi / 2))
            y = height - 0.03 + 0.20 * t**2.2
            ribs.append((list(zip(x.tolist(), y.tolist(), strict=True)), 0.034))
            front = height + 0.17 + 0.22 * (1 - t) ** 1.3
            ribs.append((list(zip((x * 0.98).tolist(), front.tolist(), strict=True))[4:], 0.022))
    for flank in (-1.0, 1.0):
        slope = float(chest.view.uniform(-0.03, 0.03))
        clavicles.append(([(flank * 0.07, -0.60), (flank * 0.35, -0.68 + slope), (flank * 0.78, -0.80 + slope)], 0.055))
    for i in range(11):
        vertebrae.append(([(-0.08, -0.85 + 0.16 * i), (0.10, -0.85 + 0.16 * i)], 0.012))
    image = image + 0.11 * canvas.lines(chest.side, ribs)
    image = image + 0.10 * canvas.lines(chest.side, clavicles)
    return image - 0.05 * canvas.lines(chest.side, vertebrae)
