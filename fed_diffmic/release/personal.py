"""What of a model is a site's own (FedBN's normalisation, Ditto's models): a file beside the final model.

The parts are trained on one site's images and never cross to the coordinator. A simulation keeps those of its virtual
sites with the run; a hospital keeps its own with the model that it takes over (:mod:`client.personal`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fed_diffmic.algorithms import Tensors, algorithm_class, build_algorithm
from fed_diffmic.errors import ModelFileError, UsageError
from fed_diffmic.files import load_tensors, safe_name, save_tensors, tensors_digest
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.release.final import FinalModel
from fed_diffmic.release.pinned import PIN
from fed_diffmic.release.provenance import sign_statement, verify_statement
from fed_diffmic.training.stages import GUIDANCE_PREFIX

PARTS = "personal"
SIGNED_PARTS = "parts.json"


def personal_file(folder: Path, stage: str, site: str) -> Path:
    """Where, beside a model's ``final/``, lies what of a stage's model is a site's own."""
    return folder / PARTS / stage / f"{safe_name(site)}.safetensors"


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


def sign_parts(folder: Path, site: str, parts: Mapping[str, Tensors], signer: PrivateKey | None) -> None:
    """Write down the digests of a site's parts beside them, for the model that they belong to.

    Args:
        folder: of the model; its ``final/`` is there.
        signer: the site's key; none: nothing is written.

    Raises:
        MachineError: no space, no permission.
    """
    if signer is not None:
        digests = {stage: tensors_digest(part) for stage, part in sorted(parts.items())}
        statement = {"about": PARTS, "site": site, "model_json": _model_digest(folder), "parts": digests}
        sign_statement(folder / PARTS / SIGNED_PARTS, statement, signer)


def check_parts(folder: Path, site: str, parts: Mapping[str, Tensors]) -> None:
    """Parts beside a model are those that the site signed, for that model; a simulation signs none.

    Raises:
        ModelFileError: they are not, or the model was kept by a site and its statement is gone.
    """
    path = folder / PARTS / SIGNED_PARTS
    if not path.exists():
        if (folder / PIN).exists() and parts:
            raise ModelFileError(
                f"the own parts of {site} in {folder} are not signed by the site",
                "Take the model over again: `fed-diffmic client model use DIR --config site.yaml`.",
            )
        return
    statement, _ = verify_statement(path)
    said = {"about": PARTS, "site": site, "model_json": _model_digest(folder)}
    digests = {stage: tensors_digest(part) for stage, part in parts.items()}
    named = statement.get("parts")
    same = isinstance(named, dict) and digests.items() <= named.items()
    if not same or any(statement.get(name) != value for name, value in said.items()):
        raise ModelFileError(
            f"the own parts of {site} in {folder} are not those that the site signed for this model",
            "Take the model over again: `fed-diffmic client model use DIR --config site.yaml`.",
        )


def _model_digest(folder: Path) -> str:
    return hashlib.sha256((folder / "final" / "model.json").read_bytes()).hexdigest()


def joined(parts: Mapping[str, Tensors], stage: str) -> Tensors:
    """What of a stage's state is a site's own, of the frozen guidance network inside it too.

    Args:
        parts: by stage.
    """
    own = dict(parts.get(stage, {}))
    if stage == "diffusion":
        own |= {GUIDANCE_PREFIX + name: value for name, value in parts.get("guidance", {}).items()}
    return own


def _inside(stage: str) -> tuple[str, ...]:
    """The stages whose tensors a stage's state holds."""
    return (stage, "guidance") if stage == "diffusion" else (stage,)


def own_part(folder: Path, final: FinalModel, stage: str, site: str) -> Tensors:
    """As :func:`joined`, from the files beside a model.

    Raises:
        ModelFileError: a file is missing, torn or not the one that was signed.
    """
    stages = [name for name in _inside(stage) if site in final.personal.get(name, {})]
    parts = {name: load_tensors(personal_file(folder, name, site)) for name in stages}
    check_parts(folder, site, parts)
    return joined(parts, stage)


def part_of_site(folder: Path, final: FinalModel, stage: str, site: str | None) -> Tensors:
    """What of a finished run's model is the named site's own; nothing where the model is the same everywhere.

    Args:
        site: name; none: the global model is meant.

    Raises:
        UsageError: the run has no such site, or no site was named and the global model alone is none that was trained.
        ModelFileError: a file is missing or torn.
    """
    # The diffusion stage of a plain classifier keeps nothing at a site under FedPer; the guidance network in it does.
    names = sorted({site for inside in _inside(stage) for site in final.personal.get(inside, {})})
    if final.made_at is not None and site in (None, final.made_at.site):
        return {}  # it is that site's own as a whole
    if site is None:
        if names and not algorithm_class(final.spec.strategy.name).global_is_trained:
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
