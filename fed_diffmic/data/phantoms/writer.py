"""Write a data set of phantoms: who is in it, which labels, which site, in a folder that appears at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from fed_diffmic.data.phantoms import chest, dermoscopy, fundus, ultrasound
from fed_diffmic.data.phantoms.canvas import Style, site_style
from fed_diffmic.data.phantoms.layouts import LAYOUTS, Phantom
from fed_diffmic.errors import ConfigError, DataError, MachineError, ModelFileError
from fed_diffmic.files import read_json, sync_folder, write_json
from fed_diffmic.seeding import derive_seed, numpy_generator

MARKER = "phantoms.json"
"""Names, in a folder of phantoms, the request that it was drawn for."""

SIDE = 128
FORMAT = 1
LOCK_TIMEOUT_S = 1800.0

# Chances of a second image of a lesion, of 1 to 3 radiographs of a patient, of 0 to 3 findings in one.
_SECOND_IMAGE = 0.25
_VISITS = (0.7, 0.2, 0.1)
_FINDINGS = (0.25, 0.30, 0.30, 0.15)


def draw(
    modality: str,
    label: int | frozenset[str],
    style: Style,
    subject: np.random.Generator,
    view: np.random.Generator,
    side: int = SIDE,
) -> np.ndarray:
    """One phantom.

    Args:
        modality: dermoscopy, fundus, chest or ultrasound.
        label: class index; chest: names of findings (empty: none).
        style: of the institution (``canvas.site_style``).
        subject: generator of what belongs to the lesion or patient; seeded alike for a second image.
        view: generator of what belongs to this image.
        side: H, pixels.

    Returns:
        (H, H, 3) uint8.
    """
    if modality == "chest":
        return chest.draw(label if isinstance(label, frozenset) else frozenset(), style, subject, view, side)
    modules = {"dermoscopy": dermoscopy, "fundus": fundus, "ultrasound": ultrasound}
    if modality not in modules or not isinstance(label, int):
        raise ValueError(f"no phantoms of {modality!r} with label {label!r}")
    return modules[modality].draw(label, style, subject, view, side)


def write_phantoms(
    out: Path, modality: str, n: int, seed: int, *, sites: int = 4, shuffle_labels: bool = False, side: int = SIDE
) -> Path:
    """Draw a data set into ``out`` in the published layout of its modality, unless it is there already.

    Classes are equally frequent (chest: several findings at once, a quarter without any). Lesions may have two
    images and patients several; all images of one come from one site. The same request gives the same images.

    Args:
        out: a new or empty folder, or one that an equal request has filled: that one is left as it is.
        modality: dermoscopy (ham10000), fundus (aptos2019), chest (chestxray14), ultrasound (pmg2000);
            "none" stands for dermoscopy.
        n: number of images.
        seed: of everything drawn.
        sites: number of institutions, each with its own contrast, brightness and colour.
        shuffle_labels: the tables' labels are exchanged between groups at random, as a control: nothing
            can be learnt.
        side: H of the images, pixels.

    Returns:
        ``out``.

    Raises:
        ConfigError: unknown modality, or a number out of range.
        DataError: ``out`` holds something else; nothing is overwritten.
        MachineError: no space, no permission, or another process still draws when the time is up.
    """
    modality = "dermoscopy" if modality == "none" else modality
    if modality not in LAYOUTS:
        raise ConfigError("dataset.modality", modality, ", ".join(LAYOUTS))
    if n < 1 or sites < 1:
        raise ConfigError("dataset.phantom_images", n, "at least 1 image and 1 site")
    out = Path(os.path.abspath(out))
    request = {
        "format": FORMAT,
        "modality": modality,
        "images": n,
        "seed": seed,
        "sites": sites,
        "shuffle_labels": shuffle_labels,
        "side": side,
    }
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.parent / f".{out.name}.lock", timeout=LOCK_TIMEOUT_S):
            if not _is_there(out, request):
                _write(out, request, modality, n, seed, sites, shuffle_labels, side)
    except Timeout:
        raise MachineError(
            f"another process has been drawing phantoms for {LOCK_TIMEOUT_S:g} s",
            "Wait for it, or choose another folder.",
        ) from None
    except OSError as error:
        raise MachineError(
            f"phantoms cannot be written to {out}: {error.strerror}", "Free space, or choose another folder."
        ) from error
    return out


def _is_there(out: Path, request: dict[str, object]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = read_json(out / MARKER)
    except ModelFileError:
        raise DataError(
            f"{out} holds something other than phantoms, which is not overwritten", "Name a new or empty folder."
        ) from None
    if found != request:
        unlike = [k for k in request if not isinstance(found, dict) or found.get(k) != request[k]]
        raise DataError(
            f"{out} holds phantoms of another request (it differs in {', '.join(unlike) or 'format'})",
            "Name another folder, or remove this one.",
        )
    return True


def _write(
    out: Path, request: dict[str, object], modality: str, n: int, seed: int, sites: int, shuffled: bool, side: int
) -> None:
    """Draw into a folder beside ``out``, then rename it: half a data set is never seen under that name."""
    people = plan(modality, n, seed, sites)
    drawn = {p.number: p for p in people}

    def pixels(phantom: Phantom) -> np.ndarray:
        p = drawn[phantom.number]  # the table's labels may be shuffled, the picture's are not
        subject = numpy_generator(seed, "phantoms", modality, "subject", p.group)
        view = numpy_generator(seed, "phantoms", modality, "view", p.group, p.visit)
        return draw(modality, p.labels, site_style(p.site), subject, view, side)

    draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.part-"))
    try:
        LAYOUTS[modality][1](draft, shuffle(people, seed) if shuffled else people, pixels)
        write_json(draft / MARKER, request)
        draft.chmod(0o755)
        os.replace(draft, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def plan(modality: str, n: int, seed: int, sites: int) -> list[Phantom]:
    """Who is in the data set: groups with their number of images, site and labels."""
    rng = numpy_generator(seed, "phantoms", modality, "plan")
    sizes: list[int] = []
    while sum(sizes) < n:
        if modality == "dermoscopy":
            sizes.append(1 + int(rng.random() < _SECOND_IMAGE))
        elif modality == "chest":
            sizes.append(1 + int(rng.choice(len(_VISITS), p=_VISITS)))
        else:
            sizes.append(1)  # these layouts name no patient
    labels = _chest_labels(rng, len(sizes)) if modality == "chest" else _class_labels(rng, len(sizes), modality)
    places = rng.permutation(np.arange(len(sizes)) % sites).tolist()
    members = [(group, visit) for group, size in enumerate(sizes) for visit in range(size)][:n]
    return [Phantom(i, group, visit, places[group], labels[group]) for i, (group, visit) in enumerate(members)]


def shuffle(people: Sequence[Phantom], seed: int) -> list[Phantom]:
    """The same images under labels exchanged between groups at random."""
    of_group = {p.group: p.labels for p in people}
    order = np.random.default_rng(derive_seed(seed, "phantoms", "shuffle")).permutation(len(of_group))
    labels = list(of_group.values())
    exchanged = {group: labels[i] for group, i in zip(of_group, order.tolist(), strict=True)}
    return [Phantom(p.number, p.group, p.visit, p.site, exchanged[p.group]) for p in people]


def _class_labels(rng: np.random.Generator, count: int, modality: str) -> list[int | frozenset[str]]:
    classes = {"dermoscopy": dermoscopy.CLASSES, "fundus": fundus.CLASSES, "ultrasound": ultrasound.CLASSES}[modality]
    return rng.permutation(np.arange(count) % len(classes)).tolist()


def _chest_labels(rng: np.random.Generator, count: int) -> list[int | frozenset[str]]:
    """None to three findings each, all of the fourteen equally often."""
    numbers = rng.choice(len(_FINDINGS), size=count, p=_FINDINGS)
    deck: list[str] = []
    labels: list[int | frozenset[str]] = []
    for number in numbers.tolist():
        while len(deck) < number + len(chest.CLASSES):
            deck += rng.permutation(np.array(chest.CLASSES)).tolist()
        found: list[str] = []
        for name in list(deck):
            if len(found) < number and name not in found:
                found.append(name)
                deck.remove(name)
        labels.append(frozenset(found))
    return labels
