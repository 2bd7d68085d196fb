"""``fed-diffmic client model list | compare | use``: models that came, on this site's own images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.errors import UsageError

if TYPE_CHECKING:
    from fed_diffmic.config.site import SiteConfig
    from fed_diffmic.release.final import FinalModel

WAYS = ("list", "compare", "use")


def model(config: SiteConfig, arguments: argparse.Namespace, words: list[str]) -> int:
    """List the models that were sent, compare one with the model in use, or use it.

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
    if len(names) != 1:
        raise UsageError(
            f"fed-diffmic client model {way} needs one model",
            "Name its run, as `client model list` does, or the folder of a finished run.",
        )
    from client.models import find_model

    return _compare(config, arguments, find_model(config, names[0]), use=way == "use")


def _list(config: SiteConfig, *, as_json: bool) -> None:
    from client.models import facts, listed, listing

    models = listed(config)
    print(json.dumps(facts(models), indent=2) if as_json else listing(models))


def _compare(config: SiteConfig, arguments: argparse.Namespace, came_from: Path, *, use: bool) -> int:
    from dataclasses import asdict

    from client.compare import KEPT, compare_models, comparison_text, take_over
    from client.kept import IN_USE, check_copy, coordinator_key, load_kept, model_digest, record, signing_key
    from client.models import is_delivered, load_delivered
    from client.personal import complete, own_parts
    from fed_diffmic.config.folders import has_final
    from fed_diffmic.release.final import load_final

    folder = Path(str(config.site.folder))
    ours = folder / IN_USE
    in_use = arguments.other or (ours if ours.exists() else None)

    def load(path: Path) -> FinalModel:
        if ours.exists() and path.resolve() == ours.resolve():
            return load_kept(config, path)
        if is_delivered(config, path):
            return load_delivered(config, path)
        return load_final(path, public_key=coordinator_key(config))

    digest = model_digest(came_from) if use and has_final(came_from) else ""
    came = load(came_from)
    parts = own_parts(config, came, came_from)
    before = None
    if in_use is not None:
        before = load(in_use)
        before = complete(before, own_parts(config, before, in_use))
    result = compare_models(config, complete(came, parts), before, split=arguments.split)
    print(json.dumps(asdict(result), indent=2) if arguments.json else comparison_text(result))
    if use and result.take == KEPT and not arguments.even_if_worse:
        print(f"Not taken over: {result.why} To take it in any case: --even-if-worse.", file=sys.stderr)
    elif use:
        take_over(
            came_from,
            folder,
            config.site.name,
            parts,
            signer=signing_key(config),
            before=lambda copy: record(config, check_copy(config, copy, came, digest), copy, parts),
        )
        own = f", with this site's own part of it (--site {config.site.name})" if parts else ""
        print(f"The model is now the one in use{own}.", file=sys.stderr)
    return 0
