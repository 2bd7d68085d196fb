"""Models that a site makes for itself of one that came: fine-tuned, mixed, or trained alone. They never leave it.

Made by a person's command, in a process of its own, from the site's training and validation images; kept under
``own/RUN/KIND`` as folders like that of a finished run, signed by the site's key. The worker, which answers the
coordinator, does not know them. What each was when it was made is a line ``own_model`` of the site's audit log.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.kept import check_chain, model_digest, signing_key
from client.start import AUDIT, site_audit
from fed_diffmic.config.folders import has_final
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import without_paths
from fed_diffmic.data.site import SiteData
from fed_diffmic.errors import DataError, ModelFileError
from fed_diffmic.exchange.audit_lines import read_lines
from fed_diffmic.files import private_folder, safe_name, sync_folder, tensors_digest
from fed_diffmic.inference.finished import predictor_of
from fed_diffmic.inference.mixed import mixture_at
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.release.final import FinalModel, load_final, write_final
from fed_diffmic.release.made_at import ALONE, KINDS, MIXTURE, OWN, MadeAt
from fed_diffmic.release.pinned import pin
from fed_diffmic.release.provenance import code_facts
from fed_diffmic.training.personal import tune
from fed_diffmic.transport.processes import lock_file

FOLDER, MADE = "own", "own_model"
AGAIN = "Make it again: `fed-diffmic client model own RUN --config site.yaml`."
UNPROTECTED = (
    "Made without the noise of privacy.name=dp_sgd, of this site's own images: no ledger pays for it, and no epsilon "
    "holds for whoever gets it. Give it to nobody."
)


@dataclass(frozen=True)
class Came:
    """The global model that own ones are made of.

    Attributes:
        final: verified, with the site's own part in its states.
        digest: of its folder (:func:`client.kept.model_digest`).
    """

    final: FinalModel
    digest: str


@dataclass(frozen=True)
class Made:
    """A model that was made.

    Attributes:
        kind: of it.
        folder: where it lies.
        sentence: what was found on the way.
    """

    kind: str
    folder: Path
    sentence: str


def own_folder(config: SiteConfig, run: str) -> Path:
    """Where the models lie that this site made of a run's."""
    return Path(str(config.site.folder)) / FOLDER / safe_name(run)


def own_kinds(config: SiteConfig, run: str) -> list[str]:
    """Kinds of the models that this site made of a run's, in the order of :data:`KINDS`."""
    return [kind for kind in KINDS if has_final(own_folder(config, run) / kind)]


def is_own(config: SiteConfig, folder: Path) -> bool:
    """Whether a folder is one of a model that this site made."""
    return folder.resolve().is_relative_to((Path(str(config.site.folder)) / FOLDER).resolve())


def load_own(config: SiteConfig, folder: Path) -> FinalModel:
    """A model that this site made, if it is still the one of its kind that it made last.

    Raises:
        ModelFileError: it is not, or its signature does not hold.
    """
    key = signing_key(config)
    model = load_final(folder, public_key=None if key is None else key.public_key())
    about = (model.made_at.site, model.made_at.kind) if model.made_at is not None else ("", "")
    if about != (config.site.name, folder.name):
        raise ModelFileError(f"the model in {folder} is none that this site made, or one of another kind", AGAIN)
    if key is None:
        return model
    path = Path(str(config.site.folder)) / AUDIT
    lines = read_lines(path) if path.exists() else []
    named = {"of_run": model.spec.run_id, "made": folder.name}
    line = next((n for n in reversed(lines) if n.kind == MADE and named.items() <= n.facts.items()), None)
    if line is None or line.facts.get("model") != model_digest(folder):
        raise ModelFileError(f"the model in {folder} is not the one that this site made last", AGAIN)
    check_chain(lines[lines.index(line) :], key, path)
    return model


