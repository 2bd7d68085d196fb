"""The floors in sentences, for :mod:`fed_diffmic.exchange.policy_text`."""

from __future__ import annotations

from fed_diffmic.config.policy_floors import Floors


def sentences(floors: Floors) -> list[str]:
    """What group ``policy.floors`` means, complete: every key changes some sentence."""
    few = f"An update on fewer than {_many(floors.few_images, 'image')} counts as one on few images; "
    share = "Updates may be asked for until weighted sums of them hold one image or one patient alone."
    if floors.largest_share < 1:
        share = (
            "No update leaves after which a weighted sum of a stage's updates could hold one image or patient to more "
            f"than {floors.largest_share!r} of it, where updates are taken as sums over their images: that ends series "
            "of updates on parts of the images, and pairs that differ in few."
        )
    draws = "Which image goes into which step follows from the run's seed, which the coordinator knows."
    if floors.secret_draws:
        draws = (
            "Which image goes into which step, noise and augmentation depend on a secret of the site: an update is not "
            "that of a simulation bit for bit, and nobody else can compute with what weight an image is in it."
        )
    changed = "A changed data set is used at once, even if one patient came or went."
    if floors.changed_patients:
        changed = (
            f"Where the images of fewer than {_many(floors.changed_patients, 'patient')} came or went since the "
            "last answer, the set of before is used, or as many more are left out, or nothing leaves."
        )
    sums = "The sums for the calibration leave over however few images, and in every round."
    if floors.sums_images:
        sums = (
            f"The sums for the calibration leave over {_many(floors.sums_images, 'image')} or more, and only once "
            "training is over."
        )
    isolation = "Weights that let single images stand out are not looked for."
    if floors.isolation:
        isolation = (
            "Before each update the site measures on some of its own images whether the weights that came let single "
            "images stand out in it, and refuses them. That finds the known ways; it is no proof against others."
        )
    return [
        "Except in stages that train with differential privacy:",
        f"Each training step uses at least {_many(floors.step_images, 'image')} of at least "
        f"{_many(floors.step_patients, 'patient')}.",
        f"An update rests on at least {_many(floors.update_images, 'distinct image')} of at least "
        f"{_many(floors.update_patients, 'patient')}, and on at least {_many(floors.steps, 'training step')}.",
        f"{few}an image may go into {_many(floors.few_rounds, 'such update')} at most, in all runs together.",
        share,
        draws,
        isolation,
        "In every stage:",
        f"No figure and no number of images leaves that is about fewer than "
        f"{_many(floors.figure_patients, 'patient')}; the loss of training is judged by the images that went into it.",
        sums,
        changed,
    ]


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
