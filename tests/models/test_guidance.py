from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.models.diffmic import build_guidance
from fed_diffmic.models.guidance import cells_to_map, guidance_cells, guidance_map, top_cells_mean

Build = Callable[..., ModelConfig]


@pytest.mark.parametrize("classes", [2, 7])
@pytest.mark.parametrize("regions", [2, 5])
def test_shapes_and_fusion(tiny: Build, classes: int, regions: int) -> None:
    torch.manual_seed(0)
    out = build_guidance(tiny(regions=regions), classes)(torch.randn(3, 3, 64, 64))
    assert out.y_global.shape == out.y_local.shape == out.fused.shape == (3, classes)
    assert out.saliency.shape == (3, classes, 4, 4)
    assert out.cells.shape == out.pixels.shape == (3, regions, 2)
    assert out.crops.shape == (3, regions, 3, 16, 16)
    torch.testing.assert_close(out.attention.sum(dim=1), torch.ones(3))
    torch.testing.assert_close(out.fused, (out.y_global + out.y_local) / 2)


def test_local_logits_are_attention_over_the_crops_one_at_a_time(tiny: Build) -> None:
    """Slow twin: each crop through the encoder alone, each sum written out."""
    torch.manual_seed(0)
    net = build_guidance(tiny(), 3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = net(images)
        for b in range(2):
            h, scores = [], []
            for k in range(4):
                row, column = out.pixels[b, k].tolist()
                crop = images[b : b + 1, :, row : row + 16, column : column + 16]
                h.append(net.local_encoder(crop).mean(dim=(2, 3))[0])
                pool = net.local_head.attention
                gate = torch.sigmoid(pool.U.weight @ h[-1]) * torch.tanh(pool.V.weight @ h[-1])
                scores.append((pool.w.weight[0] * gate).sum())
            attention = torch.softmax(torch.stack(scores), dim=0)
            torch.testing.assert_close(out.attention[b], attention)
            pooled = sum((a * v for a, v in zip(attention, h, strict=True)), torch.zeros_like(h[0]))
            torch.testing.assert_close(out.y_local[b], net.local_head.classifier.weight @ pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("region_map", ["sum", "probable"])
def test_regions_are_sought_where_the_configuration_says(tiny: Build, region_map: str) -> None:
    torch.manual_seed(0)
    net = build_guidance(tiny(region_map=region_map), 3).eval()
    with torch.no_grad():
        out = net(8 * torch.randn(16, 3, 64, 64))
    plain, _ = net.regions.search(out.saliency)
    weighed, _ = net.regions.search(out.saliency, torch.softmax(out.y_global, dim=1))
    assert not torch.equal(plain, weighed)
    assert torch.equal(out.cells, weighed if region_map == "probable" else plain)


def test_gradients_reach_every_parameter(tiny: Build) -> None:
    torch.manual_seed(0)
    net = build_guidance(tiny(), 3).train()
    for parameter in net.parameters():  # timm starts some residual branches at zero, which stops gradients
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    torch.nn.functional.cross_entropy(net(torch.randn(4, 3, 64, 64)).fused, torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in net.parameters())


def test_the_images_are_not_changed(tiny: Build) -> None:
    images = torch.randn(2, 3, 64, 64)
    before = images.clone()
    build_guidance(tiny(), 3)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("percent", "count"), [(100.0, 16), (50.0, 8), (20.0, 3), (0.1, 1)])
def test_top_cells(percent: float, count: int) -> None:
    saliency = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = saliency.flatten(2).sort(dim=2, descending=True).values[:, :, :count].mean(dim=2)
    torch.testing.assert_close(top_cells_mean(saliency, percent), expected)


def slow_map(y_global: Tensor, y_local: Tensor, regions: int) -> Tensor:
    out = torch.empty(*y_global.shape, regions, regions)
    for i in range(regions):
        for j in range(regions):
            d = abs(i - j) / (regions - 1)
            out[:, :, i, j] = (1 - d) * y_global + d * y_local
    return out


@pytest.mark.parametrize("regions", [2, 3, 6, 11])
def test_guidance_map_cell_by_cell(regions: int) -> None:
    generator = torch.Generator().manual_seed(regions)
    y_global, y_local = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    dense = guidance_map(y_global, y_local, regions)
    torch.testing.assert_close(dense, slow_map(y_global, y_local, regions))
    cells = guidance_cells(y_global, y_local, regions)
    torch.testing.assert_close(cells_to_map(cells), dense)
    torch.testing.assert_close(cells[:, 0], y_global)
    torch.testing.assert_close(cells[:, -1], y_local)
