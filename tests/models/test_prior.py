from __future__ import annotations

import pytest
import torch
from torch import nn

from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.prior import ImagePrior, PriorFusion


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_fusion_channel_by_channel(norm: str) -> None:
    torch.manual_seed(0)
    latent, regions = 12, 3
    fusion = PriorFusion(latent, regions, norm)
    nn.init.normal_(fusion.gate)
    fusion(torch.randn(8, latent), torch.randn(8, regions, latent))  # running statistics of batch norm
    fusion.eval()
    e0, e = torch.randn(5, latent), torch.randn(5, regions, latent)
    prior = fusion(e0, e)
    for b in range(5):
        for d in range(latent):
            weights = torch.softmax(fusion.gate[d], dim=0)
            total = weights[0] * fusion.global_norm(e0[b : b + 1])[0, d]
            for k in range(regions):
                total = total + weights[k + 1] * fusion.region_norm(e[b : b + 1, k])[0, d]
            torch.testing.assert_close(prior[b, d], total, rtol=1e-4, atol=1e-5)


def test_batch_norm_of_regions_counts_every_region_of_every_image() -> None:
    torch.manual_seed(0)
    fusion = PriorFusion(6, 3, "batch").train()
    regions = torch.randn(4, 3, 6) * 2 + 1
    fusion(torch.randn(4, 6), regions)
    expected = 0.1 * regions.flatten(0, 1).mean(dim=0)
    torch.testing.assert_close(fusion.region_norm.running_mean, expected)


def test_projection_after_the_mean_is_the_convolution_before_it() -> None:
    """The paper's order (1x1 convolution on every cell, then the mean) gives the same embedding."""
    torch.manual_seed(0)
    encoder = Encoder("test_resnet", side=64, stride=16).eval()
    prior = ImagePrior(encoder, encoder, latent=16, regions=2, norm="group")
    images, crops = torch.randn(2, 3, 64, 64), torch.randn(2, 2, 3, 64, 64)
    with torch.no_grad():
        pooled, regions = prior.encode(images, crops)
        weight = prior.global_projection.weight[:, :, None, None]
        slow = nn.functional.conv2d(encoder(images), weight, prior.global_projection.bias).mean(dim=(2, 3))
        torch.testing.assert_close(prior.global_projection(pooled), slow, rtol=1e-4, atol=1e-5)
        one = encoder(crops[1, :1]).mean(dim=(2, 3))[0]
    torch.testing.assert_close(regions[1, 0], one, rtol=1e-4, atol=1e-5)
