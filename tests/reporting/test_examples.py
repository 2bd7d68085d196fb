"""Examples in a report: what is kept, what is drawn, and nothing where nothing was kept."""

import numpy as np
import pytest

from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import save_tensors
from fed_diffmic.reporting.examples import FILE, example_plot, examples_section, load_examples

CLASSES = ["mel", "n<v"]


def kept(n=3, side=8):
    generator = np.random.default_rng(0)
    return {
        "images": generator.integers(0, 255, (n, 3, side, side)).astype(np.uint8),
        "saliency": generator.random((n, 2, 2)).astype(np.float32),
        "boxes": np.array([[[0.0, 0.5, 0.25], [0.5, 0.0, 0.25]]] * n, np.float32),
        "attention": np.array([[1.0, 0.0]] * n, np.float32),
        "probabilities": np.array([[0.25, 0.75]] * n, np.float32),
        "classes": np.array([0, 1, 1][:n]),
    }


def test_examples_are_read_back_as_they_were_kept(tmp_path):
    save_tensors(tmp_path / FILE, kept())
    found = load_examples(tmp_path)
    assert found.keys() == kept().keys()
    assert all(np.array_equal(found[name], value) for name, value in kept().items())


def test_a_run_without_examples_has_no_section(tmp_path):
    assert load_examples(tmp_path) is None
    assert examples_section(None, CLASSES) == ""


@pytest.mark.parametrize(
    "change", [{"images": np.zeros((2, 3, 8, 8), np.uint8)}, {"boxes": np.zeros(3)}, {"x": np.zeros(3)}]
)
def test_a_file_of_another_shape_is_refused(tmp_path, change):
    save_tensors(tmp_path / FILE, {**kept(), **change})
    with pytest.raises(ModelFileError, match=FILE):
        load_examples(tmp_path)


def test_each_class_has_a_picture_that_says_what_the_model_says():
    section = examples_section(kept(), CLASSES)
    assert section.count("<img") == 2
    assert "Test images of class mel. The model says: n&lt;v (0.75)." in section
    assert "Test images of class n&lt;v. The model says: n&lt;v (0.75); n&lt;v (0.75)." in section


def test_regions_are_drawn_where_they_were_cut_and_as_heavy_as_they_weigh():
    left, middle, right = example_plot(kept(), [0]).axes
    assert not list(left.patches) and not list(middle.patches)  # one thing is shown at a time
    assert [ax.get_title() for ax in (left, middle, right)] == ["image", "where it responds", "regions looked at"]
    boxes = [(*patch.get_xy(), patch.get_width(), patch.get_height(), patch.get_linewidth()) for patch in right.patches]
    assert boxes == [(3.5, -0.5, 2.0, 2.0, 3.0), (-0.5, 3.5, 2.0, 2.0, 0.6)]
    assert middle.images[1].get_array().shape == (2, 2)
    assert len(left.images) == len(right.images) == 1


def test_a_section_says_what_abbreviations_stand_for_and_that_regions_are_of_all_classes():
    section = examples_section(kept(), ["mel", "akiec"])
    assert "Test images of class akiec (actinic keratosis or intraepithelial carcinoma)." in section
    assert "the maps of all classes together" in section
