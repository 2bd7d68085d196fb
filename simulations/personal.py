"""What of a model is a virtual site's own (FedBN's normalisation, Ditto's models): kept with the run, used for figures.

In a consortium these parts never leave the sites. Here the sites are folders of the run, whose state is removed when
the run ends, so the parts that belong to the final model are copied to ``personal/<stage>/<site>.safetensors`` first.
"""

from __future__ import annotations

from pathlib import Path

from client.state import SiteStore
from fed_diffmic.algorithms import Tensors, algorithm_class, build_algorithm
from fed_diffmic.errors import ModelFileError, UsageError
from fed_diffmic.files import load_tensors, safe_name, save_tensors
from fed_diffmic.training.stages import GUIDANCE_PREFIX
from server.checkpoints import FinalModel


def personal_file(folder: Path, stage: str, site: str) -> Path:
    """Where an arm keeps what of a stage's model is a virtual site's own."""
    return folder / "personal" / stage / f"{safe_name(site)}.safetensors"


def keep_personal(final: FinalModel, folder: Path, run_dir: Path) -> None:
    """Copy the sites' own parts of a finished arm's model out of their state, which the next trial replaces.

    Raises:
        ModelFileError: a site no longer holds the state that the final model names.
    """
    for stage, states in sorted(final.personal.items()):
        algorithm = build_algorithm(final.spec.strategy, final.spec.stage(stage))
        for site, digest in sorted(states.items()):
            path = personal_file(folder, stage, site)
            if path.exists():
                continue
            store = SiteStore(run_dir / "sites" / safe_name(site))
            state = store.state((final.spec.run_id, final.spec.arm, stage), digest)
            if state is None:
                raise ModelFileError(
                    f"site {site} no longer holds its own part of the model of stage {stage}",
                    "Start the run again in another run.dir.",
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, algorithm.overlay(state, training=False))


def own_part(folder: Path, final: FinalModel, stage: str, site: str) -> Tensors:
    """What of a stage's state is the site's own, of the frozen guidance network inside it too."""
    own: Tensors = {}
    parts = {stage: "", **({"guidance": GUIDANCE_PREFIX} if stage == "diffusion" else {})}
    for name, prefix in parts.items():
        if site in final.personal.get(name, {}):
            own |= {prefix + key: value for key, value in load_tensors(personal_file(folder, name, site)).items()}
    return own


def part_of_site(folder: Path, final: FinalModel, stage: str, site: str | None) -> Tensors:
    """What of a finished run's model is the named site's own; nothing where the model is the same everywhere.

    Args:
        site: name; none: the global model is meant.

    Raises:
        UsageError: the run has no such site, or no site was named and the global model alone is none that was trained.
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
