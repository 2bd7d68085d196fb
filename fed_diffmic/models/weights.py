"""Pretrained weights into encoders: timm's own, a local file, or EfficientSAM's image encoder.

Files are safetensors or state dicts read with ``weights_only``: nothing is unpickled into objects.
A file fits an encoder when it holds every one of its tensors in the right shape; what the file has
beyond them must be a part that the encoder knowingly leaves out (classifier, final norm, stages
behind the features), else it is a different network and an error.
"""

from __future__ import annotations

import functools
import logging
import math
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from fed_diffmic.config.simulation import ModelConfig
from fed_diffmic.errors import ModelFileError
from fed_diffmic.models.backbones import Encoder
from fed_diffmic.models.lite import timm_names
from fed_diffmic.models.normalisation import batch_norms
from fed_diffmic.models.without_compiler import shapes_only

log = logging.getLogger(__name__)

EFFICIENTSAM_PREFIX = "image_encoder."
PRIOR = "prior.global_encoder"
"""The encoder that ``model.prior_weights`` is of; a guidance network and a plain classifier have none."""
_SHOWN = 4


@dataclass(frozen=True)
class Loaded:
    """What a file gave to one encoder.

    Attributes:
        encoder: its name inside the module.
        tensors: number of tensors taken from the file.
        ignored: names in the file that the encoder knowingly leaves out.
    """

    encoder: str
    tensors: int
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class _Fit:
    """How a file's tensors match an encoder's (names as in the file)."""

    state: dict[str, Tensor]
    missing: tuple[str, ...]
    shapes: tuple[str, ...]
    foreign: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.shapes or self.foreign)

    def describe(self) -> str:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
            for what, names in (
                ("missing from the file", self.missing),
                ("of another shape", self.shapes),
                ("in the file and unknown to the encoder", self.foreign),
            )
            if names
        ]
        return "; ".join(parts)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the named tensors of a safetensors file or a state dict.

    A dictionary nested under ``model`` or ``state_dict`` is entered, ``module.`` in front of every
    name is taken off.

    Raises:
        ModelFileError: missing, torn, or holding objects other than tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"there is no weights file {path}", "Check model.weights and model.prior_weights.")
    _refuse_stand_in(path)
    content: Any
    try:
        content = load_file(path) if _is_safetensors(path) else torch.load(path, map_location="cpu", weights_only=True)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        BadZipFile,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OSError,
    ) as error:  # what torch's reader raises of a torn file depends on the bytes
        # Not in the message: torch advises to load the file without weights_only, which would run what is in it.
        log.debug("%s cannot be read: %s: %s", path, type(error).__name__, error)
        raise ModelFileError(
            f"{path} is neither a safetensors file nor a state dict of plain tensors",
            "Save it again as safetensors, or with torch.save(model.state_dict(), ...).",
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not tensors:
        raise ModelFileError(f"{path} holds no named tensors", "Give a state dict: a dictionary of tensors by name.")
    if all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return tensors


def _refuse_stand_in(path: Path) -> None:
    """Say it where a file only stands for the weights, or is plainly something else.

    Raises:
        ModelFileError: it is a pointer of Git LFS, a web page, or empty.
    """
    with path.open("rb") as stream:
        start = stream.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"version https://git-lfs"):
        raise ModelFileError(
            f"{path} is a pointer of Git LFS, not the weights themselves", "Fetch them: `git lfs pull` in their folder."
        )
    if start[:1] == b"<":
        raise ModelFileError(f"{path} is a web page, not weights", "Download the file itself, not the page about it.")
    if not start:
        raise ModelFileError(f"{path} is empty", "Download it again.")


