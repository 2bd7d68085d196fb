from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.models.centre import FeatureCentre, centre_names
from fed_diffmic.models.diffmic import build_diffmic, build_guidance
from fed_diffmic.models.plain import build_plain

Build = Callable[..., ModelConfig]


def known(width: int) -> FeatureCentre:
    centre = FeatureCentre(width)
    centre.mean.copy_(torch.linspace(-0.5, 0.5, width))
    return centre


def test_a_vector_is_scaled_to_a_root_mean_square_of_1_and_centred() -> None:
    x = 37.0 * torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    centre = known(8)
    scaled = centre(x) + centre.mean
    torch.testing.assert_close(scaled.square().mean(dim=-1), torch.ones(3, 5))
    torch.testing.assert_close(scaled / x, (scaled / x)[..., :1].expand_as(x))
    torch.testing.assert_close(centre(1e-3 * x), centre(x))


def test_features_that_are_all_zero_stay_zero() -> None:
    assert torch.equal(FeatureCentre(4)(torch.zeros(2, 4)), torch.zeros(2, 4))
    assert torch.equal(FeatureCentre(4).grid(torch.zeros(2, 4, 3, 3)), torch.zeros(2, 4, 3, 3))


def test_a_maps_mean_over_its_cells_is_the_centred_mean() -> None:
    x = 5.0 + torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    centre = known(6)
    torch.testing.assert_close(centre.grid(x).mean(dim=(2, 3)), centre(x.mean(dim=(2, 3))))


def test_where_the_means_are(tiny: Build) -> None:
    centred = tiny(features="centred")
    assert centre_names(build_guidance(centred, 3)) == ["global_centre.mean", "local_centre.mean"]
    assert centre_names(build_plain(centred, 3)) == ["centre.mean"]
    assert centre_names(build_diffmic(centred, 3)) == ["guidance.global_centre.mean", "guidance.local_centre.mean"]
    assert centre_names(build_diffmic(tiny(), 3)) == centre_names(build_plain(tiny(), 3)) == []


def test_raw_networks_have_the_state_they_always_had(tiny: Build) -> None:
    raw, centred = (set(build_guidance(tiny(features=kind), 3).state_dict()) for kind in ("raw", "centred"))
    assert centred - raw == {"global_centre.mean", "local_centre.mean"} and not raw - centred


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_guidance_logits_are_those_of_features_scaled_and_centred_by_hand(tiny: Build, mean: float) -> None:
    torch.manual_seed(0)
    net = build_guidance(tiny(features="centred"), 3).eval()
    net.global_centre.mean.fill_(mean)
    net.local_centre.mean.fill_(-mean)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        out = net(images)
        for b in range(2):
            pooled = net.global_encoder(images[b : b + 1])[0].mean(dim=(1, 2))
            by_hand = net.saliency.weight[:, :, 0, 0] @ (pooled / pooled.square().mean().sqrt() - mean)
            torch.testing.assert_close(out.y_global[b], by_hand, rtol=1e-4, atol=1e-5)
            rows = []
            for k in range(4):
                row, column = out.pixels[b, k].tolist()
                crop = images[b : b + 1, :, row : row + 16, column : column + 16]
                h = net.local_encoder(crop)[0].mean(dim=(1, 2))
                rows.append(h / h.square().mean().sqrt() + mean)
            attention, y_local = net.local_head(torch.stack(rows).unsqueeze(0))
            torch.testing.assert_close(out.attention[b], attention[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(out.y_local[b], y_local[0], rtol=1e-4, atol=1e-5)
        net.freeze_encoders()
        torch.testing.assert_close(net.fused(*net.encoded(images)), out.fused)


def test_the_plain_classifier_sees_centred_features(tiny: Build) -> None:
    torch.manual_seed(0)
    net = build_plain(tiny(features="centred"), 3).eval()
    net.centre.mean.fill_(0.2)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        h = net.encoder(images)
        by_hand = net.classifier(h / h.square().mean(dim=1, keepdim=True).sqrt() - 0.2)
        torch.testing.assert_close(net(images), by_hand)
