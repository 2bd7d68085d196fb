"""What of a model is a site's own (FedBN's normalisation, Ditto's models): a file beside the final model.

The parts are trained on one site's images and never cross to the coordinator. A simulation keeps those of its virtual
sites with the run; a hospital keeps its own with the model that it takes over (:mod:`client.personal`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fed_diffmic.algorithms import Tensors, algorithm_class, build_algorithm
from fed_diffmic.errors import UsageError
from fed_diffmic.files import load_tensors, safe_name, save_tensors
from fed_diffmic.release.final import FinalModel
from fed_diffmic.training.stages import GUIDANCE_PREFIX


def personal_file(folder: Path, stage: str, site: str) -> Path:
    """Where, beside a model's ``final/``, lies what of a stage's model is a site's own."""
    return folder / "personal" / stage / f"{safe_name(site)}.safetensors"


def part_of_state(final: FinalModel, stage: str, state: Tensors) -> Tensors:
    """What of a stage's model the state is that a site kept after its round."""
    return build_algorithm(final.spec.strategy, final.spec.stage(stage)).overlay(state, training=False)


def save_part(folder: Path, stage: str, site: str, part: Tensors) -> Path:
    """Write a site's own part beside a model.

    Raises:
        MachineError: no space, no permission.
    """
    path = personal_file(folder, stage, site)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, part)
    return path


def joined(parts: Mapping[str, Tensors], stage: str) -> Tensors:
    """What of a stage's state is a site's own, of the frozen guidance network inside it too.

    Args:
        parts: by stage.
    """
    own = dict(parts.get(stage, {}))
    if stage == "diffusion":
        own |= {GUIDANCE_PREFIX + name: value for name, value in parts.get("guidance", {}).items()}
    return own


def own_part(folder: Path, final: FinalModel, stage: str, site: str) -> Tensors:
    """As :func:`joined`, from the files beside a model.

    Raises:
        ModelFileError: a file is missing or torn.
    """
    inside = (stage, "guidance") if stage == "diffusion" else (stage,)
    stages = [name for name in inside if site in final.personal.get(name, {})]
    return joined({name: load_tensors(personal_file(folder, name, site)) for name in stages}, stage)


def part_of_site(folder: Path, final: FinalModel, stage: str, site: str | None) -> Tensors:
    """What of a finished run's model is the named site's own; nothing where the model is the same everywhere.

    Args:
        site: name; none: the global model is meant.

    Raises:
        UsageError: the run has no such site, or no site was named and the global model alone is none that was trained.
        ModelFileError: a file is missing or torn.
    """
    names = sorted(final.personal.get(stage, {}))
    if site is None:
        if names and not algorithm_class(final.spec.strategy.name).whole:
            raise UsageError(
                f"under strategy={final.spec.strategy.name} a part of the model was trained and kept at each site; the "
                "rest alone is no model",
                f"Say whose part to use: --site NAME, one of {', '.join(names)}.",
            )
        return {}
    if site not in names:
        has = f"one of {', '.join(names)}" if names else "none: its model is the same at every site"
        raise UsageError(f"--site {site}: the run has no own part of that site", f"It has {has}.")
    return own_part(folder, final, stage, site)
