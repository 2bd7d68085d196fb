"""Files with the names of ``efficientnet_pytorch``: every tensor goes where timm has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from fed_diffmic.errors import ModelFileError
from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.lite import timm_names
from fed_diffmic.models.weights import load_encoder

BLOCKS = {"tf_efficientnet_lite0": 16, "tf_efficientnet_lite1": 21, "tf_efficientnet_lite2": 21}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def package_names(blocks: int) -> list[str]:
    """The names of such a file in its own order, as found in the published packages."""

    def layers(prefix: str, *parts: tuple[str, str]) -> list[str]:
        return [
            f"{prefix}{name}.{what}"
            for conv, norm in parts
            for name, whats in ((conv, ("weight",)), (norm, NORM))
            for what in whats
        ]

    names = layers("", ("_conv_stem", "_bn0"))
    for number in range(blocks):
        parts = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        names += layers(f"_blocks.{number}.", *([("_expand_conv", "_bn0")] if number else []), *parts)
    return [*names, *layers("", ("_conv_head", "_bn1")), "_fc.weight", "_fc.bias"]


def published(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return timm.create_model(name).state_dict()


@pytest.mark.parametrize("name", BLOCKS)
def test_names_and_order_are_timms(name: str) -> None:
    """Both files hold a network's tensors in the order of the forward pass: the names must pair up in it."""
    there, found = published(name), package_names(BLOCKS[name])
    assert len(there) == len(found)
    given = dict(zip(found, there.values(), strict=True))
    renamed = timm_names(given, there)
    assert list(renamed) == list(there)
    assert [v.shape for v in renamed.values()] == [v.shape for v in there.values()]


def test_an_encoder_takes_exactly_what_the_file_holds(tmp_path: Path) -> None:
    name = "tf_efficientnet_lite1"
    shapes = published(name)
    state = {k: torch.randn(v.shape) if v.is_floating_point() else torch.tensor(1) for k, v in shapes.items()}
    torch.save(dict(zip(package_names(BLOCKS[name]), state.values(), strict=True)), tmp_path / "lite1.pth")
    encoder = Encoder(name, side=64, stride=16, norm="frozen")
    load_encoder(encoder, tmp_path / "lite1.pth")
    own = encoder.net.state_dict()
    assert own and all(torch.equal(value, state[k]) for k, value in own.items())
    assert not set(own) & {"classifier.weight", "conv_head.weight"}


def test_a_file_of_another_network_is_refused_and_others_stay_as_they_are(tmp_path: Path) -> None:
    shapes = published("tf_efficientnet_lite1")
    state = {k: torch.zeros(v.shape) for k, v in zip(package_names(21), shapes.values(), strict=True)}
    torch.save(state, tmp_path / "lite1.pth")
    with pytest.raises(ModelFileError, match="does not fit"):
        load_encoder(Encoder("tf_efficientnet_lite0", side=64), tmp_path / "lite1.pth")
    other = {"conv_stem.weight": torch.zeros(1)}
    assert timm_names(other, shapes) == other
