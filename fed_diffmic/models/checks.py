"""Does a model configuration describe a network that can exist? Asked before any work starts."""

from __future__ import annotations

import functools
from dataclasses import fields
from typing import Any

import torch

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.config.stock import check_weights_files, is_stock
from fed_diffmic.errors import ConfigError
from fed_diffmic.models.backbones import BackboneInfo, Encoder, backbone_info, check_backbone_name
from fed_diffmic.models.regions import window_count, window_side
from fed_diffmic.models.without_compiler import shapes_only

_WHOLE_IMAGE = ("guidance_backbone", "prior_backbone")


def check_model_config(cfg: ModelConfig) -> None:
    """Check the architecture and that the weights files named exist. Allocates no weights.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    check_architecture(cfg)
    check_weights_files(cfg)


def check_architecture(cfg: ModelConfig) -> None:
    """Check everything that a site needs to rebuild the network (weights files stay with the coordinator).

    A preset is not looked at: tests do, and the look costs a tenth of a start.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    if not is_stock(cfg):
        explore(cfg)


def explore(cfg: ModelConfig) -> None:
    """As :func:`check_architecture`, of any model: shapes are found on torch's meta device.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    for key in ("guidance_backbone", "local_backbone", "prior_backbone", "region_backbone"):
        check_backbone_name(getattr(cfg, key), f"model.{key}")
    if cfg.crop > cfg.image_side:
        raise ConfigError("model.crop", cfg.crop, f"at most model.image_side={cfg.image_side}")
    if cfg.sampling_steps > cfg.timesteps:
        raise ConfigError("model.sampling_steps", cfg.sampling_steps, f"at most model.timesteps={cfg.timesteps}")
    if cfg.sampling == "mean" and cfg.denoiser != "residual":
        raise ConfigError("model.sampling", cfg.sampling, f"chain with model.denoiser={cfg.denoiser}")
    _check_prior_init(cfg)
    grid = encoder_grid(cfg, "guidance_backbone")
    encoder_grid(cfg, "prior_backbone")
    encoder_grid(cfg, "local_backbone")
    encoder_grid(cfg, "region_backbone")
    _check_windows(cfg, grid)


def _check_prior_init(cfg: ModelConfig) -> None:
    if cfg.prior_init != "guidance":
        return
    for prior, guidance in (("prior_backbone", "guidance_backbone"), ("region_backbone", "local_backbone")):
        if getattr(cfg, prior) != getattr(cfg, guidance):
            raise ConfigError(
                "model.prior_init",
                cfg.prior_init,
                f"own, because model.{prior}={getattr(cfg, prior)} is not model.{guidance}={getattr(cfg, guidance)}",
            )
    if cfg.prior_weights is not None:
        raise ConfigError(
            "model.prior_init",
            cfg.prior_init,
            "own, because model.prior_weights would be overwritten by the guidance encoders",
        )


def _check_windows(cfg: ModelConfig, grid: int) -> None:
    count = window_count(cfg.crop, grid, cfg.image_side)
    if count >= cfg.regions:
        return
    window = window_side(cfg.crop, grid, cfg.image_side)
    asked = f"K={cfg.regions} at H={cfg.image_side} (model.image_side), stride {round(cfg.image_side / grid)}"
    raise ConfigError(
        "model.regions",
        cfg.regions,
        f"at most {count}: {asked} (model.feature_stride={cfg.feature_stride}) and a crop of {cfg.crop} px "
        f"(model.crop) give a {grid} x {grid} grid with {count} windows of {window} x {window} cells",
        "Raise model.image_side, lower model.feature_stride (16), model.regions or model.crop.",
    )


def guidance_grid(cfg: ModelConfig) -> int:
    """:func:`encoder_grid` of ``guidance_backbone``; a preset's is known: strides halve, and round up."""
    if is_stock(cfg):
        return -(-cfg.image_side // cfg.feature_stride)
    return encoder_grid(cfg, "guidance_backbone")


def encoder_grid(cfg: ModelConfig, key: str) -> int:
    """Side, in cells, of the feature map that an encoder of ``cfg`` gives; found on torch's meta device.

    Args:
        cfg: the model.
        key: ``guidance_backbone``, ``prior_backbone`` (whole image, at ``feature_stride``),
            ``local_backbone`` or ``region_backbone`` (a crop, last stage).

    Raises:
        ConfigError: the backbone has no such stride, too few blocks to freeze, or cannot take
            images of this side.
    """
    shape = _probe(cfg, key, encoder_arguments(cfg, key))
    if len(shape) != 4 or shape[2] != shape[3] or 0 in shape:
        raise ConfigError(f"model.{key}", getattr(cfg, key), "a timm backbone that gives square feature maps")
    return shape[2]


def check_plain(cfg: ModelConfig) -> None:
    """Check that ``guidance_backbone`` can be used whole, as the baseline's classifier.

    Raises:
        ConfigError: it cannot take images of this side.
    """
    check_backbone_name(cfg.guidance_backbone, "model.guidance_backbone")
    _probe(cfg, "guidance_backbone", plain_arguments(cfg))


def _probe(cfg: ModelConfig, key: str, arguments: dict[str, Any]) -> tuple[int, ...]:
    """Shape of an encoder's features for two images, found on the meta device."""
    name = getattr(cfg, key)
    side, stride = arguments["side"], arguments.get("stride")
    try:
        info = backbone_info(name, side)
        if stride is None or info.has(stride):
            return _feature_shape(name, tuple(arguments.items()))
    except ConfigError:
        raise
    except Exception as error:  # a backbone refuses a size in its own way: any type, from any depth
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        side_key = "image_side" if key in _WHOLE_IMAGE else "crop"
        raise ConfigError(
            f"model.{key}", name, f"a timm backbone that takes images of model.{side_key}={side} px ({reason})"
        ) from error
    raise ConfigError("model.feature_stride", cfg.feature_stride, f"one of {_strides(info)} for {name} (model.{key})")


def _strides(info: BackboneInfo) -> str:
    """The strides of a backbone that the setting can name: its first ones are smaller than the smallest allowed."""
    bounds = next(f.metadata for f in fields(ModelConfig) if f.name == "feature_stride")
    return ", ".join(str(s) for s in sorted(set(info.reductions)) if bounds["ge"] <= s <= bounds["le"])


@functools.lru_cache(maxsize=256)
def _feature_shape(name: str, arguments: tuple[tuple[str, Any], ...]) -> tuple[int, ...]:
    keywords = dict(arguments)
    side = keywords["side"]
    with shapes_only():
        return tuple(Encoder(name, **keywords).eval()(torch.empty(2, 3, side, side)).shape)


def encoder_arguments(cfg: ModelConfig, key: str) -> dict[str, Any]:
    """Keyword arguments of :class:`Encoder` for one of the four encoders of ``cfg``.

    Encoders of the whole image give features at ``feature_stride``; those of a crop at their last stage.
    """
    whole_image = key in _WHOLE_IMAGE
    return {
        "side": cfg.image_side if whole_image else cfg.crop,
        "stride": cfg.feature_stride if whole_image else None,
        "norm": cfg.encoder_norm,
        "frozen_blocks": cfg.frozen_blocks,
    }


def plain_arguments(cfg: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of :class:`Encoder` for the plain baseline: the same normalisation and frozen blocks."""
    return {"side": cfg.image_side, "whole": True, "norm": cfg.encoder_norm, "frozen_blocks": cfg.frozen_blocks}
