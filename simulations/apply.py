"""Use a finished run: figures on any table (``evaluate``), probabilities for images (``predict``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fed_diffmic.data.cache import content_key
from fed_diffmic.data.decode import REASONS, BadImageError, decode, read_content
from fed_diffmic.data.open import open_table
from fed_diffmic.data.site import Examples
from fed_diffmic.data.transforms import normalise
from fed_diffmic.errors import DataError, UsageError
from fed_diffmic.files import write_json
from fed_diffmic.provision.keys import PublicKey
from fed_diffmic.release.final import load_final
from fed_diffmic.release.personal import part_of_site
from fed_diffmic.training import calibration
from fed_diffmic.training.evaluation import figures_of, start_draws
from fed_diffmic.training.metrics import METRICS
from simulations.figures import Predictor

NOTICE = "For research, not a medical device."


def final_predictor(run_dir: Path, site: str | None = None, key: PublicKey | None = None) -> Predictor:
    """The last stage of a run's final model, verified against its digests.

    Args:
        key: of the coordinator; the model must be signed by it. None: by the one that the folder is pinned to, if any.
        site: whose own part of the model to use, where the sites kept some; none: the global model.

    Raises:
        UsageError: a site must be named, or the run has no such site.
        ModelFileError: the run did not end, or its files are torn or changed.
    """
    final = load_final(run_dir, public_key=key)
    stage = next(s for s in ("diffusion", "guidance", "plain") if s in final.states)
    own = part_of_site(Path(run_dir), final, stage, site)
    return Predictor(final.spec, stage, final.states[stage], final.calibration[stage], own=own)


def evaluate_run(
    run_dir: Path,
    manifest_file: Path,
    json_out: Path | None = None,
    *,
    bootstrap: int = 1000,
    site: str | None = None,
    key: PublicKey | None = None,
) -> dict[str, Any]:
    """Figures of a run's final model on every image of a table.

    Args:
        run_dir: a finished run.
        manifest_file: ``image,label[,patient_id,...]``, image paths relative to it, labels by name.
        json_out: where to write the figures as well.
        bootstrap: resamples of groups.
        site, key: as for :func:`final_predictor`.

    Raises:
        ModelFileError: no usable final model.
        DataError: what is wrong with the table.
    """
    predictor = final_predictor(Path(run_dir), site, key)
    spec = predictor.spec
    opened = open_table(manifest_file, spec.classes, spec.task, spec.model.image_side, None)
    examples = Examples.from_manifest(opened.manifest, opened.cache)
    result: dict[str, Any] = {
        "run": str(Path(run_dir).name),
        "n": len(examples),
        "notes": [str(finding) for finding in opened.findings],
        "figures": figures_of(predictor.predict(examples), spec, bootstrap),
        "notice": NOTICE,
    }
    if json_out is not None:
        write_json(json_out, result)
    console = Console()
    table = Table("figure", "value", "95 % interval", title=f"{len(examples)} images")
    for metric in METRICS:
        cell = result["figures"][metric]
        if cell["value"] is not None:
            interval = "" if cell["low"] is None else f"{cell['low']:.3f} to {cell['high']:.3f}"
            table.add_row(metric, f"{cell['value']:.3f}", interval)
    console.print(table)
    for note in result["notes"]:
        console.print(note, markup=False)
    absent = [c for c, cell in result["figures"]["per_class"].items() if not cell["positives"]]
    if absent:
        console.print(f"Absent from this table, and from every macro figure: {', '.join(absent)}", markup=False)
    console.print(NOTICE)
    return result


def predict_run(
    run_dir: Path, images: Sequence[Path], *, site: str | None = None, key: PublicKey | None = None
) -> list[dict[str, Any]]:
    """Print and return each image's calibrated probabilities.

    The command's own images are named on the terminal only, for whoever gave their names.

    Raises:
        ModelFileError: no usable final model.
        DataError: images that cannot be read (all are tried first).
    """
    if not images:
        raise UsageError("no image was given", "fed-diffmic predict --run DIR IMAGE [IMAGE ...]")
    predictor = final_predictor(Path(run_dir), site, key)
    spec = predictor.spec
    pixels, keys, bad = [], [], []
    for position, path in enumerate(images, start=1):
        try:
            content = read_content(str(path))
            pixels.append(decode(content.data, spec.model.image_side))
            keys.append(content_key(content.digest))
        except BadImageError as error:
            bad.append(f"image {position} of {len(images)}: {REASONS[error.reason]}")
    if bad:
        raise DataError("; ".join(bad), "Give readable JPEG or PNG files.")
    tensor = normalise(torch.from_numpy(np.stack(pixels)), spec.mean, spec.std)
    draws = start_draws(np.array(keys, dtype=np.uint64), spec)
    starts = torch.from_numpy(draws)
    predictor.module.eval()
    with torch.no_grad():
        scores = predictor.module.scores(predictor.module.inputs(tensor), starts).double().numpy()
    probabilities = calibration.probabilities(scores, predictor.fitted)
    console = Console()
    table = Table("image", *spec.classes)
    rows = []
    for path, row in zip(images, probabilities, strict=True):
        table.add_row(str(path), *(f"{p:.3f}" for p in row))
        rows.append({"image": str(path), "probabilities": dict(zip(spec.classes, map(float, row), strict=True))})
    console.print(table)
    console.print(NOTICE)
    return rows
