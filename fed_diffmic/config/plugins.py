"""What installed packages offer: algorithms, data sets and partitioners found by their entry points.

Packages are looked at when a name is not built in, or when everything is listed; the code of one is imported when its
name is chosen, or listed. A package cannot take a built-in name. docs/plugins.md says how to write one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from fed_diffmic.config.owners import (
    ALGORITHMS,
    DATASETS,
    KINDS,
    Kind,
    Owner,
    attribute,
    builtin,
    builtins,
    registered,
    registered_names,
)
from fed_diffmic.errors import ConfigError


@dataclass(frozen=True)
class Offer:
    """One entry point of an installed package; nothing of it is imported.

    Attributes:
        name: under which it offers something.
        package: its distribution's name.
        version: the distribution's.
        entry: the entry point.
    """

    name: str
    package: str
    version: str
    entry: EntryPoint


def offers(kind: Kind, name: str | None = None) -> list[Offer]:
    """What installed packages offer of a kind, sorted by name and package; built-in names too.

    Args:
        name: only under this name; none: all.
    """
    found = entry_points(group=kind.entry_points) if name is None else entry_points(group=kind.entry_points, name=name)
    listed = {
        (entry.name, entry.dist.name, entry.dist.version, entry.value): entry
        for entry in found
        if entry.dist is not None
    }
    return [Offer(*key[:3], listed[key]) for key in sorted(listed)]


def find(kind: Kind, name: str) -> Owner:
    """The choice of that name: built in, registered by the running program, or of an installed package.

    The package's code is imported. Whoever acts on somebody else's word asks :func:`trusted` first.

    Raises:
        ConfigError: there is none, or its package cannot be used; names the package and the cause.
    """
    return builtin(kind, name) or registered(kind, name) or _load(kind, name)


def known(kind: Kind, name: str) -> bool:
    """Whether that name can be chosen; packages are looked at where it is not built in, and none is imported."""
    return builtin(kind, name) is not None or registered(kind, name) is not None or bool(offers(kind, name))


def foreign(kind: Kind, name: str) -> str | None:
    """The package that a name comes from: none where it is built in, empty where no package offers it.

    No package's code is imported.
    """
    if builtin(kind, name) is not None:
        return None
    return next((offer.package for offer in offers(kind, name)), "")


def trusted(kind: Kind, name: str, plugins: Collection[str]) -> bool:
    """Whether a name is built in, or it or its package is one of ``plugins``; no package's code is imported."""
    package = foreign(kind, name)
    # A name stands for itself, letter by letter; a package's may be spelt in the ways in which packages may be: else
    # `good-pkg`, the package, would let an algorithm `good_pkg` of another one in.
    return package is None or name in plugins or (bool(package) and _plain(package) in map(_plain, plugins))


def check_trusted(kind: Kind, name: str, plugins: Collection[str]) -> None:
    """Refuse what comes from a package that ``policy.plugins`` does not name, before anything of it is imported.

    Raises:
        ConfigError: says what to write.
    """
    if not trusted(kind, name, plugins):
        package = foreign(kind, name)
        raise ConfigError(
            f"{kind.group}.name",
            name,
            f"what is built in, or named in policy.plugins{f': {name} comes from {package}' if package else ''}",
            f"If this site may run its code, write `plugins: [{package or name}]` under `policy` in site.yaml.",
        )


def names(kind: Kind) -> list[str]:
    """Every name that can be chosen, sorted: built in, offered by packages, registered by the running program."""
    return sorted({*builtins(kind), *(offer.name for offer in offers(kind)), *registered_names(kind)})


def listing(kind: Kind) -> tuple[list[Owner], list[str]]:
    """Everything from outside that can be chosen, by name, and a sentence for each that cannot.

    Returns:
        what works, imported; what does not, and why.
    """
    works, faults, inside = [], [], builtins(kind)
    offered = {offer.name for offer in offers(kind)}
    for name in sorted(offered | set(registered_names(kind)) - set(inside)):
        if name in inside:
            packages = ", ".join(offer.package for offer in offers(kind, name))
            faults.append(f"{kind.group}={name} of {packages} is not used: that name is built in")
            continue
        try:
            works.append(find(kind, name))
        except ConfigError as error:
            faults.append(f"{kind.group}={name} cannot be used: {error.allowed}")
    return works, faults


def unknown(kind: Kind, name: str) -> ConfigError:
    """That there is no such choice, with those that there are."""
    choices = names(kind)
    near = difflib.get_close_matches(name, choices, n=1)
    return ConfigError(
        kind.group,
        name[:100],
        ", ".join(choices),
        (f"Did you mean {near[0]}? " if near else "") + f"`fed-diffmic options {kind.group}` says what each one is.",
    )


def _load(kind: Kind, name: str) -> Owner:
    found = offers(kind, name)
    if not found:
        raise unknown(kind, name)
    key = f"{kind.group}.name"
    if len(found) > 1:
        packages = " and ".join(sorted({offer.package for offer in found}))
        raise ConfigError(key, name, f"a name that one package offers; {packages} do", "Uninstall all but one.")
    offer = found[0]
    package = f"{offer.package} {offer.version}"
    remedy = f"Repair the package or uninstall it: pip uninstall {offer.package}"
    try:
        offer.entry.load()
    except (Exception, SystemExit) as error:  # it is somebody else's code: whatever it does ends here
        cause = f"{type(error).__name__}: {error}"
        raise ConfigError(key, name, f"what can be imported; the package {package} cannot ({cause})", remedy) from error
    if registered(kind, name) is None:
        raise ConfigError(
            key, name, f"what its package registers; {package} registers no {kind.what} of that name", remedy
        )
    for other in KINDS.values():  # a module may register more than was asked for
        for beside in offers(other):
            if beside.package == offer.package and registered(other, beside.name) and not builtin(other, beside.name):
                attribute(other, beside.name, offer.package)
    owner = registered(kind, name)
    assert owner is not None
    return owner


def _plain(name: str) -> str:
    """A name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


__all__ = [
    "ALGORITHMS",
    "DATASETS",
    "KINDS",
    "Offer",
    "check_trusted",
    "find",
    "foreign",
    "known",
    "listing",
    "names",
    "offers",
    "trusted",
    "unknown",
]
