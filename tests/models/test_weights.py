"""Weights files: what fits is taken whole, what does not says why; nothing is unpickled into objects."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.errors import ModelFileError
from fed_diffmic.models import weights as weights_module
from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.diffmic import build_diffmic, build_guidance
from fed_diffmic.models.plain import build_plain
from fed_diffmic.models.weights import check_pretrained, load_encoder, load_pretrained, read_weights
from fed_diffmic.models.without_compiler import shapes_only

Build = Callable[..., ModelConfig]


def published(name: str = "test_resnet", **arguments: object) -> dict[str, Tensor]:
    """A file as timm would publish it: the whole network, random weights, 1,000 classes."""
    torch.manual_seed(99)
    net = timm.create_model(name, **arguments)
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in net.state_dict().items()}


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    path = tmp_path / "resnet.safetensors"
    save_file(published(), path)
    return path


def wrap(kind: str, state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "module.":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "half":
        torch.save({"model": {k: v.half() if v.is_floating_point() else v for k, v in state.items()}}, path)
    else:
        torch.save({kind: state, "epoch": 3} if kind else state, path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "", "model", "state_dict", "module.", "legacy", "half"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    state = published()
    encoder = Encoder("test_resnet", side=64)
    report = load_encoder(encoder, wrap(kind, state, tmp_path))
    assert set(report.ignored) == {"fc.weight", "fc.bias"}
    assert report.tensors == len(encoder.net.state_dict())
    for name, value in encoder.net.state_dict().items():
        expected = state[name].half().float() if kind == "half" and state[name].is_floating_point() else state[name]
        assert torch.equal(value, expected), name
    assert encoder.net.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_cut_backbone_leaves_out_what_is_behind_its_features(resnet: Path) -> None:
    encoder = Encoder("test_resnet", side=64, stride=16)
    report = load_encoder(encoder, resnet)
    assert {name.split(".")[0] for name in report.ignored} == {"fc", "layer4"}


def test_group_norm_takes_the_affine_weights(resnet: Path) -> None:
    state = read_weights(resnet)
    encoder = Encoder("test_resnet", side=64, norm="group")
    report = load_encoder(encoder, resnet)
    assert any(name.endswith("running_mean") for name in report.ignored)
    assert all(torch.equal(v, state[k]) for k, v in encoder.net.state_dict().items())


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    state = published()
    dropped = [k for k in state if k.startswith("layer2")]
    for name in dropped:
        del state[name]
    state["layer9.weight"] = torch.zeros(1)
    state["conv1.0.weight"] = torch.zeros(2, 3, 5, 5)
    with pytest.raises(ModelFileError) as caught:
        load_encoder(Encoder("test_resnet", side=64), wrap("", state, tmp_path), "prior.global_encoder")
    text = str(caught.value)
    counted = [k for k in dropped if not k.endswith("num_batches_tracked")]
    assert f"{len(counted)} missing from the file ({counted[0]}, {counted[1]}" in text
    assert "..." in text
    assert "1 of another shape (conv1.0.weight (2, 3, 5, 5) for " in text
    assert "1 in the file and unknown to the encoder (layer9.weight)" in text
    assert "prior.global_encoder (test_resnet)" in text
    assert "What to do" in text


def test_a_deeper_network_does_not_fit(tmp_path: Path) -> None:
    state = published("vit_tiny_patch16_224", depth=3)
    encoder = Encoder("vit_tiny_patch16_224", side=224, overrides={"depth": 2})
    with pytest.raises(ModelFileError, match=r"unknown to the encoder \(blocks.2."):
        load_encoder(encoder, wrap("", state, tmp_path))


def test_unchanged_after_a_misfit(tmp_path: Path) -> None:
    encoder = Encoder("test_resnet", side=64)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    state = published()
    del state["layer1.0.conv1.weight"]
    with pytest.raises(ModelFileError):
        load_encoder(encoder, wrap("", state, tmp_path))
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    for name, write in (
        ("zip.pth", lambda p: torch.save({"a": _Trap(mark)}, p)),
        ("raw.pkl", lambda p: p.write_bytes(pickle.dumps({"a": _Trap(mark)}))),
        ("raw.safetensors", lambda p: p.write_bytes(pickle.dumps({"a": _Trap(mark)}))),
    ):
        path = tmp_path / name
        write(path)
        with pytest.raises(ModelFileError, match="neither a safetensors file nor a state dict"):
            read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 torn", b"\x10\x00\x00\x00\x00\x00\x00\x00{ torn", b"no weights\n" * 9]
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_torn_files(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        read_weights(path)


@pytest.mark.parametrize(
    "content",
    [b'{"epoch": 3}', b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"image,label\na.png,x\n"],
    ids=["json", "png", "csv"],
)
def test_what_torch_says_of_another_file_is_not_repeated(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It advises to read the file in a way that runs what is in it; who looks for the cause finds it in the log."""
    path = tmp_path / "w1.pt"
    path.write_bytes(content)
    with caplog.at_level("DEBUG", "fed_diffmic.models.weights"), pytest.raises(ModelFileError) as caught:
        read_weights(path)
    assert caught.value.cause == f"{path} is neither a safetensors file nor a state dict of plain tensors"
    assert "weights_only" not in str(caught.value) and "torch.save" in caught.value.remedy
    assert [record.levelname for record in caplog.records] == ["DEBUG"] and str(path) in caplog.text


