"""What of a model is a virtual site's own: kept with the run, used for metrics.

In a consortium these parts never leave the sites. Here the sites are folders of the run, whose state is removed when
the run ends, so the parts that belong to the final model are copied to ``personal/<stage>/<site>.safetensors`` first.

What ``strategy.personal`` asks for is made when every arm is done, of training and validation images alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from client.state import SiteStore
from fed_diffmic.algorithms import Tensors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import safe_name
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.release.final import FinalModel
from fed_diffmic.release.personal import own_part, part_of_state, personal_file, save_part
from fed_diffmic.training.calibration import Calibration, decide
from fed_diffmic.training.metrics import Scored
from fed_diffmic.training.personal import Mixture, at_prior, fine_tuned, fit_mixture, with_guidance
from simulations.arms import TrainedArm
from simulations.metrics import Judge


def keep_personal(final: FinalModel, folder: Path, run_dir: Path) -> None:
    """Copy the sites' own parts of a finished arm's model out of their state, which the next trial replaces.

    Raises:
        ModelFileError: a site no longer holds the state that the final model names.
    """
    for stage, states in sorted(final.personal.items()):
        for site, digest in sorted(states.items()):
            if personal_file(folder, stage, site).exists():
                continue
            store = SiteStore(run_dir / "sites" / safe_name(site))
            state = store.site_state((final.spec.run_id, final.spec.arm, stage), digest)
            if state is None:
                raise ModelFileError(
                    f"site {site} no longer holds its own part of the model of stage {stage}",
                    "Start the run again in another run.dir.",
                )
            save_part(folder, stage, site, part_of_state(final, stage, state))


class MixedJudge:
    """The mean of two models' probabilities, weighted; both for the site's own mix of classes.

    Args:
        own: the site's own model.
        shared: the global one.
        mixture: how much of the first.
    """

    def __init__(self, own: Predictor, shared: Predictor, mixture: Mixture) -> None:
        self.own, self.shared, self.mixture = own, shared, mixture

    @property
    def spec(self) -> RunSpec:
        """Of the global model."""
        return self.shared.spec

    def predict(self, examples: Examples) -> Scored:
        """Mixed probabilities; decisions by the run's rule, against the site's own prior."""
        first, second = both_at_site(self.own, self.shared, examples)
        mixed = self.mixture.share * first + (1 - self.mixture.share) * second
        fitted = Calibration(self.spec.task, 1.0, 0.0, self.own.fitted.prior)
        decided = decide(mixed, fitted, self.spec.stages.decision)
        return Scored(mixed, decided, examples.labels, examples.groups, self.spec.task)


def both_at_site(own: Predictor, shared: Predictor, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of both models ``(N, C)``, the global one's moved to the site's mix of classes."""
    first, second = own.predict(examples).probabilities, shared.predict(examples).probabilities
    before, after = np.array(shared.fitted.prior), np.array(own.fitted.prior)
    return first, at_prior(second, before, after, several=shared.spec.task == "multilabel")


def personal_methods(
    kinds: list[str],
    sites: Mapping[str, SiteData],
    federation: TrainedArm,
    methods: Mapping[str, Mapping[str, Judge]],
    device: str,
) -> tuple[dict[str, dict[str, Judge]], dict[str, dict[str, float]]]:
    """Every site's personal models by kind, and what was found on the way for the summary, by kind and site.

    Args:
        kinds: of ``strategy.personal``.
        sites: their data; test images are not looked at.
        federation: what came of it.
        methods: the models that each site would use, ``federated`` and, for a mixture, ``local`` among them.
        device: where to compute.
    """
    made: dict[str, dict[str, Judge]] = {kind: {} for kind in kinds}
    facts: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for kind in kinds:
        for name, data in sites.items():
            if kind == "mixture":
                own, shared = methods["local"][name], methods["federated"][name]
                if isinstance(own, Predictor) and isinstance(shared, Predictor):
                    mixture = mixture_at(own, shared, data)
                    made[kind][name], facts[kind][name] = MixedJudge(own, shared, mixture), mixture.share
            else:
                made[kind][name], facts[kind][name] = _tuned(federation, data, device, heads_alone=kind == "head")
    return made, facts


def mixture_at(own: Predictor, shared: Predictor, data: SiteData) -> Mixture:
    """The mixture of two models fitted on a site's validation images; the global model where it has none."""
    if not len(data.val):
        return Mixture(0.0, (), (0.0, 0.0, 0.0))
    first, second = both_at_site(own, shared, data.val)
    return fit_mixture(first, second, data.val.labels, data.val.groups, shared.spec.seed)


def _tuned(federation: TrainedArm, data: SiteData, device: str, *, heads_alone: bool) -> tuple[Predictor, float]:
    """The federation's last stage fine-tuned at a site (over its guidance network, fine-tuned too), and the passes."""
    final, passes = federation.final, 0
    guidance: Tensors = {}
    for stage in [name for name in ("guidance", "diffusion", "plain") if name in final.states]:
        state = {**final.states[stage], **own_part(federation.folder, final, stage, data.name)}
        if stage == "diffusion" and guidance:
            state = with_guidance(state, guidance)
        tuned = fine_tuned(final.spec, stage, state, data, device=device, heads_alone=heads_alone)
        passes += tuned.passes
        fitted = tuned.fitted or final.calibration[stage]
        if stage == "guidance" and tuned.passes:
            guidance = tuned.state
        last = Predictor(final.spec, stage, tuned.state, fitted, device)
    return last, float(passes)