def make_own(
    config: SiteConfig,
    came: Came,
    data: SiteData,
    kinds: Sequence[str],
    device: str,
    alone: Callable[[Path], FinalModel],
    said: Callable[[Made], None] = lambda _: None,
) -> list[Made]:
    """Make models of a site's own, and keep them.

    Args:
        config: of the site.
        came: the global model.
        data: the site's; test images are not looked at.
        kinds: of :data:`KINDS`; a mixture needs the one trained alone, which is made first where it is not there.
        device: where to compute.
        alone: trains one on the site's images alone, by the run's settings, working in a folder.
        said: told of each as it is made.

    Raises:
        DataError: the site's classes are not the model's, or it has no training images.
        MachineError: another process makes some of the same run.
        ModelFileError, MachineError: see :func:`fed_diffmic.training.personal.tune`.
    """
    spec = came.final.spec
    if tuple(data.classes) != spec.classes or data.task != spec.task:
        raise DataError(
            "the model's classes or task are not those of this site's data",
            "Set dataset.classes and dataset.task to the consortium's.",
        )
    if not len(data.train):
        raise DataError("this site has no training images", "Make site.val_fraction and site.test_fraction smaller.")
    wanted = [kind for kind in KINDS if kind in kinds]
    if MIXTURE in wanted and ALONE not in [*wanted, *own_kinds(config, spec.run_id)]:
        wanted.insert(0, ALONE)
    maker = _Maker(config, came, data, device, signing_key(config))
    made = []
    with lock_file(maker.folder / ".lock", f"the folder of this site's own models of {spec.run_id}"):
        for kind in wanted:
            if kind == ALONE:
                found = maker.alone(alone)
            elif kind == MIXTURE:
                found = maker.mixture()
            else:
                found = maker.tuned(kind)
            said(found)
            made.append(found)
    return made


@dataclass(frozen=True)
class _Maker:
    """Makes and keeps models of one site, of one global model."""

    config: SiteConfig
    came: Came
    data: SiteData
    device: str
    signer: PrivateKey | None

    @property
    def folder(self) -> Path:
        private_folder(Path(str(self.config.site.folder)) / FOLDER)
        return private_folder(own_folder(self.config, self.came.final.spec.run_id))

    def alone(self, train: Callable[[Path], FinalModel]) -> Made:
        work = private_folder(self.folder / f".{ALONE}.work")
        model = train(work)  # what an interrupted one left in the folder, it goes on from
        about = MadeAt(self.config.site.name, ALONE)
        found = self._keep(ALONE, replace(model, spec=without_paths(model.spec), personal={}, made_at=about))
        shutil.rmtree(work, ignore_errors=True)
        return Made(ALONE, found, "trained on this site's images alone, by the run's settings")

    def tuned(self, kind: str) -> Made:
        final = self.came.final
        found = tune(
            final.spec, final.states, final.calibration, self.data, device=self.device, heads_alone=kind == "head"
        )
        about = MadeAt(self.config.site.name, kind, self.came.digest)
        tuned = replace(final, **_FREED, states=found.states, calibration=found.fitted, made_at=about)
        kept = self._keep(kind, tuned)
        after = f"best after {found.passes} passes over the training images"
        return Made(kind, kept, after if found.passes else "no pass made it better on the validation images: it is "
                    "the global model as it came")  # fmt: skip

    def mixture(self) -> Made:
        final, second = self.came.final, self.folder / ALONE
        own = predictor_of(load_own(self.config, second), second, device=self.device)
        shared = predictor_of(replace(final, personal={}, made_at=None), second, device=self.device)
        found = mixture_at(own, shared, self.data)
        about = MadeAt(self.config.site.name, MIXTURE, self.came.digest, found.share, model_digest(second))
        kept = self._keep(MIXTURE, replace(final, **_FREED, made_at=about), second)
        said = f"{found.share:.0%} of the model trained alone, {1 - found.share:.0%} of the global one"
        return Made(MIXTURE, kept, said)

    def _keep(self, kind: str, model: FinalModel, second: Path | None = None) -> Path:
        """Write it beside, then in place of the one made before; its line in the audit log first."""
        target, part = self.folder / kind, self.folder / f".{kind}.part"
        shutil.rmtree(part, ignore_errors=True)
        private_folder(part)
        digests = {stage: tensors_digest(state) for stage, state in model.states.items()}
        model = replace(model, digests=digests)
        facts = {"made_at": model.made_at.to_json() if model.made_at else {}, "code": code_facts()}
        write_final(part, model, signer=self.signer, facts=facts)
        if second is not None:
            shutil.copytree(second / "final", part / OWN / "final")
        if self.signer is not None:
            pin(part, self.signer.public_key())
            named = {"of_run": model.spec.run_id, "made": kind, "of": self.came.digest}
            site_audit(self.config).append(MADE, **named, model=model_digest(part))
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        sync_folder(target.parent)
        return target


# What is said of the global model, in its files, is not said of one that a site made of it.
_FREED: dict[str, Any] = {"history": [], "bytes_sent": 0, "signed_by": "", "personal": {}, "matrix": {}, "sureness": {}}


def own_predictors(config: SiteConfig, run: str, device: str) -> Mapping[str, Predictor]:
    """The models that this site made of a run's, verified, by kind."""
    folder = own_folder(config, run)
    return {
        kind: predictor_of(load_own(config, folder / kind), folder / kind, device=device)
        for kind in own_kinds(config, run)
    }
