"""Any strategy of Flower; its server half is built by the coordinator's room, and sites train freely.

``strategy.options`` holds the keyword arguments of the strategy, which only its class can judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fed_diffmic.config.fields import option
from fed_diffmic.config.owners import ALGORITHMS, Own, register


@dataclass(frozen=True)
class Options(Own):
    """Any strategy class of Flower, by class_path, behind the same screening."""

    free: ClassVar[bool] = True

    class_path: str | None = option(
        None, "import path of a strategy, for example flwr.serverapp.strategy.FedMedian", exclusive=True
    )


register(ALGORITHMS, "flower", Options)
