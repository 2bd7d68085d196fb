"""The site's own policy against its own data: whether anything would be let out of it at all."""

from __future__ import annotations

from collections.abc import Iterator

from client.preflight.check import Check, failed, passed, warning
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import Examples, SiteData
from fed_diffmic.errors import DataError
from fed_diffmic.exchange.exposure import planned_exposure
from fed_diffmic.exchange.failures import SiteError
from fed_diffmic.exchange.floors import check_exposure
from fed_diffmic.exchange.policy_text import names_nothing

NAME = "policy.data"
STAGES = ("guidance", "diffusion")


def check_policy(config: SiteConfig, data: SiteData, spec: RunSpec) -> Iterator[Check]:
    """What the policy says to a round over these data; a policy that names nothing yet is only mentioned.

    Args:
        data: of the site, split.
        spec: of the run as it is expected: how long a round is decides on what an update rests.
    """
    if closed := names_nothing(config.policy):
        yield warning("policy.names", closed)
    yield from _one_class(data)
    images, least = len(data.train), max(1, config.policy.min_count)
    if images < least:
        yield failed(
            NAME,
            f"the policy will let nothing out: {images} training images, and policy.min_count is "
            f"{config.policy.min_count}, so that every round is refused",
            f"Add images until {least} are for training, or agree on a smaller policy.min_count.",
            exit_code=DataError.exit_code,
            images=images,
            least=least,
        )
        return
    private = config.privacy.stages if config.privacy.name == "dp_sgd" else ()
    below = {stage: said for stage in STAGES if stage not in private and (said := _floor(config, data, spec, stage))}
    if below:
        words = "; ".join(f"{stage}: {said}" for stage, said in below.items())
        nothing = "nothing" if set(below) == set(STAGES) else f"no update of {', '.join(below)}"
        yield failed(
            NAME,
            f"the policy will let {nothing} out, as the run is expected: {words}",
            "Add images, or agree on another floor; a run with longer rounds or other batches may reach it "
            "(--model, --stages).",
            exit_code=DataError.exit_code,
            images=images,
        )
        return
    hidden = [name for name in ("val", "test") if 0 < len(getattr(data, name)) < config.policy.min_count]
    if hidden:
        sizes = ", ".join(f"{name} {len(getattr(data, name))}" for name in hidden)
        yield warning(
            NAME,
            f"updates may leave; metrics over few images will not ({sizes}; policy.min_count is "
            f"{config.policy.min_count})",
            images=images,
        )
        return
    yield passed(NAME, f"an update over {images:,} training images is not too small for the policy", images=images)


def _floor(config: SiteConfig, data: SiteData, spec: RunSpec, stage: str) -> str:
    """The floor that a first round would not reach, in words; empty: none."""
    planned = planned_exposure(spec, stage, data.train, site=config.site.name, round_index=1)
    try:
        check_exposure(config.policy.floors, planned)
    except SiteError as error:
        return error.detail
    return ""


def _one_class(data: SiteData) -> Iterator[Check]:
    present = _classes(data.train)
    if present == 1:
        yield warning(
            "data.one-class",
            "all training images are of one class: alone this site learns nothing, and its balanced accuracy and "
            "AUROC say nothing",
            "Check the labels; a consortium may still want such a site.",
        )


def _classes(train: Examples) -> int:
    """How many classes training images have; 0 where an image may have several, or where there is none."""
    return 0 if train.labels.ndim == 2 else len(set(train.labels.tolist()))
