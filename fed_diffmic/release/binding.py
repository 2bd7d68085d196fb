"""A final model is the one that its rounds made: what the signed statement binds, checked against the weights.

For each stage the statement names the round that was chosen, the tensors that cross the boundary and three digests:
``candidate`` over those tensors, ``base`` over all others, ``result`` over everything. ``candidate`` and ``base`` are
the very digests that stand in each site's own audit log for the requests of that round, so a model that other rounds
made, or none, does not fit the rows of the statement, and one for which all rows were made up does not fit the log of
any site (:mod:`fed_diffmic.release.model_audit`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fed_diffmic.algorithms.base import Tensors
from fed_diffmic.errors import ModelFileError
from fed_diffmic.files import tensors_digest

REMEDY = "Do not use it: ask the coordinator for the model that the rounds made, and keep this one as evidence."


def is_bound(statement: Mapping[str, Any]) -> bool:
    """Whether the statement binds the model to its rounds; those of earlier versions do not."""
    rows = statement.get("rounds")
    rows = rows if isinstance(rows, list) else []
    return "stages" in statement or any(isinstance(row, dict) and row.get("candidate") for row in rows)


def check_binding(statement: Mapping[str, Any], states: Mapping[str, Tensors], where: str) -> None:
    """The weights are what the rounds of the statement made.

    Args:
        statement: signed.
        states: full state of each stage.
        where: of the model, for people.

    Raises:
        ModelFileError: they are not.
    """
    if not is_bound(statement):
        return
    for stage, state in sorted(states.items()):
        try:
            bound = statement["stages"][stage]
            names, chosen = set(bound["exchanged"]), bound["round"]
            digests = {
                "candidate": tensors_digest({name: state[name] for name in names}),
                "base": tensors_digest({name: value for name, value in state.items() if name not in names}),
                "result": tensors_digest(state),
            }
            rows = [row for row in statement["rounds"] if (row["stage"], row["round"]) == (stage, chosen)]
            made = {row.get("candidate", "") for row in rows}
        except (AttributeError, KeyError, TypeError) as error:
            raise ModelFileError(f"the provenance of {where} does not say which round made stage {stage}") from error
        wrong = sorted(name for name, digest in digests.items() if bound.get(name) != digest)
        if wrong or not rows or made - {""} not in (set(), {bound["candidate"]}):
            raise ModelFileError(
                f"the weights of stage {stage} in {where} are not those that round {chosen} made", REMEDY
            )
