"""The models that were sent to a site and are kept under ``models/RUN``: which there are, and one of them to be used.

What a model was when it was kept is a line ``model_kept`` of the site's own audit log; it is held to it at each use, as
the model in use is to its line ``taken_over`` (:mod:`client.kept`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.kept import IN_USE, check_chain, coordinator_key, model_digest, signing_key
from client.logged import check_agreed, check_logged
from client.start import AUDIT
from fed_diffmic.algorithms import Tensors
from fed_diffmic.config.folders import has_final
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.errors import FedDiffmicError, ModelFileError, UsageError
from fed_diffmic.exchange.audit_lines import Line, read_lines
from fed_diffmic.files import safe_name, tensors_digest
from fed_diffmic.release.final import FinalModel, load_final
from fed_diffmic.release.provenance import PROVENANCE, verify_statement

MODELS, KEPT = "models", "model_kept"
REMEDY = "Remove its folder; the coordinator sends it again when it resumes the run (`flower-server --resume RUN`)."


@dataclass(frozen=True)
class Listed:
    """A model under ``models/``.

    Attributes:
        run: it is of.
        came: UTC, ISO 8601, as the audit log says; empty: the log does not name it.
        signed_by: fingerprint of the key whose signature holds.
        classes, task: what it predicts.
        mib: size of its weights.
        in_use: whether it is the model in use.
        own: kinds of the models that this site made of it for itself.
        wrong: why it cannot be used; empty: it can.
    """

    run: str
    came: str = ""
    signed_by: str = ""
    classes: tuple[str, ...] = ()
    task: str = ""
    mib: float = 0.0
    in_use: bool = False
    own: tuple[str, ...] = ()
    wrong: str = ""


def kept_line(config: SiteConfig, run: str) -> Line | None:
    """The line of the audit log about the kept model of a run; none: there is none.

    Raises:
        ModelFileError: it, or the log behind it, does not hold.
    """
    path = _folder(config) / AUDIT
    lines = read_lines(path) if path.exists() else []
    found = next((n for n in reversed(lines) if n.kind == KEPT and n.facts.get("of_run") == run), None)
    if found is not None:
        check_chain(lines[lines.index(found) :], signing_key(config), path)
    return found


def is_delivered(config: SiteConfig, folder: Path) -> bool:
    """Whether a folder is one of a model that was sent to this site."""
    return folder.resolve().parent == (_folder(config) / MODELS).resolve()


def load_delivered(config: SiteConfig, folder: Path) -> FinalModel:
    """A model that was sent to this site, if it is still the one that came.

    Raises:
        ModelFileError: it is not, or its signature does not hold.
    """
    model = load_final(folder, public_key=coordinator_key(config))
    line = kept_line(config, model.spec.run_id)
    if line is None or line.facts.get("model") != model_digest(folder):
        raise ModelFileError(f"the model in {folder} is not the one that was sent to this site", REMEDY)
    return model


def load_copied(config: SiteConfig, folder: Path) -> FinalModel:
    """A model in a folder that somebody copied here: signed by the coordinator, and what this site agreed to.

    Where the site keeps the study of its run, settings and classes are the study's; where it took part, the model is
    what its own log says that it was sent. That of a run that this site knows nothing of is known by its key alone.

    Raises:
        ModelFileError: it is not.
    """
    key = coordinator_key(config)
    model = load_final(folder, public_key=key)
    check_agreed(_folder(config), model.spec, folder)
    log = _folder(config) / AUDIT
    if key is not None and log.exists():
        statement, _ = verify_statement(folder / "final" / PROVENANCE, key)
        check_logged(read_lines(log), key, config.site.name, folder, statement, model.spec.run_id)
    return model


def check_delivered_part(config: SiteConfig, run: str, stage: str, part: Tensors) -> None:
    """A site's own part of a model that was sent is the one that was kept with it.

    Raises:
        ModelFileError: it is not.
    """
    line = kept_line(config, run)
    if line is None or dict(line.facts.get("parts", {})).get(stage) != tensors_digest(part):
        raise ModelFileError(
            f"this site's own part of stage {stage} is not the one that was kept with the model", REMEDY
        )


def find_model(config: SiteConfig, named: str) -> Path:
    """The folder of a model: a run whose model was sent to this site, or any folder with a finished run's model.

    Raises:
        UsageError: there is none.
    """
    kept = _folder(config) / MODELS / safe_name(named)
    for folder in (kept, Path(named)):
        if has_final(folder):
            return folder
    names = ", ".join(_names(config)) or "none"
    raise UsageError(
        f"{named}: there is no model of that name, and no folder with one",
        f"Models that were sent to this site: {names}. Or give the folder of a finished run.",
    )


def listed(config: SiteConfig) -> list[Listed]:
    """Every model under ``models/``, verified, the last that came first."""
    used = _folder(config) / IN_USE
    in_use = model_digest(used) if has_final(used) else ""
    found = [_listed(config, name, in_use) for name in _names(config)]
    return sorted(found, key=lambda one: one.came, reverse=True)


def listing(models: Sequence[Listed]) -> str:
    """The list for a reader."""
    if not models:
        return "No model was sent to this site, or none is kept (policy.take_model)."
    lines = []
    for one in models:
        if one.wrong:
            lines.append(f"{one.run}: NOT usable: {one.wrong}")
            continue
        use = "; in use" if one.in_use else ""
        lines.append(f"{one.run}: came {one.came}, {len(one.classes)} classes, {one.mib:.1f} MiB{use}")
        lines.append(f"  signed by {one.signed_by}")
        if one.own:
            lines.append(f"  made of it at this site: {', '.join(one.own)}")
    return "\n".join([*lines, "For research, not a medical device."])


def facts(models: Sequence[Listed]) -> list[dict[str, Any]]:
    """The list for a program."""
    return [{**vars(one), "classes": list(one.classes), "own": list(one.own)} for one in models]


def _listed(config: SiteConfig, name: str, in_use: str) -> Listed:
    folder = _folder(config) / MODELS / name
    try:
        model = load_delivered(config, folder)
        line = kept_line(config, model.spec.run_id)
    except FedDiffmicError as error:
        return Listed(name, wrong=error.cause)
    size = sum(value.nbytes for state in model.states.values() for value in state.values())
    same = in_use == model_digest(folder)
    spec, came = model.spec, "" if line is None else line.time
    return Listed(spec.run_id, came, model.signed_by, spec.classes, spec.task, size / 2**20, same)


def _names(config: SiteConfig) -> list[str]:
    folder = _folder(config) / MODELS
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def _folder(config: SiteConfig) -> Path:
    return Path(str(config.site.folder))
