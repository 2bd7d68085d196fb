"""The library's modules against inputs and outputs of the authors' network (numbers only).

Reads the folder that ``REFERENCE_VECTORS`` names (default: the copy in tests/reference_vectors) and
takes every size from the arrays.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.denoiser import Denoiser
from fed_diffmic.models.diffmic import DiffMIC, Features
from fed_diffmic.models.diffusion import alphas_cumprod, ddim_timesteps, diffusion_loss, forward_diffusion
from fed_diffmic.models.guidance import LocalHead, cells_to_map, guidance_map, top_cells_mean
from fed_diffmic.models.prior import ImagePrior, PriorFusion
from fed_diffmic.models.regions import RegionSearch
from fed_diffmic.models.weights import load_encoder

FOLDER = Path(os.environ.get("REFERENCE_VECTORS") or Path(__file__).parent.parent / "reference_vectors")
TOLERANCE = 1e-5


def vectors(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(np.array(file[key])) for key in file.files}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert actual.shape == expected.shape
    assert (actual.double() - expected.double()).abs().max().item() <= tolerance


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert torch.equal(actual.long(), expected.long())


def region_search(z: dict[str, Tensor], channels: str) -> RegionSearch:
    return RegionSearch(
        regions=z["cell_positions"].shape[1],
        crop=z["crops"].shape[-1],
        side=z["image_channel0"].shape[-1],
        grid=z["saliency"].shape[-1],
        channels=channels,
    )


def test_regions_and_global_logits() -> None:
    z = vectors("regions")
    cells, pixels = region_search(z, "all").search(z["saliency"])
    assert_equal(cells, z["cell_positions"])
    assert_equal(pixels, z["pixel_positions"])
    assert_close(top_cells_mean(z["saliency"], 100.0), z["y_global"])


@pytest.mark.parametrize("channels", ["first", "all"])
def test_crops(channels: str) -> None:
    z = vectors("regions")
    first = z["image_channel0"]
    images = torch.stack([first, first + 1, first - 1], dim=1)
    _, _, crops = region_search(z, channels)(images, z["saliency"])
    for channel in range(3):
        shift = (0.0, 1.0, -1.0)[channel] if channels == "all" else 0.0
        assert_close(crops[:, :, channel] - shift, z["crops"])


def test_attention_over_regions() -> None:
    z = vectors("mil_attention")
    width, hidden, classes = z["h"].shape[2], z["V"].shape[0], z["classifier"].shape[0]
    head = LocalHead(width, hidden, classes)
    head.load_state_dict(
        {
            "attention.U.weight": z["U"],
            "attention.V.weight": z["V"],
            "attention.w.weight": z["w"],
            "classifier.weight": z["classifier"],
        }
    )
    with torch.no_grad():
        attention, pooled = head.attention(z["h"])
        assert_close(attention, z["attention"])
        assert_close(pooled, z["pooled"])
        again, y_local = head(z["h"])
    assert_close(again, z["attention"])
    assert_close(y_local, z["y_local"])


def test_guidance_map() -> None:
    z = vectors("guidance_map")
    assert_close(guidance_map(z["y_global"], z["y_local"], z["guidance_map"].shape[-1]), z["guidance_map"])


def test_forward_diffusion() -> None:
    z = vectors("forward_diffusion")
    abar = alphas_cumprod(z["alphas_cumprod"].shape[0])
    assert_close(abar, z["alphas_cumprod"])
    assert_close(forward_diffusion(z["label"], z["timesteps"], z["noise"], abar), z["noisy_map"])


def denoiser_weights(z: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's names are the module's own; a 1x1 convolution's weight is a linear layer's."""
    renamed = {}
    for key, value in z.items():
        name = key.removeprefix("weights/").replace("head.conv.", "head.")
        if name != key and name.startswith(("block", "head")):
            renamed[name] = value.flatten(1) if value.dim() == 4 else value
    return renamed


def load_expecting_counters(module: nn.Module, state: dict[str, Tensor]) -> None:
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)


