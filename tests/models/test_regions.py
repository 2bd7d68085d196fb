"""Region search and crops against a slow twin that loops over images, windows, classes and cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fed_diffmic.models.regions import RegionSearch, window_count, window_side


def slow_regions(saliency: Tensor, regions: int, crop: int, side: int) -> tuple[list[list[tuple[int, int]]], Tensor]:
    """Written from docs/model.md, one image, one window at a time."""
    grid = saliency.shape[-1]
    window = max(1, round(crop * grid / side))
    everything = []
    for image in saliency.double().numpy():
        heat = np.zeros((grid, grid))
        for class_map in image:
            low, high = class_map.min(), class_map.max()
            if high > low:
                heat += (class_map - low) / (high - low)
        found: list[tuple[int, int]] = []
        for _ in range(regions):
            best, best_mean = None, -math.inf
            for row in range(grid - window + 1):
                for column in range(grid - window + 1):
                    mean = heat[row : row + window, column : column + window].mean()
                    if (row, column) not in found and mean > best_mean:
                        best, best_mean = (row, column), mean
            assert best is not None
            found.append(best)
            heat[best[0] : best[0] + window, best[1] : best[1] + window] = 0
        everything.append(found)
    pixels = [[[min(round(v / grid * side), side - crop) for v in cell] for cell in found] for found in everything]
    return everything, torch.tensor(pixels)


def slow_crops(images: Tensor, pixels: Tensor, crop: int) -> Tensor:
    return torch.stack(
        [
            torch.stack([image[:, r : r + crop, c : c + crop] for r, c in corners.tolist()])
            for image, corners in zip(images, pixels, strict=True)
        ]
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_side_grid_and_crop_agrees_with_the_slow_twin(data: st.DataObject) -> None:
    grid = data.draw(st.integers(2, 9), "grid")
    side = data.draw(st.integers(grid, 40), "side")
    crop = data.draw(st.integers(1, side), "crop")
    most = window_count(crop, grid, side)
    assume(most >= 2)
    regions = data.draw(st.integers(2, min(most, 6)), "regions")
    batch, classes = data.draw(st.integers(1, 3), "batch"), data.draw(st.integers(1, 3), "classes")
    # Eighths of an exact range: sums and means are exact, so ties are true ties; few values: many ties.
    levels = data.draw(st.sampled_from([1, 2, 8]), "levels")
    seed = data.draw(st.integers(0, 2**31), "seed")
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.randint(0, levels + 1, (batch, classes, grid, grid), generator=generator).float()
    saliency[:, :, 0, 0], saliency[:, :, -1, -1] = 0, levels
    search = RegionSearch(regions=regions, crop=crop, side=side, grid=grid)
    if search.window in (1, 2, 4):  # means over other windows are not exact in float32
        expected, expected_pixels = slow_regions(saliency, regions, crop, side)
        cells, pixels = search.search(saliency)
        assert cells.tolist() == [[list(cell) for cell in found] for found in expected]
        assert torch.equal(pixels, expected_pixels)
    images = torch.rand(batch, 3, side, side, generator=generator)
    cells, pixels, crops = search(images, saliency)
    assert torch.equal(crops, slow_crops(images, pixels, crop))
    assert all(len(set(map(tuple, found))) == regions for found in cells.tolist())


@pytest.mark.parametrize("window_pixels", [16, 32, 48])
def test_random_maps_agree_with_the_slow_twin(window_pixels: int) -> None:
    saliency = torch.randn(8, 5, 9, 9, generator=torch.Generator().manual_seed(3))
    search = RegionSearch(regions=6, crop=window_pixels, side=144, grid=9)
    assert search.window == window_pixels // 16
    expected, expected_pixels = slow_regions(saliency, 6, window_pixels, 144)
    cells, pixels = search.search(saliency)
    assert cells.tolist() == [[list(cell) for cell in found] for found in expected]
    assert torch.equal(pixels, expected_pixels)


@pytest.mark.parametrize(("crop", "side", "grid"), [(32, 224, 7), (32, 112, 7), (16, 64, 4), (64, 96, 3)])
def test_a_constant_map_gives_distinct_regions(crop: int, side: int, grid: int) -> None:
    most = window_count(crop, grid, side)
    search = RegionSearch(regions=most, crop=crop, side=side, grid=grid)
    for value in (0.0, -3.5, 1e30):
        cells, pixels = search.search(torch.full((2, 4, grid, grid), value))
        assert all(len(set(map(tuple, found))) == most for found in cells.tolist())
        assert int(pixels.max()) <= side - crop


def test_a_single_peak_does_not_repeat_a_region() -> None:
    saliency = torch.zeros(1, 1, 4, 4)
    saliency[0, 0, 2, 1] = 5.0
    cells, _ = RegionSearch(regions=3, crop=16, side=64, grid=4).search(saliency)
    assert cells.tolist() == [[[2, 1], [0, 0], [0, 1]]]


def test_weighed_maps_lead_to_what_is_probably_there() -> None:
    """A class that is there, and three that are not and respond beside it."""
    saliency = torch.zeros(1, 4, 4, 4)
    saliency[0, 0, 1, 2] = 1.0
    saliency[0, 1:, 3, 0] = 1.0
    search = RegionSearch(regions=2, crop=16, side=64, grid=4)
    assert search.search(saliency)[0][0, 0].tolist() == [3, 0]
    weights = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    assert search.search(saliency, weights)[0].tolist() == [[[1, 2], [3, 0]]]
    alike = torch.full((1, 4), 0.25)
    assert torch.equal(search.search(saliency, alike)[0], search.search(saliency)[0])


def test_one_image_does_not_change_anothers_regions() -> None:
    saliency = torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    search = RegionSearch(regions=4, crop=32, side=224, grid=7)
    together, _ = search.search(saliency)
    alone = torch.cat([search.search(one.unsqueeze(0))[0] for one in saliency])
    assert torch.equal(together, alone)


def test_first_channel_is_repeated_when_asked_for() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    saliency = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    _, pixels, crops = RegionSearch(regions=3, crop=16, side=64, grid=4, channels="first")(images, saliency)
    expected = slow_crops(images[:, :1], pixels, 16).expand(-1, -1, 3, -1, -1)
    assert torch.equal(crops, expected)


def test_the_search_stays_on_the_device() -> None:
    """Nothing may ask for a tensor's value: the meta device has none to give."""
    search = RegionSearch(regions=4, crop=32, side=224, grid=7).to("meta")
    cells, pixels, crops = search(torch.empty(2, 3, 224, 224, device="meta"), torch.empty(2, 5, 7, 7, device="meta"))
    assert cells.shape == pixels.shape == (2, 4, 2)
    assert crops.shape == (2, 4, 3, 32, 32)


def test_too_many_regions_are_refused() -> None:
    with pytest.raises(ValueError, match="5 regions of 32 px do not fit"):
        RegionSearch(regions=5, crop=32, side=64, grid=2)
    with pytest.raises(ValueError, match="do not fit"):
        RegionSearch(regions=1, crop=65, side=64, grid=4)


def test_images_of_another_side_are_refused() -> None:
    search = RegionSearch(regions=2, crop=16, side=64, grid=4)
    with pytest.raises(ValueError, match="made for 64 x 64"):
        search(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 4, 4))


def test_windows() -> None:
    assert window_side(32, 7, 224) == 1
    assert window_count(32, 7, 224) == 49
    assert window_side(32, 4, 64) == 2
    assert window_count(32, 4, 64) == 9
    assert window_side(1, 2, 64) == 1
