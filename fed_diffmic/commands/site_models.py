"""``fed-diffmic client model list | compare | use | own``: models that came, and those that a site makes for itself."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import ConfigError, CredentialError, ModelFileError, UsageError
from fed_diffmic.inputs import check_file

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
    if is_delivered(config, path):
        return load_delivered(config, path)
    try:
        return load_copied(config, path)
    except ModelFileError as error:
        better = _made_by_a_site(config, path)
        if better is None:
            raise
        raise better from error


def _made_by_a_site(config: SiteConfig, path: Path) -> UsageError | None:
    """What to do with a copy of a model that a site made for itself, which no coordinator signed; none: it is no such.

    It need not hold: what is said to do holds the model to what is known of it.
    """
    from fed_diffmic.config.run_names import is_run_name
    from fed_diffmic.files import read_json
    from fed_diffmic.release.made_at import MadeAt

    try:
        value = read_json(path / "final" / "model.json")
        made, run = MadeAt.from_json(value["made_at"]), value["spec"]["run_id"]
    except (KeyError, TypeError, ModelFileError):
        return None
    if made.site != config.site.name or not is_run_name(run):
        return UsageError(
            f"{path} is a model that another site made for itself, and is of use there alone",
            "Name a run's model: `fed-diffmic client model list --config site.yaml` says which there are.",
        )
    command, name = "fed-diffmic client model", shlex.quote(run)
    return UsageError(
        f"{path} is a copy of a model that this site made for itself, which is known by its run",
        f"Name its run, or the folder of its run: `{command} use {name} --take {made.kind} --config site.yaml`; or, to "
        f"judge it, `{command} compare {name} --config site.yaml`.",
    )


def _complete(config: SiteConfig, final: FinalModel, path: Path, parts: dict[str, Tensors]) -> Judged:
    """A model as this site uses it."""
    from client.device import chosen_devices
    from client.personal import complete
    from fed_diffmic.inference.finished import predictor_of

    if final.made_at is not None:
        return predictor_of(final, path, device=chosen_devices(config.site.device)[0])
    return complete(final, parts)


def _in_use(config: SiteConfig, ours: Path, *, use: bool) -> Judged | None:
    """The model in use; none: it is not what it should be, and another is about to take its place.

    Raises:
        ModelFileError: it is not what it should be, and nothing takes its place; or the audit log does not hold.
    """
    from client.kept import REMEDY, recorded
    from client.personal import own_parts

    recorded(config)  # what is wrong with the log is no other model's to mend
    try:
        final = _load(config, ours)
        return _complete(config, final, ours, own_parts(config, final, ours))
    except (ConfigError, CredentialError, ModelFileError) as error:
        if not use:
            raise ModelFileError(f"the model in use cannot be used: {error.cause}", REMEDY) from error
        print(f"NOTE: the model in use cannot be used, so it is not compared: {error.cause}", file=sys.stderr)
        return None


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
    digest = model_digest(came_from) if use and has_final(came_from) else ""
    came = _load(config, came_from)
    parts = own_parts(config, came, came_from)
    kept = _in_use(config, ours, use=use) if ours.exists() and (use or arguments.other is None) else None
    before = kept
    if arguments.other is not None:
        other = _load(config, arguments.other)
        before = _complete(config, other, arguments.other, own_parts(config, other, arguments.other))
    whole = _complete(config, came, came_from, parts)
    own = {} if came.made_at else own_predictors(config, came.spec.run_id, chosen_devices(config.site.device)[0])
    result = compare_models(config, whole, before, split=arguments.split, own=own)
    print(json.dumps(asdict(result), indent=2) if arguments.json else comparison_text(result))
    if use:
        _use(config, arguments, result, (came_from, came, parts, digest), holds=kept is not None)
    return 0


def _use(
    config: SiteConfig,
    arguments: argparse.Namespace,
    result: Comparison,
    came: tuple[Path, FinalModel, dict[str, Tensors], str],
    *,
    holds: bool,
) -> None:
    """Keep what the comparison chose, or what a person names, as the model in use.

    Args:
        came: where the model lies that came, what it is, the site's own parts of it, digest of its folder.
        holds: there is a model in use, and it is what it should be.
    """
    from client.compared import CAME, KEPT, own_name
    from client.kept import model_digest
    from simulations.own_models import own_folder

    taken = result.take
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
    _keep(config, (path, final, parts, digest), taken, holds=holds)


def _keep(
    config: SiteConfig, chosen: tuple[Path, FinalModel, dict[str, Tensors], str], taken: str, *, holds: bool
) -> None:
    """Keep a model as the one in use, and say what that means.

    Args:
        chosen: as ``came`` of :func:`_use`.
        taken: what the comparison calls it.
        holds: as of :func:`_use`.
    """
    from client.compare import REFUSED, is_in_use, take_over
    from client.kept import IN_USE, check_copy, record, signing_key

    folder, (path, final, parts, digest) = Path(str(config.site.folder)), chosen
    if holds and is_in_use(path, folder, config.site.name, parts):
        print("This model is the one in use already, and stays so.", file=sys.stderr)
        return
    refused = folder / IN_USE if (folder / IN_USE).exists() and not holds else None
    signer = signing_key(config)
    key = None if final.made_at is None or signer is None else signer.public_key()
    take_over(
        path,
        folder,
        config.site.name,
        parts,
        signer=signer,
        before=lambda copy: record(config, check_copy(config, copy, final, digest, key), copy, parts, refused),
        refused=refused is not None,
    )
    if refused is not None:
        print(f"What lay in its place is kept in {folder / REFUSED}.", file=sys.stderr)
    own = f", with this site's own part of it (--site {config.site.name})" if parts else ""
    print(f"The model is now the one in use{own}.", file=sys.stderr)
    if final.made_at is not None:
        named = "" if config.coordinator.key is None else f": --key {config.coordinator.key}.pub"
        print(f"It is {taken}, signed by this site's key{named}. It stays here.", file=sys.stderr)


def _check_weights(arguments: argparse.Namespace) -> None:
    """Refuse files of weights that are not there, by the names that they have here."""
    for name, path in (("--weights", arguments.weights), ("--prior-weights", arguments.prior_weights)):
        if path is not None:
            check_file(name, path)


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
    _check_weights(arguments)
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
