"""Any Flower strategy, by class path, behind our own screening and resume.

Only the averaging of a strategy is used, and only on trainable float parameters: batch-norm buffers
are averaged and counters take the largest value as in our own algorithms, because Flower's
averaging turns integers into floats. Whom to train, waiting and checks stay ours. A strategy's state
(FedAdam's moments, FedAvgM's momentum, ...) is read from its attributes after each round and put
back before the next, so a resumed run equals an uninterrupted one; a strategy that keeps something
that cannot be saved is refused rather than resumed wrongly.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fed_diffmic.algorithms import Algorithm, SiteUpdate, Tensors, build_algorithm
from fed_diffmic.algorithms.base import weighted_average
from fed_diffmic.algorithms.shares import capped
from fed_diffmic.config.simulation import StageConfig, StrategyConfig
from fed_diffmic.errors import ConfigError, RoundError
from fed_diffmic.transport.identity import ensure_task_identity

ARRAY = (np.ndarray, np.generic)  # arithmetic on arrays of shape () gives scalars
CLASS_PATH = "an import path of a class derived from flwr.serverapp.strategy.Strategy"


def server_algorithm(config: StrategyConfig, stage: StageConfig | None = None, max_share: float = 1.0) -> Algorithm:
    """A stage's algorithm: one of ours, or a Flower strategy (``strategy.name=flower``).

    Args:
        max_share: the largest share of one site in its sums.

    Raises:
        ConfigError: no such algorithm, class or option.
    """
    if config.name == "flower":
        return FlowerAlgorithm(config, max_share)
    return build_algorithm(config, stage, max_share)


class FlowerAlgorithm(Algorithm):
    """A Flower strategy as one of our algorithms; its site half is plain local training.

    Args:
        config: ``class_path`` and ``options`` (keyword arguments of the strategy).
        max_share: the largest share of one site in the number of images that the strategy is told.

    Raises:
        ConfigError: the class cannot be imported, is no strategy, or refuses its options.
    """

    def __init__(self, config: StrategyConfig, max_share: float = 1.0) -> None:
        super().__init__(config, max_share=max_share)
        self._class = load_strategy_class(config.class_path)
        self._fresh()

    def aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        server_state: Tensors,
        round_index: int,
        sites: int | None = None,
    ) -> tuple[Tensors, Tensors]:
        """One round of the strategy.

        Raises:
            ConfigError: the strategy needs something of its sites that ours do not do, or keeps state
                that cannot be saved.
            RoundError: it returned no weights (for example too few sites for what it assumes).
        """
        with quiet_flower():
            return self._aggregate(current, kinds, updates, server_state, round_index)

    def _aggregate(
        self,
        current: Tensors,
        kinds: Mapping[str, str],
        updates: Sequence[SiteUpdate],
        server_state: Tensors,
        round_index: int,
    ) -> tuple[Tensors, Tensors]:
        ordered = sorted(updates, key=lambda u: u.site)
        names = [name for name, kind in kinds.items() if kind == "parameter"]
        strategy, untouched = self._fresh(), self._fresh()
        restore_state(strategy, server_state)
        sent = {name: current[name] for name in names}
        requests = self._configure(strategy, sent, len(ordered), round_index)
        counts = self._counts(ordered)
        replies = [
            Message(
                RecordDict(
                    {
                        "arrays": _record({name: update.tensors[name] for name in names}),
                        "metrics": MetricRecord({"num-examples": counts[update.site]}),
                    }
                ),
                reply_to=request,
            )
            for update, request in zip(ordered, requests, strict=True)
        ]
        try:
            arrays, _ = strategy.aggregate_train(round_index, replies)
        except Exception as error:
            raise RoundError(f"{self.config.class_path} failed to aggregate {len(ordered)} updates: {error}") from error
        if arrays is None:
            raise RoundError(
                f"{self.config.class_path} returned no weights for {len(ordered)} updates",
                "Check strategy.options against the number of sites.",
            )
        rest = {name: kind for name, kind in kinds.items() if kind != "parameter"}
        result = weighted_average(ordered, rest, self.site_weights(ordered))
        for name in names:
            result[name] = np.asarray(arrays[name].numpy().astype(current[name].dtype))
        return {name: result[name] for name in kinds}, saved_state(strategy, untouched)

    def _counts(self, updates: Sequence[SiteUpdate]) -> dict[str, int]:
        """Images of each site as the strategy is told, whole numbers: those that are capped are rounded down."""
        said = {u.site: u.num_examples if self.config.weighting == "examples" else 1 for u in updates}
        level = capped({site: float(count) for site, count in said.items()}, self.max_share)
        return {site: min(count, max(1, math.floor(level[site]))) for site, count in said.items()}

    def _fresh(self) -> Strategy:
        options = dict(self.config.options)
        try:
            return self._class(**options)
        except Exception as error:
            raise ConfigError(
                "strategy.options", json.dumps(options, default=str), f"arguments of {self.config.class_path} ({error})"
            ) from error

    def _configure(self, strategy: Strategy, sent: Tensors, count: int, round_index: int) -> list[Message]:
        """Let the strategy see the round's weights; its own choice of nodes is not used."""
        ensure_task_identity()
        grid = _Placeholder(
            max(count, int(getattr(strategy, "min_available_nodes", 0)), int(getattr(strategy, "min_train_nodes", 0)))
        )
        messages = list(strategy.configure_train(round_index, _record(sent), ConfigRecord(), grid))
        asked = {key for message in messages for record in message.content.config_records.values() for key in record}
        foreign = ", ".join(sorted(asked - {"server-round"}))
        if foreign:
            raise ConfigError(
                "strategy.class_path",
                self.config.class_path,
                f"a strategy whose sites train as usual; this one sends its sites {foreign}",
                "For FedProx use strategy=fedprox.",
            )
        return [Message(RecordDict(), dst_node_id=node + 1, message_type=MessageType.TRAIN) for node in range(count)]


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Keep Flower's own account of each round (nodes it did not choose) off the terminal."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def load_strategy_class(path: str | None) -> type[Strategy]:
    """The class that ``strategy.class_path`` names.

    Raises:
        ConfigError: it is missing, cannot be imported, or is no Flower strategy.
    """
    module, _, name = (path or "").rpartition(".")
    if not module:
        raise ConfigError("strategy.class_path", path, CLASS_PATH)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError("strategy.class_path", path, CLASS_PATH) from error
    if not isinstance(found, type) or not issubclass(found, Strategy):
        raise ConfigError("strategy.class_path", path, CLASS_PATH)
    return found


