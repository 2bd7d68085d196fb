"""Weights are held to the networks that start from them; what it spares a run: tests of simulate and server."""

import pytest

from fed_diffmic.errors import ModelFileError
from fed_diffmic.training.starting_weights import check_starting_weights
from tests.simulations.test_run import config, no_weights


def test_a_stage_that_starts_from_a_file_of_its_own_needs_no_other(tmp_path):
    wrong = no_weights(tmp_path, "another network")
    given = config(tmp_path, f"model.weights={wrong}", "stages.guidance.rounds=0", "stages.guidance.init=g.safetensors")
    check_starting_weights(given, ["guidance"])
    for stages in (["plain"], ["guidance", "diffusion"]):
        with pytest.raises(ModelFileError, match="does not fit"):
            check_starting_weights(given, stages)


def test_without_weights_nothing_is_read(tmp_path):
    check_starting_weights(config(tmp_path), ["no such stage"])
