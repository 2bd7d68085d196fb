"""What a prediction is computed in: float32, as the model was judged, unless somebody asks for bfloat16."""

import numpy as np
import pytest

from fed_diffmic.inference.finished import predictor_of
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.release.final import load_final
from tests.inference.tiny import tiny_predictor, write_tiny_run


def drawn(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), np.arange(
        count, dtype=np.uint64
    )


@pytest.mark.parametrize("stage", ["guidance", "diffusion"])
def test_bfloat16_says_nearly_the_same_and_only_when_asked(stage):
    predictor = tiny_predictor("model.sampling_starts=1", stage=stage)
    assert predictor.precision == "float32"
    exact = predictor.predict_pixels(*drawn())
    predictor.precision = "bfloat16"
    near = predictor.predict_pixels(*drawn())
    difference = np.abs(exact.probabilities - near.probabilities).max()
    assert 0 < difference < 0.2 and near.probabilities.dtype == np.float64
    predictor.precision = "float32"
    assert np.array_equal(predictor.predict_pixels(*drawn()).probabilities, exact.probabilities)


def test_what_is_asked_for_reaches_the_predictor(tmp_path):
    final = load_final(write_tiny_run(tmp_path / "run"))
    assert predictor_of(final, tmp_path / "run").precision == "float32"
    asked = predictor_of(final, tmp_path / "run", precision="bfloat16")
    assert isinstance(asked, Predictor) and asked.precision == "bfloat16"
