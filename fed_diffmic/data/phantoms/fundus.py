"""Fundus phantoms: the five grades of diabetic retinopathy (ICDR scale, as in APTOS 2019), by their signs.

=====  ========================  ====================================================================
grade  name                      drawn as
=====  ========================  ====================================================================
0      no retinopathy            disc, macula and vessels alone
1      mild                      microaneurysms (larger than life, so that they survive 64 pixels)
2      moderate                  more of them, dot haemorrhages and hard exudates
3      severe                    blot haemorrhages in every quadrant, cotton-wool spots, beaded veins
4      proliferative             new vessels at the disc, preretinal haemorrhage with a level, laser scars
=====  ========================  ====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fed_diffmic.data.phantoms import canvas
from fed_diffmic.data.phantoms.canvas import Point, Style, mix

CLASSES = ("0", "1", "2", "3", "4")

_DARK_RED = (0.36, 0.05, 0.03)


@dataclass(frozen=True)
class _Eye:
    """Geometry of one eye: ``nose`` is the side (+1 right, -1 left) that the optic disc is on."""

    side: int
    nose: float
    disc: Point
    macula: Point


def draw(label: int, style: Style, subject: np.random.Generator, view: np.random.Generator, side: int) -> np.ndarray:
    """One photograph of one eye.

    Args:
        label: grade, index in :data:`CLASSES`.
        style: of the institution.
        subject: what belongs to the eye.
        view: what belongs to this photograph.
        side: H, pixels.

    Returns:
        (H, H, 3) uint8.
    """
    nose = float(subject.choice([-1, 1]))
    shift = view.uniform(-0.08, 0.08, 2)
    disc = (nose * float(subject.uniform(0.42, 0.55)) + shift[0], float(subject.uniform(-0.06, 0.06)) + shift[1])
    macula = (disc[0] - nose * 0.72, disc[1] + 0.07)
    eye = _Eye(side, nose, disc, macula)
    image = _background(eye, subject)
    image = _vessels(image, eye, subject, beaded=label == 3)
    image = _signs(image, label, eye, subject)
    field = canvas.inside(canvas.ellipse(side, (0, 0), (0.96, 0.96)) - 1, 0.015)
    if view.random() < 0.5:  # many cameras cut the disc above and below
        field = field * (np.abs(canvas.grid(side)[1]) < 0.80)
    light = (
        1.05
        - 0.35 * canvas.ellipse(side, (float(view.uniform(-0.3, 0.3)), float(view.uniform(-0.3, 0.3))), (1, 1)) ** 2
    )
    return canvas.finish(image * light[..., None], style, view, keep_black=field)


def _background(eye: _Eye, subject: np.random.Generator) -> np.ndarray:
    tone = subject.uniform(-1, 1)
    colour = np.array([0.80, 0.40 + 0.05 * tone, 0.16 + 0.06 * tone], dtype=np.float32)
    texture = 1 + 0.035 * canvas.fractal(subject, eye.side, 5, 4)
    image = colour * texture[..., None]
    image = mix(image, 0.50 * canvas.disc(eye.side, eye.macula, 0.14, 0.14), (0.42, 0.14, 0.05))
    image = mix(image, 0.5 * canvas.disc(eye.side, eye.disc, 0.20, 0.06), (0.90, 0.55, 0.25))
    image = mix(image, canvas.disc(eye.side, eye.disc, 0.155, 0.025), (0.98, 0.80, 0.48))
    return mix(image, 0.9 * canvas.disc(eye.side, eye.disc, 0.07, 0.03), (1.0, 0.95, 0.78))


def _vessels(image: np.ndarray, eye: _Eye, subject: np.random.Generator, beaded: bool) -> np.ndarray:
    veins: list[tuple[list[Point], float]] = []
    arteries: list[tuple[list[Point], float]] = []
    for up in (-1.0, 1.0):
        for kind, offset in ((veins, 0.0), (arteries, 0.16)):
            # the temporal arcade runs from the disc around the macula; the nasal vessel runs outwards
            arcade = _arc(eye, up, 0.56 + offset * 0.5 + subject.normal(0, 0.03), subject)
            kind.append((arcade, 0.034 if kind is veins else 0.024))
            heading = np.arctan2(up * 0.75, eye.nose) + subject.normal(0, 0.15)
            kind.append((canvas.wander(subject, eye.disc, heading, 0.7, 0.5), 0.022))
            for at in range(4, 18, 3):
                away = np.arctan2(up, -eye.nose * subject.uniform(0.2, 1.2)) + (np.pi if at % 2 else 0) * 0.35
                kind.append((canvas.wander(subject, arcade[at], away, subject.uniform(0.3, 0.5), 0.8, 8), 0.013))
    image = mix(image, 0.65 * canvas.lines(eye.side, veins), (0.45, 0.09, 0.04))
    image = mix(image, 0.55 * canvas.lines(eye.side, arteries), (0.64, 0.18, 0.08))
    if beaded:
        beads = [point for path, width in veins if width > 0.03 for point in path[2::2]]
        image = mix(image, 0.7 * canvas.dots(eye.side, beads, [0.032] * len(beads)), (0.42, 0.07, 0.04))
    return image


def _arc(eye: _Eye, up: float, height: float, subject: np.random.Generator) -> list[Point]:
    turn = np.linspace(0, 0.83 * np.pi, 20)
    drift = np.cumsum(subject.normal(0, 0.007, 20))
    x = eye.disc[0] - eye.nose * subject.uniform(0.62, 0.75) * (1 - np.cos(turn))
    y = eye.disc[1] + up * height * np.sin(turn) ** 0.85 + drift
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _signs(image: np.ndarray, grade: int, eye: _Eye, subject: np.random.Generator) -> np.ndarray:
    if grade >= 1:
        count = int(subject.integers(9, 14)) * (1 if grade == 1 else 2)
        image = _spots(image, eye, subject, count, (0.020, 0.030), _DARK_RED, 0.9, 0.6)
    if grade in (2, 3):
        image = _spots(image, eye, subject, 9 if grade == 2 else 14, (0.03, 0.05), _DARK_RED, 0.9, 0.7)
    if grade >= 2:
        image = _exudates(image, eye, subject, {2: 3, 3: 2, 4: 1}[grade])
    if grade == 3:
        image = _blots(image, eye, subject, 13)
        image = _spots(image, eye, subject, 5, (0.06, 0.09), (0.95, 0.84, 0.62), 0.6, 0.65, blur=True)
    if grade == 4:
        image = _proliferation(image, eye, subject)
    return image


def _spots(
    image: np.ndarray,
    eye: _Eye,
    subject: np.random.Generator,
    count: int,
    radius: tuple[float, float],
    colour: tuple[float, float, float],
    strength: float,
    reach: float,
    blur: bool = False,
) -> np.ndarray:
    points = canvas.scattered(subject, count, (eye.macula[0] / 3, 0), (reach, reach))
    mask = canvas.dots(eye.side, points, subject.uniform(*radius, count).tolist())
    if blur:
        mask = canvas.resized(canvas.resized(mask, (eye.side // 5, eye.side // 5)), mask.shape)
    return mix(image, strength * np.clip(mask, 0, 1), colour)


def _blots(image: np.ndarray, eye: _Eye, subject: np.random.Generator, count: int) -> np.ndarray:
    """Blot haemorrhages: irregular, each of several overlapping discs."""
    points = [
        point
        for centre in canvas.scattered(subject, count, (eye.macula[0] / 3, 0), (0.8, 0.8))
        for point in canvas.scattered(subject, 5, centre, (0.07, 0.05))
    ]
    mask = canvas.dots(eye.side, points, subject.uniform(0.02, 0.055, len(points)).tolist())
    return mix(image, 0.85 * mask, (0.34, 0.05, 0.03))


def _exudates(image: np.ndarray, eye: _Eye, subject: np.random.Generator, clusters: int) -> np.ndarray:
    points = []
    for _ in range(clusters):
        centre = canvas.scattered(subject, 1, eye.macula, (0.35, 0.35))[0]
        points += canvas.scattered(subject, 14, centre, (0.15, 0.12))
    mask = canvas.dots(eye.side, points, subject.uniform(0.008, 0.030, len(points)).tolist())
    return mix(image, 0.95 * mask, (1.0, 0.90, 0.45))


def _proliferation(image: np.ndarray, eye: _Eye, subject: np.random.Generator) -> np.ndarray:
    tuft = [
        (canvas.wander(subject, eye.disc, subject.uniform(0, 2 * np.pi), subject.uniform(0.25, 0.45), 3.5, 16), 0.014)
        for _ in range(22)
    ]
    image = mix(image, 0.85 * canvas.lines(eye.side, tuft), (0.58, 0.06, 0.05))
    centre = (eye.macula[0] + subject.uniform(-0.15, 0.3) * eye.nose, float(subject.uniform(0.25, 0.45)))
    _, y = canvas.grid(eye.side)
    boat = canvas.inside(canvas.ellipse(eye.side, centre, (0.36, 0.24)) - 1, 0.08)
    level = np.clip((y - np.float32(centre[1] - 0.04)) / 0.03, 0, 1)  # blood settles under a straight level
    image = mix(image, 0.95 * boat * level, (0.30, 0.03, 0.02))
    if subject.random() < 0.5:
        angle = subject.uniform(0, 2 * np.pi, 26)
        radius = subject.uniform(0.72, 0.92, 26)
        scars = list(zip((radius * np.cos(angle)).tolist(), (radius * np.sin(angle)).tolist(), strict=True))
        image = mix(image, 0.6 * canvas.dots(eye.side, scars, [0.035] * 26), (0.93, 0.80, 0.52))
    return image
