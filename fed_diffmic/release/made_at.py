"""Where a model was made that one site made for itself, and of what: a part of its ``model.json``.

Such a model (``fed-diffmic client model own``) lies in a folder like that of a finished run, signed by the site's key
instead of the coordinator's, and never leaves the site. A mixture is two models: the global one in ``final/`` and the
one that the site trained alone in ``own/final/``, which this part names by digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fed_diffmic.errors import ModelFileError

ALONE, MIXTURE = "alone", "mixture"
KINDS = (ALONE, "finetune", "head", MIXTURE)
"""In the order in which they are made and judged."""
OWN = "own"
"""Folder of the second model of a mixture, beside ``final/``."""


@dataclass(frozen=True)
class MadeAt:
    """How a site made a model for itself.

    Attributes:
        site: its name.
        kind: one of :data:`KINDS`.
        of: SHA-256 of the global model's ``model.json`` as it came; empty: trained alone.
        share: mixture: of the probabilities, how much is the own model's.
        own: mixture: SHA-256 of ``own/final/model.json``.
    """

    site: str
    kind: str
    of: str = ""
    share: float = 0.0
    own: str = ""

    def to_json(self) -> dict[str, Any]:
        """For ``model.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> MadeAt:
        """Strict inverse.

        Raises:
            ModelFileError: it is none.
        """
        wanted = {"site": str, "kind": str, "of": str, "share": float, "own": str}
        if not isinstance(value, Mapping) or set(value) != set(wanted):
            raise ModelFileError("model.json does not say how the site made this model")
        if any(type(value[name]) is not kind for name, kind in wanted.items()) or value["kind"] not in KINDS:
            raise ModelFileError("model.json does not say how the site made this model")
        if not math.isfinite(value["share"]) or not 0 <= value["share"] <= 1:
            raise ModelFileError("the share of a mixture in model.json is not within 0 and 1")
        return cls(**value)
