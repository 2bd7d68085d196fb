"""What of a model is a virtual site's own: kept with the run, used for metrics.

In a consortium these parts never leave the sites. Here the sites are folders of the run, whose state is removed when
the run ends, so the parts that belong to the final model are copied to ``personal/<stage>/<site>.safetensors`` first.

What ``strategy.personal`` asks for is made when every arm is done, of training and validation images alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from client.state import SiteStore
from fed_diffmic.data.site import SiteData
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import safe_name
from fed_diffmic.inference.mixed import MixedPredictor, mixture_at
from fed_diffmic.inference.predictor import Predictor, last_stage
from fed_diffmic.release.final import FinalModel
from fed_diffmic.release.personal import own_part, part_of_state, personal_file, save_part
from fed_diffmic.training.personal import tune
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


def personal_methods(
    kinds: list[str],
    sites: Mapping[str, SiteData],
    federation: TrainedArm,
    methods: Mapping[str, Mapping[str, Judge]],
    device: str,
    told: Callable[..., object] | None = None,
) -> tuple[dict[str, dict[str, Judge]], dict[str, dict[str, float]]]:
    """Every site's personal models by kind, and what was found on the way for the summary, by kind and site.

    Args:
        kinds: of ``strategy.personal``.
        sites: their data; test images are not looked at.
        federation: what came of it.
        methods: the models that each site would use, ``federated`` and, for a mixture, ``local`` among them.
        device: where to compute.
        told: called with ``how`` (its kind), ``site`` and ``passes`` or ``share`` of each, for whoever waits.
    """
    made: dict[str, dict[str, Judge]] = {kind: {} for kind in kinds}
    facts: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for kind in kinds:
        for name, data in sites.items():
            if kind == "mixture":
                own, shared = methods["local"][name], methods["federated"][name]
                if isinstance(own, Predictor) and isinstance(shared, Predictor):
                    mixture = mixture_at(own, shared, data)
                    made[kind][name], facts[kind][name] = MixedPredictor(own, shared, mixture.share), mixture.share
            else:
                made[kind][name], facts[kind][name] = _tuned(federation, data, device, heads_alone=kind == "head")
            if told is not None and name in facts[kind]:
                told(how=kind, site=name, **{"share" if kind == "mixture" else "passes": facts[kind][name]})
    return made, facts


def _tuned(federation: TrainedArm, data: SiteData, device: str, *, heads_alone: bool) -> tuple[Predictor, float]:
    """The federation's last stage fine-tuned at a site (over its guidance network, fine-tuned too), and the passes."""
    final = federation.final
    states = {
        stage: {**state, **own_part(federation.folder, final, stage, data.name)}
        for stage, state in final.states.items()
    }
    found = tune(final.spec, states, final.calibration, data, device=device, heads_alone=heads_alone)
    last = last_stage(final)
    return Predictor(final.spec, last, found.states[last], found.fitted[last], device), float(found.passes)
