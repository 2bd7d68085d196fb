"""Group ``policy.floors``: on how many images and patients whatever leaves a site must rest, at least."""

from __future__ import annotations

from dataclasses import dataclass

from fed_diffmic.config.fields import Checked, option


@dataclass(frozen=True)
class Floors(Checked):
    """Group ``policy.floors``: the least that an update, a figure and a sequence of them must rest on.

    A configuration that says nothing of them has these values, which both presets have too; 0 (``largest_share``: 1)
    switches one off. Stages that ``privacy.stages`` protects are exempt from all that is about updates: there noise
    bounds what an update tells about a patient, whatever the batch.
    """

    step_images: int = option(8, "least training images in each optimizer step", ge=0)
    step_patients: int = option(4, "least patients (groups of the manifest) in each optimizer step", ge=0)
    update_images: int = option(10, "least distinct training images that go into an update", ge=0)
    update_patients: int = option(5, "least patients (groups) that go into an update", ge=0)
    steps: int = option(1, "fewest optimizer steps between two releases of an update", ge=0)
    figure_patients: int = option(
        5, "least patients (groups) behind any figure or number of images; least images: policy.min_count", ge=0
    )
    sums_images: int = option(
        20, "least validation images behind the calibration's sums, which then leave in its own round alone", ge=0
    )
    few_images: int = option(32, "an update on fewer distinct images than this counts as one on few images", ge=0)
    few_rounds: int = option(
        60, "updates on few images that one image may go into, in all runs together (few_images)", ge=0
    )
    largest_share: float = option(
        0.25,
        "largest share that one image or patient may have in any weighted sum of a stage's updates, taken as sums over "
        "the images in them (differences of rounds among them); 1: any",
        gt=0,
        le=1,
    )
    secret_draws: bool = option(
        True,
        "draw the order of the images in an update, its noise and its augmentation from a secret of the site beside "
        "the run's seed, so that nobody else knows which image went into which step; false: from the seed alone, and "
        "an update is that of a simulation on the same images, bit for bit",
    )
    changed_patients: int = option(
        5,
        "patients whose images must have changed before a changed data set is used: until then the set of before is",
        ge=0,
    )
    isolation: bool = option(
        True, "measure before each update whether the weights that came let single images stand out, and refuse if so"
    )
