"""Test sets from elsewhere: read when everything has been trained and chosen, judged once, listed apart.

Nothing before :func:`open_external` opens such a table or an image of it. A table whose images are also among the run's
own is refused: it would not be from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fed_diffmic.config.simulation import SimulateConfig
from fed_diffmic.data.open import open_table
from fed_diffmic.data.site import Examples
from fed_diffmic.errors import DataError
from fed_diffmic.files import read_json, safe_name
from fed_diffmic.training.comparison import difference
from fed_diffmic.training.evaluation import metrics_of
from fed_diffmic.training.matrix import matrix_cell
from fed_diffmic.training.metrics import Scored
from simulations.drawn_from import FILE as DRAWN_FROM
from simulations.metrics import Judge, models_of
from simulations.sites import VirtualSites

COLUMN = "external: "
"""What the column of such a table is called in the matrix begins with."""


@dataclass(frozen=True)
class External:
    """A test set from elsewhere.

    Attributes:
        examples: all of its images.
        present: classes of which it has images, in the run's order.
        notes: what was found and handled (sentences without names).
    """

    examples: Examples
    present: tuple[str, ...]
    notes: tuple[str, ...]


def open_external(config: SimulateConfig, sites: VirtualSites, run_dir: Path) -> dict[str, External]:
    """Read every table of ``config.external``.

    Raises:
        DataError: a label that is none of the run's classes, an image that cannot be read, or one that is also among
            the run's own; says how many.
    """
    found = {}
    for name, path in sorted(config.external.items()):
        opened = open_table(
            path,
            sites.classes,
            sites.task,
            config.model.image_side,
            config.dataset.cache_dir,
            on_bad_image=config.dataset.on_bad_image,
            findings_path=run_dir / f"findings-external-{safe_name(name)}.csv",
        )
        own = read_json(run_dir / DRAWN_FROM)["images"].keys()
        keys = opened.manifest.table["key"].tolist()
        shared = sum(str(key) in own for key in keys)
        if shared:
            raise DataError(
                f"external.{name}: {shared} of its {len(keys)} images are also among the images of this run's sites",
                "A test set from elsewhere shares no image with the training: take them out of the table and continue "
                "with --resume (nothing is trained again), or start the run without it.",
            )
        examples = Examples.from_manifest(opened.manifest, opened.cache)
        counts = opened.manifest.class_counts()
        present = tuple(label for label, count in zip(sites.classes, counts, strict=True) if count)
        notes = [str(finding).removeprefix("warning ") for finding in opened.findings]
        found[name] = External(examples, present, tuple(f"external {name}: {note}" for note in notes))
    return found


def judge_external(
    tables: Mapping[str, External], methods: Mapping[str, Mapping[str, Judge]], bootstrap: int
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Every model on every table from elsewhere.

    Args:
        tables: by name.
        methods: for each method the model that each site would use.
        bootstrap: resamples of groups for the intervals.

    Returns:
        For the summary: name -> ``n``, ``groups``, ``present``, ``absent``, ``models`` (metrics by model) and
        ``differences`` (the federation minus each other model; a site's own model against the model that the site
        would use of the federation); predictions as :func:`simulations.metrics.prediction_tensors` names them; and
        the cells for the matrix, model -> column -> cell.
    """
    # Where no model is shared and the sites are many, theirs are all that there is to judge.
    models = list(models_of(methods)) or list(models_of(methods, most=max(map(len, methods.values()))))
    said: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    cells: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        scored: dict[str, Scored] = {}
        metrics: dict[str, Any] = {}
        for row, _, judge in models:
            scored[row] = judge.predict(table.examples)
            metrics[row] = metrics_of(scored[row], judge.spec, bootstrap)
            column = COLUMN + name
            cell = matrix_cell(scored[row], judge.spec.classes, bootstrap=bootstrap, seed=judge.spec.seed, name=column)
            cells.setdefault(row, {})[column] = cell
            tensors[f"{row}|{name}|probabilities"] = scored[row].probabilities.astype(np.float32)
            tensors[f"{row}|{name}|decided"] = scored[row].decided
        first = next(iter(scored.values()))
        spec = next(iter(next(iter(methods.values())).values())).spec
        gaps = {}
        for row, place, _ in models:
            ours = "federated" if "federated" in scored else f"federated/{place}"
            if ours in scored and row.partition("/")[0] != "federated":
                pair = difference({name: scored[ours]}, {name: scored[row]}, bootstrap=bootstrap, seed=spec.seed)
                gaps[row] = pair["sites"][name]
        tensors[f"{name}|labels"] = first.labels
        tensors[f"{name}|groups"] = np.unique(first.groups, return_inverse=True)[1].astype(np.int64)
        tensors[f"{name}|keys"] = table.examples.keys.astype(np.int64)
        said[name] = {
            "n": len(first.labels),
            "groups": len(np.unique(first.groups)),
            "present": list(table.present),
            "absent": [label for label in spec.classes if label not in table.present],
            "models": metrics,
            "differences": gaps,
        }
    return said, tensors, cells