def _is_safetensors(path: Path) -> bool:
    """A safetensors file starts with the length of its JSON header; a state dict with a zip's or a pickle's mark."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return path.suffix == ".safetensors" or (len(start) == 9 and start[8:] == b"{" and start[:2] != b"PK")


@functools.lru_cache(maxsize=64)
def _whole_names(name: str, arguments: tuple[tuple[str, Any], ...]) -> frozenset[str]:
    """Tensor names of a backbone as published, classifier included."""
    with shapes_only():
        return frozenset(timm.create_model(name, **dict(arguments)).state_dict())


def _published_names(encoder: Encoder) -> frozenset[str]:
    changed = ("class_token", "no_embed_class", "global_pool")
    plain = tuple((k, v) for k, v in sorted(encoder.arguments.items()) if k not in changed)
    return _whole_names(encoder.name, plain)


def _match(encoder: Encoder, tensors: Mapping[str, Tensor]) -> _Fit:
    """Compare a file's tensors with an encoder's, position tables resampled."""
    prefix = EFFICIENTSAM_PREFIX if any(k.startswith(EFFICIENTSAM_PREFIX) for k in tensors) else ""
    own = encoder.net.state_dict()
    tensors = timm_names(tensors, _published_names(encoder))
    state: dict[str, Tensor] = {}
    shapes: list[str] = []
    foreign: list[str] = []
    ignored: list[str] = []
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name not in own:
            known = prefix and (not key.startswith(prefix) or name.startswith("neck."))
            (ignored if known or name in _published_names(encoder) else foreign).append(key)
            continue
        if name == "pos_embed" and value.shape != own[name].shape:
            value = _resample_positions(encoder.net, value, own[name], antialias=not prefix)
        if value.shape == own[name].shape:
            state[name] = value
        else:
            shapes.append(f"{key} {tuple(value.shape)} for {tuple(own[name].shape)}")
    wrong = {s.split(" ")[0].removeprefix(prefix) for s in shapes}
    missing = [prefix + n for n in own if n not in state and n not in wrong and not n.endswith("num_batches_tracked")]
    return _Fit(state, tuple(missing), tuple(shapes), tuple(foreign), tuple(ignored))


def _resample_positions(net: nn.Module, table: Tensor, own: Tensor, *, antialias: bool) -> Tensor:
    """A position table ``(1, rows, W)`` for this encoder's patch grid; returned as it is if it cannot be.

    EfficientSAM's own code resamples bicubically without antialiasing and never uses the first row
    (the class token's); timm resamples its own tables with antialiasing.
    """
    if table.dim() != 3 or table.shape[2] != own.shape[2]:
        return table
    kept = 0 if getattr(net, "no_embed_class", False) else int(getattr(net, "num_prefix_tokens", 0))
    size = math.isqrt(own.shape[1] - kept)
    extra = next((n for n in (0, 1) if math.isqrt(table.shape[1] - n) ** 2 == table.shape[1] - n), None)
    if extra is None or kept > extra or size * size != own.shape[1] - kept:
        return table
    first, grid = table[:, :kept].float(), table[:, extra:].float()
    if antialias:
        return torch.cat([first, resample_abs_pos_embed(grid, [size, size], num_prefix_tokens=0)], dim=1)
    side = math.isqrt(grid.shape[1])
    image = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if side != size:
        image = F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False)
    return torch.cat([first, image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _take(encoder: Encoder, fit: _Fit, name: str) -> Loaded:
    encoder.net.load_state_dict(fit.state, strict=False)
    if fit.ignored:
        log.info(
            "weights of %s: %d tensors taken; not part of the encoder: %s", name, len(fit.state), ", ".join(fit.ignored)
        )
    return Loaded(name, len(fit.state), fit.ignored)


def load_encoder(encoder: Encoder, path: str | Path, name: str = "encoder") -> Loaded:
    """Load a weights file into one encoder.

    Args:
        encoder: where to.
        path: safetensors or state dict; EfficientSAM's checkpoint is recognised by its names.
        name: what messages call the encoder.

    Raises:
        ModelFileError: unreadable, or not this network; says which names and shapes, the first few and how many.
    """
    return _take(encoder, _fitting(encoder, read_weights(path), path, name), name)


def _fitting(encoder: Encoder, tensors: Mapping[str, Tensor], path: str | Path, name: str) -> _Fit:
    """How a file's tensors fit an encoder.

    Raises:
        ModelFileError: they do not.
    """
    fit = _match(encoder, tensors)
    if not fit.fits:
        raise _misfit(path, name, encoder, fit)
    return fit


def _misfit(path: str | Path, name: str, encoder: Encoder, fit: _Fit) -> ModelFileError:
    return ModelFileError(
        f"{path} does not fit {name} ({encoder.name}): of its tensors {len(fit.state)} fit; {fit.describe()}",
        "Give the weights of this backbone, or name the backbone that the file was made for.",
    )


def load_pretrained(module: nn.Module, cfg: ModelConfig) -> list[Loaded]:
    """Load what ``model.pretrained``, ``model.weights`` and ``model.prior_weights`` ask for into a module's encoders.

    Runs at the coordinator (or wherever a model starts); sites receive the weights. In this order,
    so that a local file has the last word: timm's published weights into every encoder,
    ``model.weights`` into every encoder that it fits, ``model.prior_weights`` into the global
    encoder of the image prior, where the module has one.

    Args:
        module: guidance network, DiffMIC or plain classifier.
        cfg: the model.

    Returns:
        what each encoder took from local files.

    Raises:
        ModelFileError: a file that is unreadable or fits no encoder.
    """
    encoders = _encoders(module)
    fresh = not cfg.pretrained and cfg.weights is None
    if fresh and cfg.encoder_norm == "frozen" and any(map(batch_norms, encoders.values())):
        log.warning("model.encoder_norm=frozen without pretrained weights: batch norm stays at mean 0, variance 1")
    if cfg.pretrained:
        for name, encoder in encoders.items():
            _take(encoder, _published_fit(encoder, name), name)
    loaded = _load_shared(encoders, cfg.weights) if cfg.weights is not None else []
    prior = encoders.get(PRIOR)
    if cfg.prior_weights is not None and prior is not None:
        loaded = [item for item in loaded if item.encoder != PRIOR]
        loaded.append(load_encoder(prior, cfg.prior_weights, PRIOR))
    return loaded


def check_pretrained(modules: Iterable[nn.Module], cfg: ModelConfig) -> None:
    """Whether :func:`load_pretrained` would have what it needs for each of several modules; nothing is changed.

    Each file is read once. Modules that hold shapes alone will do.

    Raises:
        ModelFileError: as :func:`load_pretrained`.
    """
    shared = None if cfg.weights is None else read_weights(cfg.weights)
    own = None if cfg.prior_weights is None else read_weights(cfg.prior_weights)
    fetched = set()
    for encoders in map(_encoders, modules):
        for name, encoder in encoders.items() if cfg.pretrained else ():
            if (encoder.name, encoder.arguments.get("img_size")) not in fetched:
                fetched.add((encoder.name, encoder.arguments.get("img_size")))
                _published_fit(encoder, name)
        if cfg.weights is not None and shared is not None:
            _shared_fits(encoders, shared, cfg.weights)
        if cfg.prior_weights is not None and own is not None and PRIOR in encoders:
            _fitting(encoders[PRIOR], own, cfg.prior_weights, PRIOR)


def _encoders(module: nn.Module) -> dict[str, Encoder]:
    return {name: m for name, m in module.named_modules() if isinstance(m, Encoder)}


def _shared_fits(encoders: Mapping[str, Encoder], tensors: Mapping[str, Tensor], path: str) -> dict[str, _Fit]:
    """How a file fits those encoders that it fits.

    Raises:
        ModelFileError: it fits none.
    """
    fits = {name: _match(encoder, tensors) for name, encoder in encoders.items()}
    good = {name: fit for name, fit in fits.items() if fit.fits}
    if not good:
        closest = max(fits, key=lambda name: len(fits[name].state))
        raise _misfit(path, closest, encoders[closest], fits[closest])
    return good


def _load_shared(encoders: Mapping[str, Encoder], path: str) -> list[Loaded]:
    fits = _shared_fits(encoders, read_weights(path), path)
    loaded = [_take(encoders[name], fit, name) for name, fit in fits.items()]
    others = sorted(set(encoders) - set(fits))
    if others:
        log.info("model.weights is of another network than %s, which keep their own weights", ", ".join(others))
    return loaded


def _published_fit(encoder: Encoder, name: str) -> _Fit:
    """timm's published weights, through timm's own download and resampling, as they fit an encoder."""
    size = {"img_size": encoder.arguments["img_size"]} if "img_size" in encoder.arguments else {}
    try:
        published = timm.create_model(encoder.name, pretrained=True, **size)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"timm's weights for {encoder.name} cannot be had: {str(error).splitlines()[0][:200]}",
            "Without a connection, download the file elsewhere, name it in model.weights and set "
            "model.pretrained=false.",
        ) from error
    return _fitting(encoder, published.state_dict(), "timm's published file", name)
