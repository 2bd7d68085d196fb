"""``fed-diffmic client model list | compare | use | own``: models that came, and those that a site makes for itself."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from client.compare import Judged
    from client.compared import Comparison
    from fed_diffmic.algorithms.base import Tensors
    from fed_diffmic.config.site import SiteConfig
    from fed_diffmic.release.final import FinalModel
    from simulations.own_models import Made

WAYS = ("list", "compare", "use", "own")


def model(config: SiteConfig, arguments: argparse.Namespace, words: list[str]) -> int:
    """List the models that were sent, compare one with the model in use, use it, or make own ones of it.

    Args:
        words: what stood after ``model``.
    """
    if not words or words[0] not in WAYS:
        raise UsageError(
            f"fed-diffmic client model does not know {' '.join(words) or 'what to do'}", f"There is {', '.join(WAYS)}."
        )
    way, names = words[0], words[1:]
    if way == "list":
        _list(config, as_json=arguments.json)
        return 0
    if len(names) != 1 and not (way == "own" and names):
        raise UsageError(
            f"fed-diffmic client model {way} needs one model",
            "Name its run, as `client model list` does, or the folder of a finished run.",
        )
    _check_options(arguments, way)
    from client.models import find_model

    came_from = find_model(config, names[0])
    if way == "own":
        return _own(config, arguments, came_from, names[1:])
    return _compare(config, arguments, came_from, use=way == "use")


def _check_options(arguments: argparse.Namespace, way: str) -> None:
    """An option that an action does not look at is refused: who gave it takes it for done."""
    elsewhere = {"--take": (arguments.take, "use"), "--even-if-worse": (arguments.even_if_worse, "use")}
    elsewhere |= {"--weights": (arguments.weights, "own"), "--prior-weights": (arguments.prior_weights, "own")}
    for name, (value, of) in elsewhere.items():
        if value and way != of:
            raise UsageError(f"{name} says nothing to `client model {way}`", f"It is of `client model {of}`.")


def _list(config: SiteConfig, *, as_json: bool) -> None:
    from dataclasses import replace

    from client.models import facts, listed, listing
    from simulations.own_models import own_kinds

    models = [replace(one, own=tuple(own_kinds(config, one.run))) for one in listed(config)]
    print(json.dumps(facts(models), indent=2) if as_json else listing(models))


def _load(config: SiteConfig, path: Path) -> FinalModel:
    """A model, verified as what it is: the one in use, one that was sent, one that the site made, or a copied one."""
    from client.kept import IN_USE, load_kept
    from client.models import is_delivered, load_copied, load_delivered
    from simulations.own_models import is_own, load_own

    ours = Path(str(config.site.folder)) / IN_USE
    if ours.exists() and path.resolve() == ours.resolve():
        return load_kept(config, path)
    if is_own(config, path):
        return load_own(config, path)
    return load_delivered(config, path) if is_delivered(config, path) else load_copied(config, path)


def _complete(config: SiteConfig, final: FinalModel, path: Path, parts: dict[str, Tensors]) -> Judged:
    """A model as this site uses it."""
    from client.device import chosen_devices
    from client.personal import complete
    from fed_diffmic.inference.finished import predictor_of

    if final.made_at is not None:
        return predictor_of(final, path, device=chosen_devices(config.site.device)[0])
    return complete(final, parts)


def _compare(config: SiteConfig, arguments: argparse.Namespace, came_from: Path, *, use: bool) -> int:
    from dataclasses import asdict

    from client.compare import compare_models
    from client.compared import comparison_text
    from client.device import chosen_devices
    from client.kept import IN_USE, model_digest
    from client.personal import own_parts
    from fed_diffmic.config.folders import has_final
    from simulations.own_models import own_predictors

    ours = Path(str(config.site.folder)) / IN_USE
    in_use = arguments.other or (ours if ours.exists() else None)
    digest = model_digest(came_from) if use and has_final(came_from) else ""
    came = _load(config, came_from)
    parts = own_parts(config, came, came_from)
    before: Judged | None = None
    if in_use is not None:
        final = _load(config, in_use)
        before = _complete(config, final, in_use, own_parts(config, final, in_use))
    whole = _complete(config, came, came_from, parts)
    own = {} if came.made_at else own_predictors(config, came.spec.run_id, chosen_devices(config.site.device)[0])
    result = compare_models(config, whole, before, split=arguments.split, own=own)
    print(json.dumps(asdict(result), indent=2) if arguments.json else comparison_text(result))
    if use:
        _use(config, arguments, result, (came_from, came, parts, digest))
    return 0


def _use(
    config: SiteConfig,
    arguments: argparse.Namespace,
    result: Comparison,
    came: tuple[Path, FinalModel, dict[str, Tensors], str],
) -> None:
    """Keep what the comparison chose, or what a person names, as the model in use.

    Args:
        came: where the model lies that came, what it is, the site's own parts of it, digest of its folder.
    """
    from client.compare import take_over
    from client.compared import CAME, KEPT, own_name
    from client.kept import check_copy, model_digest, record, signing_key
    from simulations.own_models import own_folder

    folder, taken = Path(str(config.site.folder)), result.take
    if arguments.take is not None and came[1].made_at is not None:
        raise UsageError(
            f"--take {arguments.take}: {came[0]} is one that this site made, with no others to choose from",
            f"Name the run: `fed-diffmic client model use {came[1].spec.run_id} --take {arguments.take} --config "
            "site.yaml`; or leave --take out, with --even-if-worse to take this one in any case.",
        )
    if arguments.take is not None:
        taken = CAME if arguments.take == "global" else own_name(arguments.take)
        if taken != CAME and arguments.take not in result.own:
            raise UsageError(
                f"--take {arguments.take}: this site made no such model of this run",
                f"Make it: `fed-diffmic client model own {came[1].spec.run_id} {arguments.take} --config site.yaml`.",
            )
    elif arguments.even_if_worse:
        taken = CAME
    if taken == KEPT:
        print(f"Not taken over: {result.why} To take it in any case: --even-if-worse.", file=sys.stderr)
        return
    path, final, parts, digest = came
    if taken != CAME:
        kind = next(kind for kind in result.own if own_name(kind) == taken)
        path, parts = own_folder(config, final.spec.run_id) / kind, {}
        digest, final = model_digest(path), _load(config, path)
    signer = signing_key(config)
    key = None if final.made_at is None or signer is None else signer.public_key()
    take_over(
        path,
        folder,
        config.site.name,
        parts,
        signer=signer,
        before=lambda copy: record(config, check_copy(config, copy, final, digest, key), copy, parts),
    )
    own = f", with this site's own part of it (--site {config.site.name})" if parts else ""
    print(f"The model is now the one in use{own}.", file=sys.stderr)
    if final.made_at is not None:
        named = "" if config.coordinator.key is None else f": --key {config.coordinator.key}.pub"
        print(f"It is {taken}, signed by this site's key{named}. It stays here.", file=sys.stderr)


def _own(config: SiteConfig, arguments: argparse.Namespace, came_from: Path, kinds: list[str]) -> int:
    """Make own models of one that came."""
    from client.device import chosen_devices
    from client.kept import model_digest
    from client.personal import complete, own_parts
    from client.source import SiteSource
    from client.studies import kept_study
    from fed_diffmic.release.made_at import ALONE, KINDS, MIXTURE
    from simulations.alone import alone_spec, starts_elsewhere, train_alone
    from simulations.own_models import UNPROTECTED, Came, make_own

    came, digest = _load(config, came_from), model_digest(came_from)
    kinds = kinds or list(came.spec.strategy.personal) or ["finetune"]
    wrong = [kind for kind in kinds if kind not in KINDS]
    if wrong or came.made_at is not None:
        what = f"{wrong[0]} is no model that a site makes" if wrong else f"{came_from} is made by a site already"
        raise UsageError(what, f"Name a run's model and some of {', '.join(KINDS)}.")
    if (arguments.weights or arguments.prior_weights) and not {ALONE, MIXTURE} & set(kinds):
        raise UsageError(
            f"--weights and --prior-weights say nothing to {', '.join(kinds)}: those start from the model that came",
            "Name alone or mixture among the kinds, or leave the files out.",
        )
    device, folder = chosen_devices(config.site.device)[0], Path(str(config.site.folder))
    data = SiteSource(config)(None, came.spec, {})
    spec = alone_spec(came.spec, config.site.name, device, arguments.weights, arguments.prior_weights)
    stages = list(came.states)
    study = kept_study(folder, came.spec.run_id)
    first = {} if study is None else dict(study.document["initial"].get(stages[0], {}))

    def alone(work: Path) -> FinalModel:
        if starts_elsewhere(spec, stages[0], first):
            print(
                "NOTE: the run started from other first weights than training alone does here, so the two are not "
                "compared on equal terms. Give the file that the coordinator names in model.weights: --weights FILE "
                "(--prior-weights FILE).",
                file=sys.stderr,
            )
        return train_alone(spec, data, work, stages)

    def said(made: Made) -> None:
        print(f"{made.kind}: {made.sentence}. Kept in {made.folder}", file=sys.stderr)

    whole = Came(complete(came, own_parts(config, came, came_from)), digest)
    make_own(config, whole, data, kinds, device, alone, said)
    if config.privacy.name == "dp_sgd":
        print(UNPROTECTED, file=sys.stderr)
    name = came.spec.run_id
    print(f"They stay at this site. Is one better? `fed-diffmic client model compare {name} --config FILE` says it.")
    print("For research, not a medical device.")
    return 0
