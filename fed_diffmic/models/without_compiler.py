"""timm, loaded without torch's compiler.

timm imports torchvision, one of whose files imports ``torch._dynamo`` for a function that only code under
``torch.compile`` asks, and marks a function of its own as not to be compiled. That is half of all processor seconds of
a start (symbolic algebra, code generators), and nothing here is compiled. So both get a stand-in while they are loaded,
and so does what finds the shapes of a network that holds no numbers. Whoever imports the compiler later gets the real
one.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"


def load_timm() -> None:
    """Import timm; what it was given instead of the compiler is gone afterwards."""
    with _compiler_away() if "torchvision" not in sys.modules else contextlib.nullcontext():
        importlib.import_module("timm")


@contextlib.contextmanager
def _compiler_away() -> Iterator[None]:
    """Inside it a stand-in is in the compiler's place, where that was not loaded yet."""
    if COMPILER in sys.modules:
        yield
        return
    import torch

    placed: dict[str, ModuleType] = {COMPILER: _StandIn(COMPILER), f"{COMPILER}.utils": ModuleType(f"{COMPILER}.utils")}
    utils: Any = placed[f"{COMPILER}.utils"]
    utils.is_compile_supported = is_compile_supported
    vars(placed[COMPILER]).update(__path__=[], utils=utils, disable=not_compiled)
    sys.modules.update(placed)
    try:
        yield
    finally:
        _take_away(placed)
        if isinstance(vars(torch).get("_dynamo"), _StandIn):
            delattr(torch, "_dynamo")


class _StandIn(ModuleType):
    """In the compiler's place; what it does not have itself is the compiler's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python's own import asks of a module
            raise AttributeError(name)
        _take_away({n: m for n, m in sys.modules.items() if n in (COMPILER, f"{COMPILER}.utils")})
        return getattr(importlib.import_module(COMPILER), name)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Inside it tensors are made on the device ``meta``, which holds no numbers; none are drawn, nothing is compiled.

    There torch draws, and finds the shapes of results, in Python, by way of its compiler: seconds of a start.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    drawing = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.bernoulli_, torch.Tensor.erfinv_}

    class WithoutDrawing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in drawing else func(*args, **(kwargs or {}))

    with _compiler_away(), torch.device("meta"), WithoutDrawing():
        yield


def is_compile_supported(device_type: str) -> bool:
    """What torch's compiler says."""
    from torch._dynamo.utils import is_compile_supported as real

    return bool(real(device_type))


def not_compiled(fn: Callable[..., Any] | None = None, recursive: bool = True, **_: Any) -> Any:
    """A function, or a decorator, as it is: nothing is compiled."""
    return (lambda inner: inner) if fn is None else fn


def _take_away(placed: dict[str, ModuleType]) -> None:
    for name, module in placed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
