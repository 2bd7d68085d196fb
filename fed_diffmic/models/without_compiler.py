"""timm, loaded without torch's compiler.

timm imports torchvision, one of whose files imports ``torch._dynamo`` for a function that only code under
``torch.compile`` asks, and marks a function of its own as not to be compiled. That is half of all processor seconds of
a start (symbolic algebra, code generators), and nothing here is compiled. So both get a stand-in while they are loaded.
Whoever imports the compiler later gets the real one: torch's optimizers do, in the first training step.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.overrides import TorchFunctionMode

COMPILER = "torch._dynamo"


def load_timm() -> None:
    """Import timm; what it was given instead of the compiler is gone afterwards."""
    if COMPILER in sys.modules or "torchvision" in sys.modules:
        importlib.import_module("timm")
        return
    import torch

    placed: dict[str, ModuleType] = {COMPILER: _StandIn(COMPILER), f"{COMPILER}.utils": ModuleType(f"{COMPILER}.utils")}
    utils: Any = placed[f"{COMPILER}.utils"]
    utils.is_compile_supported = is_compile_supported
    vars(placed[COMPILER]).update(__path__=[], utils=utils, disable=not_compiled)
    sys.modules.update(placed)
    try:
        importlib.import_module("timm")
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


def without_drawing() -> TorchFunctionMode:
    """Leave out random draws into tensors, inside a ``with``: for networks on the device ``meta``, which hold nothing.

    There torch draws in Python, by way of its compiler: seconds of a start for numbers that nobody can read.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    drawing = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.bernoulli_, torch.Tensor.erfinv_}

    class WithoutDrawing(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in drawing else func(*args, **(kwargs or {}))

    return WithoutDrawing()


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
