"""Which stages a configuration trains."""

from __future__ import annotations

from dataclasses import replace

from fed_diffmic.config.compose import compose
from fed_diffmic.config.stages import trained_stages


def test_a_stage_is_trained_with_rounds_or_taken_from_a_file() -> None:
    stages = compose(None, ["model=tiny", "stages=tiny"]).stages
    assert trained_stages(stages) == ("guidance", "diffusion")
    given = replace(stages.guidance, rounds=0, init="weights.safetensors")
    without = replace(stages.diffusion, rounds=0, init=None)
    assert trained_stages(replace(stages, guidance=given, diffusion=without)) == ("guidance",)


def test_where_neither_is_the_plain_classifier_is() -> None:
    stages = compose(None, ["model=tiny", "stages=tiny"]).stages
    none = {name: replace(getattr(stages, name), rounds=0, init=None) for name in ("guidance", "diffusion")}
    assert trained_stages(replace(stages, **none)) == ("plain",)
