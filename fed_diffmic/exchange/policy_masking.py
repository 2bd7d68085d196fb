"""A site's rules on secure aggregation: which runs it takes part in, and what leaves beside a masked sum.

``policy.secure_aggregation=required`` means that an update leaves in a masked sum alone. Then nothing else may tell of
the site's images what the mask hides: no figure, no calibration sum, no count of classes, validation or test images;
where ``policy.summed_metrics`` says so, figures of validation and test images go into masked sums. The number of
training images leaves if ``policy.metrics`` names ``images``: the coordinator needs it to begin with.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange.masking.requests import MASKED, NOISED
from fed_diffmic.exchange.payload import Payload

WORDS = ("int32", "int64")
FIGURE_REPLIES = ("evaluate.reply", "conform.reply", "assess.reply")
"""Replies that hold metrics, or words of them."""
TOLD = ("query.reply", *FIGURE_REPLIES)
"""Replies that hold metrics or counts."""


def is_masked(spec: RunSpec) -> bool:
    """Whether the run sums updates under masks."""
    return spec.strategy.secure_aggregation == "masked"


def run_beyond(rules: PolicyConfig, spec: RunSpec) -> str:
    """Why the site takes no part in such a run; empty: it may."""
    asked = rules.secure_aggregation
    if asked == "allowed" or is_masked(spec) == (asked == "required"):
        return ""
    return (
        f"policy.secure_aggregation is {asked}; the run's strategy.secure_aggregation is "
        f"{spec.strategy.secure_aggregation}"
    )


def request_beyond(spec: RunSpec, header: Mapping[str, Any]) -> str:
    """Why a request is none of its run: for what is masked where that is not, or as it is; empty: it is one.

    Whatever the policy: people agreed to the study of a run that says which of the two it does.
    """
    if (MASKED in header) == is_masked(spec):
        return ""
    return "the request asks for what leaves in another way (masked, or as it is) than the run's settings say"


def words_beyond(payload: Payload) -> str:
    """Why what would leave under masks may not; empty: it may. The update itself was judged before it was masked."""
    words = payload.tensors[MASKED]
    if set(payload.tensors) != {MASKED} or words.dtype.name not in WORDS or words.ndim != 1:
        return "something else than words under masks would leave of the update"
    return "the update's weight would leave beside the words" if "num_examples" in payload.header else ""


def noised_beyond(payload: Payload, protected: Collection[str]) -> str:
    """Why a sum with a share of noise may not be put under masks; empty: it may.

    Of which tensors it is was judged when they came, a unit's part in it is bounded by the run's settings, and images
    and patients behind it need no floor: noise covers them.

    Args:
        protected: stages that the site trains with differential privacy.
    """
    words = payload.tensors[NOISED]
    if set(payload.tensors) != {NOISED} or words.dtype.name not in WORDS or words.ndim != 1 or payload.metrics:
        return "something else than words with noise would be put under masks"
    return "" if payload.header["stage"] in protected else "no noise of the site's covers the stage"


def withheld(payload: Payload) -> Payload:
    """A reply without metrics, and without any count but that of training images."""
    header = dict(payload.header)
    if payload.kind == "query.reply":
        header["images"] = [header["images"][0], None, None]
        header["class_counts"] = [None] * len(header["class_counts"])
    return replace(payload, header=header, metrics={})
