"""fed_diffmic: federated multi-site training of the DiffMIC-v2 medical image classifier.

``import fed_diffmic as fd`` is all that the interface for Python needs (docs/api.md); each name is loaded when it is
first used (PEP 562), so that the import itself costs nothing. ``__init__.pyi`` says the same to type checkers.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Model": "fed_diffmic.api.models",
    "Predictions": "fed_diffmic.inference.predictions",
    "Run": "fed_diffmic.api.runs",
    "datasets": "fed_diffmic.api.datasets",
    "load_model": "fed_diffmic.api.models",
    "load_run": "fed_diffmic.api.runs",
    "partition": "fed_diffmic.api.datasets",
    "simulate": "fed_diffmic.api.runs",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Load a name of the interface, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    value = home if home.__name__.endswith(f".{name}") else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """What is there, loaded or not."""
    return sorted({*globals(), *_HOMES})
