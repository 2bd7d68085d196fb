"""A finished model as one ONNX graph: pixels in, calibrated probabilities out, a sampler's steps unrolled inside.

The graph is what :meth:`fed_diffmic.inference.predictor.Predictor.predict_pixels` computes, normalisation and
calibration included, so that nothing is left to be done differently by whoever runs it. Its input ``pixels`` is an
image as the model was trained on: decoded, the whole of it stretched to the square (bicubic, antialiased), uint8.
Under ``model.sampling_start=own`` a second input ``starts`` takes the sampler's uniform draws, which the program takes
from the image's content (:func:`fed_diffmic.training.evaluation.start_draws`); any uniform draws give a sample of the
same distribution.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fed_diffmic.data.transforms import normalise
from fed_diffmic.errors import ModelFileError, UsageError
from fed_diffmic.files import atomic_write
from fed_diffmic.inference.predictor import Predictor
from fed_diffmic.training.evaluation import start_draws

OPSET = 18
TOLERANCE = 1e-4
"""Largest difference of a probability from the program's own, over the images that an export is tried on."""
TRIED = 4
_LARGEST = 2**31 - 2**20  # bytes that one file of the format can hold
_EXTRA = "pip install 'fed-diffmic[onnx]'"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the graph.
        difference: largest difference of a probability from the program's own, on images of noise.
        inputs: names and shapes.
    """

    path: Path
    difference: float
    inputs: dict[str, tuple[int, ...]]


class _FromPixels(nn.Module):
    """From pixels to probabilities."""

    exponent_offset: Tensor
    shared: Tensor

    def __init__(self, predictor: Predictor, shared: Tensor | None) -> None:
        super().__init__()
        self.stage = predictor.module
        self.spec, self.fitted = predictor.spec, predictor.fitted
        prior = torch.tensor(self.fitted.prior, dtype=torch.float64)
        several = self.fitted.task == "multilabel"
        offset = self.fitted.prior_weight * (torch.logit(prior) if several else prior.log())
        self.register_buffer("exponent_offset", offset.float())
        self.register_buffer("shared", shared)

    def forward(self, pixels: Tensor, starts: Tensor | None = None) -> Tensor:
        """``(1, 3, H, H)`` uint8 to probabilities ``(1, C)``."""
        given = self.shared if starts is None else starts
        scores = self.stage.scores(self.stage.inputs(normalise(pixels, self.spec.mean, self.spec.std)), given)
        if scores.dim() == 3:
            scores = (1 - self.fitted.blend) * scores[:, 0] + self.fitted.blend * scores[:, 1]
        exponent = self.fitted.scale * scores + self.exponent_offset
        return torch.sigmoid(exponent) if self.fitted.task == "multilabel" else torch.softmax(exponent, dim=1)


def export_onnx(predictor: Predictor, out: Path, facts: dict[str, Any]) -> Exported:
    """Write a model as ONNX, and hold what onnxruntime makes of it against the program.

    Args:
        predictor: the model; used in evaluation mode.
        out: the file; ``.onnx``.
        facts: put into the graph's metadata as JSON, under ``fed_diffmic``.

    Raises:
        UsageError: the packages of the extra ``onnx`` are missing.
        ModelFileError: the model is too large for one file, or onnxruntime does not reproduce it.
        MachineError: no space, no permission.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter asks for it late, and not in words
    except ImportError as error:
        raise UsageError(f"the package {error.name} is not installed", f"Install the extra: {_EXTRA}.") from error
    spec = predictor.spec
    module = predictor.module.to("cpu").eval()
    size = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    if size > _LARGEST:
        raise ModelFileError(
            f"the model has {size / 1e9:.1f} GB of weights; one ONNX file holds 2 GB",
            "Predict with this program: `fed-diffmic predict` or `fed-diffmic serve`.",
        )
    own = needs_starts(predictor)
    shared = None if own else torch.from_numpy(start_draws(np.zeros(1, np.uint64), spec))
    whole = _FromPixels(predictor, shared).eval()
    side = spec.model.image_side
    inputs = {"pixels": torch.zeros((1, 3, side, side), dtype=torch.uint8)}
    if own:
        inputs["starts"] = torch.full((1, spec.model.sampling_starts, 2, spec.num_classes), 0.5)
    with torch.no_grad(), warnings.catch_warnings():
        whole(*inputs.values())  # the sampler's schedule is made once and kept: numbers, not a part of the graph
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        program = torch.onnx.export(
            whole, tuple(inputs.values()), input_names=list(inputs), output_names=["probabilities"],
            opset_version=OPSET, dynamo=True, optimize=True, verbose=False,
        )  # fmt: skip
    if program is None:
        raise ModelFileError("torch's exporter gave no graph")
    model = program.model_proto
    onnx.helper.set_model_props(model, {"fed_diffmic": json.dumps(facts, allow_nan=False)})
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    difference = largest_difference(predictor, session)
    if not difference <= TOLERANCE:
        raise ModelFileError(
            f"onnxruntime's probabilities differ from the program's by up to {difference:.1e}; allowed: {TOLERANCE:g}",
            "Nothing was written. Other versions of onnx and onnxruntime may agree; say so to the authors.",
        )
    atomic_write(out, data)
    return Exported(out, difference, {name: tuple(value.shape) for name, value in inputs.items()})


def needs_starts(predictor: Predictor) -> bool:
    """Whether the graph takes the sampler's draws as an input."""
    model = predictor.spec.model
    drawn = model.sampling == "chain" and model.denoiser != "classifier"
    return drawn and predictor.module.stage == "diffusion" and model.sampling_start == "own"


def largest_difference(predictor: Predictor, session: Any) -> float:
    """Largest difference of a probability, on :data:`TRIED` images of noise, one at a time.

    Args:
        session: an ``onnxruntime.InferenceSession``.
    """
    rng, spec = np.random.default_rng(0), predictor.spec
    side, worst = spec.model.image_side, 0.0
    for number in range(TRIED):
        coarse = rng.integers(0, 256, (1, 3, 8, 8)).astype(np.float32)
        smooth = torch.nn.functional.interpolate(torch.from_numpy(coarse), size=(side, side), mode="bilinear")
        pixels = smooth.round().clamp(0, 255).to(torch.uint8).numpy()
        keys = np.array([number], dtype=np.uint64)
        given = {"pixels": pixels}
        if needs_starts(predictor):
            given["starts"] = start_draws(keys, spec)
        (found,) = session.run(None, given)
        expected = predictor.predict_pixels(pixels, keys).probabilities
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst
