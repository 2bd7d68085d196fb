"""Predictions of images: the values by hand, equal to an evaluation's, whatever the module's mode; memory is flat."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from fed_diffmic.data.cache import build_cache, content_key
from fed_diffmic.data.decode import decode, read_content
from fed_diffmic.data.open import open_table
from fed_diffmic.data.site import Examples
from fed_diffmic.errors import UsageError
from fed_diffmic.inference.images import as_arrays
from fed_diffmic.inference.predictions import predict_arrays, predict_files
from fed_diffmic.training.calibration import probabilities
from fed_diffmic.training.evaluation import start_draws
from tests.inference.tiny import CLASSES, SIDE, draw_images, tiny_predictor, write_table


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return list(map(str, draw_images(tmp_path_factory.mktemp("images"), 80)))


@pytest.fixture(scope="module")
def predictor():
    return tiny_predictor()


def by_hand(predictor, files, mean, std):
    """The same by the definitions: decode, normalise with the run's constants, evaluation mode, calibrate."""
    pixels = np.stack([decode(Path(f).read_bytes(), SIDE) for f in files]).astype(np.float64) / 255
    inputs = (pixels - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    keys = np.array([content_key(read_content(f).digest) for f in files], dtype=np.uint64)
    module = predictor.module.eval()
    with torch.no_grad():
        starts = torch.from_numpy(start_draws(keys, predictor.spec))
        scores = module.scores(module.inputs(torch.from_numpy(inputs.astype(np.float32))), starts)
    return probabilities(scores.double().numpy(), predictor.fitted)


def test_images_are_normalised_as_in_training(images):
    mean, std = [0.2, 0.5, 0.7], [0.1, 0.3, 0.4]
    predictor = tiny_predictor(f"dataset.mean={mean}", f"dataset.std={std}")
    found = predict_files(predictor, images[:20]).probabilities
    np.testing.assert_allclose(found, by_hand(predictor, images[:20], mean, std), atol=1e-3)
    usual = by_hand(predictor, images[:20], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert np.abs(found - usual).max() > 0.1  # other constants would be seen


def test_prediction_is_in_evaluation_mode_whatever_was_done_before(images):
    """In training mode batch norm would look at the other images, and remember them."""
    predictor = tiny_predictor("model.encoder_norm=train", stage="guidance")
    expected = predict_files(predictor, images[:16])
    before = {name: value.clone() for name, value in predictor.module.network.state_dict().items()}
    predictor.module.train()
    again = predict_files(predictor, images[:16])
    np.testing.assert_array_equal(again.probabilities, expected.probabilities)
    after = predictor.module.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    batch, module = torch.randn(16, 3, SIDE, SIDE), predictor.module
    with torch.no_grad():  # the mode matters to this model
        assert (module.train().logits(batch) - module.eval().logits(batch)).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [(), ("stages.diffusion.encoders=frozen",), ("stages.diffusion.blend=true",)])
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_predict_says_what_an_evaluation_says_bit_for_bit(images, tmp_path, settings, task):
    predictor = tiny_predictor(*settings, task=task)
    cache = build_cache(images, image_side=SIDE, folder=tmp_path)
    rows = np.arange(len(images))
    labels = np.zeros((len(images), 3), np.float32) if task == "multilabel" else np.zeros(len(images), np.int64)
    scored = predictor.predict(Examples(rows, labels, rows.astype(str), cache.keys, cache))
    found = predict_files(predictor, images)
    assert len(found) == 80  # more than a batch, and the last one of 16
    np.testing.assert_array_equal(found.probabilities, scored.probabilities)
    np.testing.assert_array_equal(found.decided, scored.decided)
    assert len(np.unique(found.probabilities)) > 100  # the images are told apart


def test_predict_says_what_an_evaluation_of_a_table_says(images, predictor, tmp_path):
    table = write_table(tmp_path, draw_images(tmp_path / "in", 16, seed=7))
    opened = open_table(table, CLASSES, "multiclass", SIDE, tmp_path / "cache")
    scored = predictor.predict(Examples.from_manifest(opened.manifest, opened.cache))
    found = predict_files(predictor, opened.manifest.table["image"].tolist())
    np.testing.assert_array_equal(found.probabilities, scored.probabilities)


@pytest.mark.parametrize("settings", [(), ("stages.diffusion.encoders=frozen", "stages.diffusion.blend=true")])
def test_an_image_has_the_same_numbers_whatever_it_is_predicted_with(images, settings):
    """Bit for bit: alone, in any batch, in any place, with any others."""
    predictor = tiny_predictor(*settings)
    usual = predict_files(predictor, images[:18])
    for batch in (1, 7, 16):
        other = predict_files(predictor, images[:18], batch)
        assert other.names == usual.names
        np.testing.assert_array_equal(other.probabilities, usual.probabilities)
        np.testing.assert_array_equal(other.decided, usual.decided)
    turned = predict_files(predictor, [*images[40:44], *images[:18][::-1]])
    np.testing.assert_array_equal(turned.probabilities[4:], usual.probabilities[::-1])
    alone = predict_files(predictor, images[3:4])
    np.testing.assert_array_equal(alone.probabilities[0], usual.probabilities[3])


def test_no_batch_is_empty_or_without_bound(images, predictor):
    for batch in (0, 4097):
        with pytest.raises(UsageError, match=f"batch {batch}"):
            predict_files(predictor, images, batch)


def test_memory_holds_one_batch_however_many_images_there_are(images, monkeypatch):
    predictor = tiny_predictor(stage="guidance")
    seen, alive = [], []
    usual = predictor.predict_pixels

    def watched(pixels, keys, **asked):
        gc.collect()
        seen.append((len(pixels), sum(reference() is not None for reference in alive)))
        alive.append(weakref.ref(pixels))
        return usual(pixels, keys, **asked)

    monkeypatch.setattr(predictor, "predict_pixels", watched)
    gc.freeze()  # else each look goes through all that the other tests of this process imported: a second
    try:
        assert len(predict_files(predictor, images, 8)) == 80
    finally:
        gc.unfreeze()
    assert [count for count, _ in seen] == [8] * 10
    assert max(others for _, others in seen) <= 1  # at most the one that was just predicted


def test_unreadable_images_leave_the_others_where_they_were(images, predictor, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no image")
    given = [*images[:2], str(tmp_path / "x.png"), *images[2:4], str(tmp_path / "gone.png")]
    found = predict_files(predictor, given)
    assert [(bad.name, bad.reason) for bad in found.unreadable] == [(given[2], "unknown_format"), (given[5], "missing")]
    expected = predict_files(predictor, images[:4])
    assert found.names == expected.names
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    nothing = predict_files(predictor, given[2:3])
    assert (len(nothing), nothing.probabilities.shape, nothing.to_json()["images"]) == (0, (0, 3), [])


def test_pixels_in_memory_are_seen_as_those_of_a_file(images):
    """With one start for all images the number of an image does not matter, and file and array are the same."""
    from PIL import Image

    predictor = tiny_predictor("model.sampling_start=shared")
    arrays = [np.asarray(Image.open(name)) for name in images[:5]]
    assert len({array.shape for array in arrays}) > 1
    found = predict_arrays(predictor, arrays)
    np.testing.assert_array_equal(found.probabilities, predict_files(predictor, images[:5]).probabilities)
    assert found.names == ("0", "1", "2", "3", "4")
    own = tiny_predictor()
    one = predict_arrays(own, arrays[:1]).probabilities
    np.testing.assert_allclose(predict_arrays(own, arrays).probabilities[:1], one, atol=1e-3)  # its own number


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([np.zeros((8, 8), np.uint8)], r"image 0 is uint8 \(8, 8\)"),
        (np.zeros((8, 8, 3)), r"float64 \(8, 8, 3\)"),
        ([np.zeros((8, 8, 3), np.uint8), "a"], "image 1 is str"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"image 0 is uint8 \(3, 8, 8\)"),
    ],
)
def test_arrays_of_another_kind_are_refused(images, said):
    with pytest.raises(UsageError, match=said):
        as_arrays(images)


def test_an_empty_array_is_unreadable_and_loses_no_other(predictor):
    found = predict_arrays(predictor, as_arrays([np.zeros((0, 5, 3), np.uint8), np.full((9, 5, 3), 9, np.uint8)]))
    assert found.names == ("1",) and [bad.reason for bad in found.unreadable] == ["empty"]


def test_a_frame_holds_one_row_an_image(images, predictor):
    found = predict_files(predictor, images[:3])
    frame = found.to_pandas()
    assert list(frame.columns) == ["image", "decided", *(f"p_{c}" for c in CLASSES)]
    np.testing.assert_array_equal(frame[[f"p_{c}" for c in CLASSES]].to_numpy(), found.probabilities)
    assert frame["decided"].tolist() == [CLASSES[i] for i in found.decided]
    several = predict_files(tiny_predictor(task="multilabel"), images[:9])
    assert several.decided.any(axis=1).any()
    for names, row in zip(several.to_pandas()["decided"], several.decided, strict=True):
        assert names == "|".join(c for c, yes in zip(CLASSES, row, strict=True) if yes)