def reference_model(z: dict[str, Tensor]) -> DiffMIC:
    """A DiffMIC whose prior receives the embeddings as its pooled features (identity projections)."""
    classes, regions = z["guidance_map"].shape[1], z["guidance_map"].shape[-1]
    latent = z["global_embedding"].shape[1]
    timesteps = z["weights/block1.timestep_table.weight"].shape[0] - 1

    fusion = PriorFusion(latent, regions, "batch")
    state = {
        k.removeprefix("weights/"): v
        for k, v in z.items()
        if k.startswith(("weights/global_norm", "weights/region_norm"))
    }
    load_expecting_counters(fusion, state | {"gate": z["weights/prior_gate"][0]})
    denoiser = Denoiser(classes, latent, timesteps, "batch")
    load_expecting_counters(denoiser, denoiser_weights(z))

    encoder = nn.Identity()
    encoder.width = latent  # type: ignore[assignment]
    prior = ImagePrior(encoder, encoder, latent=latent, regions=regions, norm="batch")  # type: ignore[arg-type]
    prior.global_projection = prior.region_projection = nn.Identity()  # type: ignore[assignment]
    prior.fusion = fusion
    guidance = nn.Module()
    guidance.regions = nn.Module()
    guidance.regions.regions = regions  # type: ignore[assignment]
    steps = z["ddim_timesteps"].shape[0]
    return DiffMIC(guidance, prior, denoiser, timesteps=timesteps, sampling_steps=steps).eval()  # type: ignore[arg-type]


def test_prior_and_denoiser() -> None:
    z = vectors("denoiser")
    model = reference_model(z)
    with torch.no_grad():
        prior = model.prior(z["global_embedding"], z["region_embedding"])
        assert_close(prior, z["prior"])
        assert_close(model.noise(z["guidance_map"], z["noisy_map"], z["timesteps"], prior), z["epsilon"])


def test_sampling() -> None:
    z = vectors("denoiser")
    model = reference_model(z)
    regions = model.regions
    assert_equal(torch.tensor(ddim_timesteps(model.timesteps, model.sampling_steps)), z["ddim_timesteps"])
    assert_close(guidance_map(z["start_global"], z["start_local"], regions), z["start_map"])
    # The map's first row holds every |i - j|: its ends are the global and the local logits.
    features = Features(
        z["guidance_map"][:, :, 0, 0], z["guidance_map"][:, :, 0, -1], z["global_embedding"], z["region_embedding"]
    )
    assert_close(model.condition(features)[1], z["guidance_map"])
    cells = model.sample_cells(features, z["start_global"], z["start_local"])
    assert_close(cells_to_map(cells), z["sampled_map"], 2e-5)
    mean, spread = model.sample(features, z["start_global"], z["start_local"])
    assert_close(mean, z["prediction"])
    assert_close(spread, z["sampled_map"].flatten(2).std(dim=2, unbiased=False), 2e-5)


def test_loss() -> None:
    z = vectors("loss")
    task = "multiclass" if torch.equal(z["label"].sum(dim=1), torch.ones(z["label"].shape[0])) else "multilabel"
    arguments = (z["prior_logits"], float(z["alpha"]), float(z["gamma"]), task)
    assert_close(diffusion_loss(z["noise_pred"], z["noise"], z["label"], *arguments), z["loss"])
    if task == "multiclass":
        indices = z["label"].argmax(dim=1)
        assert_close(diffusion_loss(z["noise_pred"], z["noise"], indices, *arguments), z["loss"])


def test_efficientsam_image_encoder(tmp_path: Path) -> None:
    z = vectors("efficientsam_encoder")
    checkpoint = {k.removeprefix("checkpoint/"): v for k, v in z.items() if k.startswith("checkpoint/")}
    patch_weight = checkpoint["image_encoder.patch_embed.proj.weight"]
    width, _, patch, _ = patch_weight.shape
    overrides = {
        "patch_size": patch,
        "embed_dim": width,
        "depth": 1 + max(int(k.split(".")[2]) for k in checkpoint if k.startswith("image_encoder.blocks.")),
        "num_heads": int(z["num_heads"]),
        "mlp_ratio": checkpoint["image_encoder.blocks.0.mlp.fc1.weight"].shape[0] / width,
    }
    assert (
        math.isqrt(checkpoint["image_encoder.pos_embed"].shape[1] - 1) ** 2
        == checkpoint["image_encoder.pos_embed"].shape[1] - 1
    )
    file = tmp_path / "efficientsam.pt"
    torch.save(
        {"model": checkpoint | {"image_encoder.neck.0.weight": torch.zeros(2), "mask_decoder.x": torch.zeros(1)}}, file
    )
    encoder = Encoder("vit_small_patch16_224", side=z["image"].shape[-1], overrides=overrides)
    report = load_encoder(encoder, file)
    assert set(report.ignored) == {"image_encoder.neck.0.weight", "mask_decoder.x"}
    with torch.no_grad():
        assert_close(encoder.eval()(z["image"]), z["features"], 1e-4)