def saved_state(strategy: Strategy, untouched: Strategy) -> Tensors:
    """What a strategy keeps between rounds, as named arrays.

    Args:
        untouched: the same strategy before its first round: what still equals it needs no saving.

    Raises:
        ConfigError: an attribute changed into something that arrays cannot hold.
    """
    result: Tensors = {}
    for name, value in sorted(vars(strategy).items()):
        if isinstance(value, ArrayRecord):
            result |= {f"{name}/record/{n:06d}/{key}": a.numpy().copy() for n, (key, a) in enumerate(value.items())}
        elif isinstance(value, dict) and value and all(isinstance(v, ARRAY) for v in value.values()):
            result |= {f"{name}/dict/{n:06d}/{key}": np.array(v) for n, (key, v) in enumerate(value.items())}
        elif isinstance(value, list) and value and all(isinstance(v, ARRAY) for v in value):
            result |= {f"{name}/list/{n:06d}/": np.array(v) for n, v in enumerate(value)}
        elif isinstance(value, (bool, int, float, np.generic)):
            if value != getattr(untouched, name, None):
                result[f"{name}/number/000000/{type(value).__name__}"] = np.asarray(value)
        elif not _same(value, getattr(untouched, name, None)):
            raise ConfigError(
                "strategy.class_path",
                f"{type(strategy).__module__}.{type(strategy).__qualname__}",
                f"a strategy whose state can be saved; its attribute {name} ({type(value).__name__}) cannot",
            )
    return result


def restore_state(strategy: Strategy, state: Tensors) -> None:
    """Put back what :func:`saved_state` took."""
    groups: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for full, value in sorted(state.items()):
        name, form, _, key = full.split("/", 3)
        members = groups.setdefault((name, form), {})
        members[key if form != "list" else str(len(members))] = value
    for (name, form), members in groups.items():
        if form == "record":
            setattr(strategy, name, _record(members))
        elif form == "dict":
            setattr(strategy, name, {key: value.copy() for key, value in members.items()})
        elif form == "list":
            setattr(strategy, name, [value.copy() for value in members.values()])
        else:
            ((kind, value),) = members.items()
            plain = {"int": int, "float": float, "bool": bool}.get(kind)
            setattr(strategy, name, plain(value) if plain else value[()])


def _same(value: object, other: object) -> bool:
    if value is other:
        return True
    immutable = (str, bytes, type(None), tuple, frozenset)
    plain = isinstance(value, immutable) or value in ({}, [], set())
    return plain and type(value) is type(other) and value == other


def _record(tensors: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value, order="C")) for name, value in tensors.items()})


class _Placeholder(Grid):
    """Stands in where a strategy looks for nodes; nothing is ever sent through it."""

    def __init__(self, count: int) -> None:
        self._count = count

    def set_run(self, run: Any) -> None:
        """Nothing to set."""

    @property
    def run(self) -> Any:
        """No run."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the constructor does."""
        return Message(content, dst_node_id=dst_node_id, message_type=message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """As many as the strategy wants to see, so that it does not wait for more."""
        return list(range(1, self._count + 1))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Nothing is sent."""
        return []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Nothing comes."""
        return []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Nothing is sent, nothing comes."""
        return []
