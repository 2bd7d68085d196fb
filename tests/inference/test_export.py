"""A model as ONNX: onnxruntime says what the program says; what cannot be right is not written.

Slow where a graph is made: torch's exporter takes some twenty seconds of a processor for the smallest network.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from fed_diffmic.cli import main
from fed_diffmic.data.cache import content_key
from fed_diffmic.data.decode import decode, read_content
from fed_diffmic.errors import ModelFileError
from fed_diffmic.inference import export
from fed_diffmic.inference.export import export_onnx
from fed_diffmic.inference.predictions import predict_files
from fed_diffmic.training.evaluation import start_draws
from tests.inference.tiny import CLASSES, SIDE, draw_images, tiny_predictor, write_tiny_run

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """An exported run: its folder, the graph, the images that it is tried on."""
    folder = tmp_path_factory.mktemp("export")
    run = write_tiny_run(folder / "run", "model.denoiser=residual", "model.sampling_start=own")
    assert main(["export", "--run", str(run), "--out", str(folder / "model.onnx")]) == 0
    return folder / "model.onnx"


@pytest.mark.slow
def test_onnxruntime_says_what_predict_says(written, tmp_path):
    predictor = tiny_predictor("model.denoiser=residual", "model.sampling_start=own")
    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    for path in draw_images(tmp_path, 6, seed=8):
        content = read_content(str(path))
        keys = np.array([content_key(content.digest)], dtype=np.uint64)
        given = {"pixels": decode(content.data, SIDE)[None], "starts": start_draws(keys, predictor.spec)}
        (found,) = session.run(["probabilities"], given)
        np.testing.assert_allclose(found, predict_files(predictor, [str(path)]).probabilities, atol=1e-4)


@pytest.mark.slow
def test_what_stands_beside_and_inside_says_what_it_is(written):
    beside = json.loads(written.with_name("model.json").read_text())
    inside = json.loads({p.key: p.value for p in onnx.load(written).metadata_props}["fed_diffmic"])
    assert beside.pop("largest_difference") <= export.TOLERANCE
    assert inside == beside
    assert beside["classes"] == list(CLASSES) and beside["signed_by"] == ""
    assert beside["calibration"]["scale"] == 40.0 and "not a medical device" in beside["notice"]
    assert not written.with_name("model.provenance.json").exists()


@pytest.mark.slow
def test_a_graph_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    predictor = tiny_predictor(stage="guidance")
    usual = predictor.predict_pixels
    shifted = lambda *a: replace(usual(*a), probabilities=usual(*a).probabilities + 0.01)  # noqa: E731
    monkeypatch.setattr(predictor, "predict_pixels", shifted)
    with pytest.raises(ModelFileError, match="differ from the program's"):
        export_onnx(predictor, tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--out", "x.pt"], "does not end in .onnx"),
        (["--out", "nowhere/x.onnx"], "its folder does not exist"),
        (["--run", "nowhere", "--out", "x.onnx"], "no such folder"),
    ],
)
def test_mistakes(given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    arguments = given if "--run" in given else ["--run", "run", *given]
    assert main(["export", *arguments]) == 2
    assert said in capsys.readouterr().err
