"""Augmentation equals torchvision's operations and depends on the sample alone."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from fed_diffmic.data.transforms import AUGMENTATIONS, augment, draw, normalise

MODALITIES = sorted(AUGMENTATIONS)
KEYS = np.array([3, 2**63 + 11, 5, 7, 2**40, 1, 0, 99], dtype=np.uint64)


def pictures(n: int = 8, side: int = 33, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures, so that resampling twice differs little from resampling once."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


def run(images, keys, modality="dermoscopy", seed=1, site="a", round=2):
    return augment(images, keys, modality=modality, seed=seed, site=site, round=round)


@pytest.mark.parametrize("modality", MODALITIES)
def test_neither_the_batch_nor_the_place_in_it_matters_bit_for_bit(modality):
    images = pictures()
    together = run(images, KEYS, modality)
    assert together.dtype == torch.uint8 and together.shape == images.shape
    alone = torch.cat([run(images[i : i + 1], KEYS[i : i + 1], modality) for i in range(8)])
    assert torch.equal(together, alone)
    order = torch.tensor([5, 0, 3, 1])
    torch.manual_seed(7)
    assert torch.equal(run(images[order], KEYS[order.numpy()], modality), together[order])


@pytest.mark.parametrize("changed", [{"seed": 2}, {"site": "b"}, {"round": 3}])
def test_seed_site_and_round_matter(changed):
    assert not torch.equal(run(pictures(), KEYS), run(pictures(), KEYS, **changed))
    assert torch.equal(run(pictures(), KEYS), run(pictures(), KEYS.astype(object)))


@pytest.mark.parametrize("modality", ["fundus", "ultrasound", "chest"])
def test_equals_torchvision(modality):
    images = pictures()
    drawn = draw(KEYS, modality=modality, seed=1, site="a", round=2)
    for i, image in enumerate(images):
        expected = image.float()
        if drawn.horizontal[i]:
            expected = reference.horizontal_flip(expected)
        if drawn.vertical[i]:
            expected = reference.vertical_flip(expected)
        expected = reference.rotate(expected, float(drawn.degrees[i]), interpolation=InterpolationMode.BILINEAR)
        difference = (run(images, KEYS, modality)[i].float() - expected).abs()
        # torchvision fills the corners with black by a mask of its own, so the outline may differ by part of a pixel
        assert (difference > 1).float().mean() < 0.04, i
        assert difference[:, 8:-8, 8:-8].max() <= 1


def test_flips_alone_are_exact(monkeypatch):
    from fed_diffmic.data import transforms

    monkeypatch.setitem(transforms.AUGMENTATIONS, "dermoscopy", transforms.Augmentation(True, True, 0.0, "reflection"))
    images = pictures()
    drawn = draw(KEYS, modality="dermoscopy", seed=1, site="a", round=2)
    assert 0 < drawn.horizontal.sum() < 8 and 0 < drawn.vertical.sum() < 8
    for i, image in enumerate(run(images, KEYS)):
        axes = [axis for axis, flipped in ((2, drawn.horizontal[i]), (1, drawn.vertical[i])) if flipped]
        assert torch.equal(image, images[i].flip(axes))


def test_draws_are_uniform_and_within_what_the_modality_bears():
    keys = np.arange(4000)
    for modality, what in AUGMENTATIONS.items():
        drawn = draw(keys, modality=modality, seed=0, site="s", round=0)
        for flips, allowed in ((drawn.horizontal, what.flip_horizontal), (drawn.vertical, what.flip_vertical)):
            assert abs(flips.mean() - 0.5 * allowed) < 0.03
        assert np.abs(drawn.degrees).max() <= what.degrees
        if what.degrees:
            counts = np.histogram(drawn.degrees, bins=8, range=(-what.degrees, what.degrees))[0]
            assert counts.min() > 420
    assert not AUGMENTATIONS["chest"].flip_horizontal


def test_nothing_is_done_where_nothing_is_known():
    images = pictures()
    assert torch.equal(run(images, KEYS, "none"), images)
    assert run(images[:0], KEYS[:0]).shape == (0, 3, 33, 33)
    with pytest.raises(KeyError):
        run(images, KEYS, "mri")


def test_reflected_corners_bring_in_no_black():
    white = torch.full((8, 3, 32, 32), 200, dtype=torch.uint8)
    assert run(white, KEYS, "dermoscopy").min() == 200
    assert run(white, KEYS, "fundus").min() == 0


def test_normalise():
    images = pictures()
    mean, std = [0.1, 0.5, 0.9], [0.5, 0.25, 1.0]
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    result = normalise(images, mean, std)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)