def test_files_are_held_to_networks_that_hold_no_numbers(tiny: Build, resnet: Path, tmp_path: Path) -> None:
    """Each is read once for all networks; nothing is loaded."""
    cfg = tiny(weights=str(resnet))
    with shapes_only():
        modules = [build_guidance(cfg, 3), build_diffmic(cfg, 3)]
    check_pretrained(modules, cfg)
    assert all(value.is_meta for module in modules for value in module.state_dict().values())
    save_file(published("test_efficientnet"), other := tmp_path / "other.safetensors")
    with pytest.raises(ModelFileError, match=r"does not fit (global|local)_encoder"):
        check_pretrained(modules, tiny(weights=str(other)))
    check_pretrained(modules[:1], tiny(prior_weights=str(other)))  # it has no prior
    with pytest.raises(ModelFileError, match=r"does not fit prior\.global_encoder"):
        check_pretrained(modules, tiny(prior_weights=str(other)))


def test_published_weights_are_asked_for_once_a_backbone(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, create, asked = tiny(pretrained=True), timm.create_model, []

    def fetched(name: str, pretrained: bool = False, **rest: object) -> object:
        asked.extend([name] * pretrained)
        return create(name, **rest)

    with shapes_only():
        modules = [build_guidance(cfg, 3), build_diffmic(cfg, 3)]
    monkeypatch.setattr("timm.create_model", fetched)
    check_pretrained(modules, cfg)
    assert asked == ["test_resnet"]


def test_files_without_tensors(tmp_path: Path) -> None:
    for content in ({"epoch": 3}, [torch.zeros(2)], {"model": {}}):
        path = tmp_path / "w.pth"
        torch.save(content, path)
        with pytest.raises(ModelFileError, match="holds no named tensors"):
            read_weights(path)
    with pytest.raises(ModelFileError, match="there is no weights file"):
        read_weights(tmp_path / "nowhere.pth")


def test_safetensors_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "w.bin"
    save_file({"a": torch.ones(2)}, path)
    assert torch.equal(read_weights(path)["a"], torch.ones(2))


def test_one_file_for_every_encoder_that_it_fits(tiny: Build, resnet: Path) -> None:
    cfg = tiny(weights=str(resnet), region_backbone="test_efficientnet")
    model = build_diffmic(cfg, 3)
    untouched = {k: v.clone() for k, v in model.prior.region_encoder.state_dict().items()}
    loaded = load_pretrained(model, cfg)
    assert {item.encoder for item in loaded} == {
        "guidance.global_encoder",
        "guidance.local_encoder",
        "prior.global_encoder",
    }
    state = read_weights(resnet)
    assert torch.equal(model.guidance.local_encoder.net.conv1[0].weight, state["conv1.0.weight"])
    assert all(torch.equal(v, untouched[k]) for k, v in model.prior.region_encoder.state_dict().items())


def test_a_file_that_fits_no_encoder(tiny: Build, resnet: Path) -> None:
    names = ("guidance_backbone", "local_backbone", "prior_backbone", "region_backbone")
    cfg = tiny(weights=str(resnet), **dict.fromkeys(names, "test_efficientnet"))
    with pytest.raises(ModelFileError, match=r"does not fit .*\(test_efficientnet\).* missing from the file"):
        load_pretrained(build_guidance(cfg, 3), cfg)


def test_the_priors_own_file_has_the_last_word(tiny: Build, resnet: Path, tmp_path: Path) -> None:
    other = {k: v + 1 if v.is_floating_point() else v for k, v in read_weights(resnet).items()}
    cfg = tiny(weights=str(resnet), prior_weights=str(wrap("", other, tmp_path)))
    model = build_diffmic(cfg, 3)
    loaded = load_pretrained(model, cfg)
    assert sorted(item.encoder for item in loaded) == [
        "guidance.global_encoder",
        "guidance.local_encoder",
        "prior.global_encoder",
        "prior.region_encoder",
    ]
    assert torch.equal(model.prior.global_encoder.net.conv1[0].weight, other["conv1.0.weight"])
    assert torch.equal(model.prior.region_encoder.net.conv1[0].weight, read_weights(resnet)["conv1.0.weight"])
    # The guidance network has no such encoder: the file is not its business.
    assert len(load_pretrained(build_guidance(cfg, 3), cfg)) == 2


def test_a_timm_vit_without_its_class_token_at_another_side(tmp_path: Path) -> None:
    state = published("vit_tiny_patch16_224", depth=2)
    encoder = Encoder("vit_tiny_patch16_224", side=96, overrides={"depth": 2}).eval()
    report = load_encoder(encoder, wrap("", state, tmp_path))
    assert set(report.ignored) == {"cls_token", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    from timm.layers import resample_abs_pos_embed

    expected = resample_abs_pos_embed(state["pos_embed"], [6, 6], num_prefix_tokens=1)[:, 1:]
    torch.testing.assert_close(encoder.net.pos_embed.data, expected)


def test_a_whole_vit_keeps_its_class_tokens_position(tiny: Build, tmp_path: Path) -> None:
    state = published("vit_tiny_patch16_224")
    cfg = tiny(guidance_backbone="vit_tiny_patch16_224", weights=str(wrap("", state, tmp_path)))
    model = build_plain(cfg, 3)
    load_pretrained(model, cfg)
    assert model.encoder.net.pos_embed.shape == (1, 17, 192)
    assert torch.equal(model.encoder.net.pos_embed[:, :1], state["pos_embed"][:, :1])
    assert torch.equal(model.encoder.net.cls_token, state["cls_token"])


def efficientsam(depth: int, width: int) -> dict[str, Tensor]:
    """A checkpoint under EfficientSAM's names."""
    state = published("vit_small_patch16_224", depth=depth, embed_dim=width, num_heads=2)
    kept = {k: v for k, v in state.items() if k.startswith(("patch_embed", "pos_embed", "blocks"))}
    extra = {
        "image_encoder.neck.0.weight": torch.zeros(3),
        "prompt_encoder.x": torch.zeros(1),
        "mask_decoder.y": torch.zeros(1),
    }
    return {f"image_encoder.{k}": v for k, v in kept.items()} | extra


def test_efficientsam_at_its_own_size_and_another(tmp_path: Path) -> None:
    state = efficientsam(2, 32)
    path = wrap("model", state, tmp_path)
    shape = {"depth": 2, "embed_dim": 32, "num_heads": 2}
    same = Encoder("vit_small_patch16_224", side=224, overrides=shape)
    report = load_encoder(same, path)
    assert len(report.ignored) == 3
    table = state["image_encoder.pos_embed"]
    assert torch.equal(same.net.pos_embed, table[:, 1:])
    smaller = Encoder("vit_small_patch16_224", side=112, overrides=shape)
    load_encoder(smaller, path)
    image = table[:, 1:].reshape(1, 14, 14, 32).permute(0, 3, 1, 2)
    resampled = torch.nn.functional.interpolate(image, size=(7, 7), mode="bicubic", align_corners=False)
    torch.testing.assert_close(smaller.net.pos_embed.data, resampled.permute(0, 2, 3, 1).reshape(1, 49, 32))


def test_efficientsam_into_the_wrong_encoder(tmp_path: Path) -> None:
    path = wrap("model", efficientsam(2, 32), tmp_path)
    with pytest.raises(ModelFileError, match="does not fit"):
        load_encoder(Encoder("test_resnet", side=64), path)
    with pytest.raises(ModelFileError, match=r"missing from the file \(image_encoder.blocks.2"):
        load_encoder(
            Encoder("vit_small_patch16_224", side=224, overrides={"depth": 3, "embed_dim": 32, "num_heads": 2}), path
        )
    with pytest.raises(
        ModelFileError, match=r"of another shape \(image_encoder.pos_embed \(1, 197, 32\) for \(1, 196, 384\)"
    ):
        load_encoder(Encoder("vit_small_patch16_224", side=224, overrides={"depth": 2}), path)


def test_timms_own_path(tiny: Build, monkeypatch: pytest.MonkeyPatch, resnet: Path) -> None:
    """``pretrained=True`` asks timm for the network it publishes; what comes back goes into the encoders."""
    asked = []
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **arguments: object) -> torch.nn.Module:
        net = real(name, **arguments)
        if pretrained:
            asked.append(name)
            net.load_state_dict(read_weights(resnet))
        return net

    monkeypatch.setattr(weights_module.timm, "create_model", create)
    model = build_guidance(tiny(), 3)
    assert load_pretrained(model, tiny(pretrained=True)) == []
    assert asked == ["test_resnet", "test_resnet"]
    assert torch.equal(model.global_encoder.net.conv1[0].weight, read_weights(resnet)["conv1.0.weight"])


def test_no_connection_is_said_in_our_words(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def create(name: str, pretrained: bool = False, **arguments: object) -> torch.nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return real(name, **arguments)

    monkeypatch.setattr(weights_module.timm, "create_model", create)
    with pytest.raises(ModelFileError, match=r"(?s)test_resnet cannot be had: no route to host.*model.weights"):
        load_pretrained(build_guidance(tiny(), 3), tiny(pretrained=True))


def test_frozen_norm_without_weights_is_warned_of(tiny: Build, caplog: pytest.LogCaptureFixture) -> None:
    cfg = tiny(encoder_norm="frozen")
    load_pretrained(build_guidance(cfg, 3), cfg)
    assert "batch norm stays at mean 0" in caplog.text
    caplog.clear()
    load_pretrained(build_guidance(tiny(), 3), tiny())
    assert caplog.text == ""


def test_the_published_lite0(shared: Path, tiny: Build) -> None:
    """The real file, in every encoder of the compact model and in the plain baseline."""
    names = ("guidance_backbone", "local_backbone", "prior_backbone", "region_backbone")
    cfg = tiny(
        weights=str(shared / "data" / "weights" / "tf_efficientnet_lite0.safetensors"),
        image_side=112,
        crop=32,
        feature_stride=32,
        encoder_norm="frozen",
        frozen_blocks=3,
        **dict.fromkeys(names, "tf_efficientnet_lite0"),
    )
    loaded = load_pretrained(build_diffmic(cfg, 7), cfg)
    assert len(loaded) == 4
    assert {n.split(".")[0] for n in loaded[0].ignored} == {"conv_head", "bn2", "classifier"}
    model = build_plain(cfg, 7).eval()
    (report,) = load_pretrained(model, cfg)
    assert set(report.ignored) == {"classifier.weight", "classifier.bias"}
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    reference.load_state_dict(read_weights(cfg.weights or ""))
    x = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled = model.encoder(x)
        torch.testing.assert_close(reference.classifier(pooled), reference(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (b"\n<!DOCTYPE html><html>login</html>", "web page"),
        (b"", "is empty"),
    ],
)
@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_what_only_stands_for_weights_is_named(tmp_path, content, word, ending):
    path = tmp_path / f"w.{ending}"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=word):
        read_weights(path)
