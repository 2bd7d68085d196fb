"""What was private in a run, what was not, and which attacks were tried on it."""

from __future__ import annotations

from typing import Any

from fed_diffmic.exchange.claims import WORDS
from fed_diffmic.release.dossier.facts import (
    CONFIG,
    MODEL,
    SUMMARY,
    Block,
    Sources,
    blank,
    listing,
    missing,
    named,
    section,
    table,
    text,
    warning,
)

CLAIM = (
    ("guarantee", "guarantee holds"),
    ("unit", "unit"),
    ("epsilon_run", "epsilon of this run"),
    ("delta", "delta"),
    ("epsilon_total", "epsilon over all runs"),
    ("budget", "budget"),
)
ATTACKS = {
    "privacy": (
        "audits/privacy.json",
        "Attack on the private training: does it keep the epsilon that it claims?",
        "fed-diffmic audit privacy --config site.yaml --out RUN/audits/privacy.json",
    ),
    "inversion": (
        "audits/inversion.json",
        "Inversion: how much of an image a coordinator could read out of an update without privacy",
        "fed-diffmic audit inversion --config site.yaml --out RUN/audits/inversion.json",
    ),
    "membership": (
        "audits/membership.json",
        "Membership: can somebody tell from the model who was in the training set?",
        "no command of this version does; lay the result of an attack of your own there, as JSON",
    ),
}
"""By attack: the file in the run's folder, what it asks, and what makes the file."""
MOST_ROWS = 200
HIDING = ("mask", "secure_aggregation")
"""What settings of secure aggregation are called."""
LEAVES = (
    "Images, names of patients and names of files do not leave a site. What leaves it, its policy decides, and each "
    "departure stands in its own signed audit log, which is at the site and not in this folder."
)
SIMULATED = (
    "This run was simulated on one machine that held every image: no policy of a site and no audit log was in force, "
    "and nothing of it shows what would leave a site."
)
NOT_COVERED = (
    "Never covered by differential privacy at the sites: images outside a training set, how long a round took, and "
    "everything that is known from elsewhere."
)


def _claims(sources: Sources) -> dict[str, tuple[str | int, ...]]:
    """Where each site's last claim stands in model.json."""
    found: dict[str, tuple[str | int, ...]] = {}
    for place, row in enumerate(sources.at(MODEL, "history") or []):
        for site in row.get("privacy") or {}:
            found[site] = ("history", place, "privacy", site)
    return dict(sorted(found.items()))


def privacy_statement(sources: Sources) -> dict[str, Any]:
    """What the sites claim of their privacy, what no claim covers, and what hides updates from the coordinator."""
    claims = _claims(sources)
    sites = sorted(sources.at(SUMMARY, "sites") or claims)
    blocks: list[Block] = []
    if claims:
        blocks += _claimed(sources, claims, sites)
    else:
        blocks.append(
            warning(
                "This run trained without differential privacy at its sites. What left them (updates, metrics, counts) "
                "can tell of single images: images can sometimes be reconstructed, membership inferred."
            )
        )
    blocks += _client_level(sources)
    crossing = named(sources, [("privacy group of the configuration (simulation)", CONFIG, ("privacy", "name"))])
    hiding = [leaf for leaf in _leaves(sources.tree(CONFIG)) if any(word in leaf[0] for word in HIDING)]
    crossing += named(sources, [(name, CONFIG, place) for name, place in hiding])
    if crossing:
        blocks.append(table("Settings", ["what", "value"], crossing))
    if not hiding:
        said = "No setting of this run hid the sites' updates from the coordinator: it saw each of them."
        blocks.append(warning(said))
    blocks.append(text(LEAVES if sources.at(SUMMARY, "kind") else SIMULATED))
    return section("privacy", "Privacy statement", *blocks)


def _claimed(sources: Sources, claims: dict[str, tuple[str | int, ...]], sites: list[str]) -> list[Block]:
    """The sites' claims, where none holds, and what none covers."""
    rows, blocks = [], list[Block]()
    for site, place in claims.items():
        cells: list[Any] = [sources.fact(MODEL, *place, key) for key, _ in CLAIM]
        # A claim says -1 where there is no bound: that is no number to show.
        rows.append([site, *("no bound" if cell and _unbounded(cell["value"]) else cell for cell in cells)])
        if sources.at(MODEL, *place, "guarantee") is not True:
            said = (
                f"No guarantee holds at {site}: noise from a fixed seed, or training without privacy on the same data."
            )
            blocks.append(warning(said))
        outside = sources.at(MODEL, *place, "outside") or []
        if outside:
            blocks.append(text(f"Not private at {site}:"))
            blocks.append(listing([WORDS.get(item, str(item)) for item in outside]))
    silent = sorted(set(sites) - set(claims))
    if silent:
        blocks.append(warning(f"No privacy is claimed by {', '.join(silent)}: their updates carry no noise."))
    first = text("Each row is the site's own word from its privacy ledger: the coordinator cannot see noise.")
    drawn = table("Differential privacy", ["site", *(name for _, name in CLAIM)], rows)
    return [first, drawn, *blocks, text(NOT_COVERED)]


def _unbounded(value: Any) -> bool:
    return isinstance(value, float) and value < 0


def _client_level(sources: Sources) -> list[Block]:
    history = sources.at(MODEL, "history") or []
    places = [place for place, row in enumerate(history) if row.get("client_level")]
    if not places:
        return []
    place = ("history", places[-1], "client_level")
    keys = sorted(sources.at(MODEL, *place))
    rows = [[key, sources.fact(MODEL, *place, key)] for key in keys]
    said = (
        "The coordinator added noise of its own: a guarantee for one whole site against whoever sees the weights that "
        "were released; not against the coordinator. It does not add to a site's own."
    )
    return [text(said), table("The coordinator's noise", ["what", "value"], rows)]


def threats(sources: Sources) -> dict[str, Any]:
    """Which threats there are, and what was tested against them, from the audits' own files."""
    blocks: list[Block] = [
        text(
            "Who is trusted with what, and what stops whom, says the threat model in the program's documents. What "
            "follows is what was tried with this run's settings. A result at chance is evidence, not proof."
        )
    ]
    for file, about, how in ATTACKS.values():
        blocks.append({"kind": "heading", "text": about})
        tree = sources.tree(file)
        if not isinstance(tree, dict):
            blocks.append(missing(f"Not tested: the run's folder holds no {file}. To test it: {how}."))
            continue
        rows = [[name, sources.fact(file, *place)] for name, place in _leaves(tree)][:MOST_ROWS]
        blocks.append(table(f"Result, from {file}", ["what", "value"], [row for row in rows if row[1] is not None]))
    blocks.append({"kind": "heading", "text": "Everything else"})
    blocks.append(
        missing(
            "Not tested with this run: poisoning by a site that looks sound, two sites that work together, a "
            "coordinator that lies to every site from the first round on, images that are made to mislead the model."
        )
    )
    blocks.append(blank("Residual risk, and who accepts it", "the data protection officer and the management"))
    return section("threats", "Threats, and what was tested against them", *blocks)


def _leaves(tree: Any, place: tuple[str | int, ...] = ()) -> list[tuple[str, tuple[str | int, ...]]]:
    """Every scalar of a result, the verdict first, with its place."""
    if isinstance(tree, dict):
        keys = sorted(tree, key=lambda key: (key != "verdict", str(key)))
        return [leaf for key in keys for leaf in _leaves(tree[key], (*place, key))]
    if isinstance(tree, list):
        return [leaf for index, value in enumerate(tree) for leaf in _leaves(value, (*place, index))]
    return [] if tree is None else [(" / ".join(map(str, place)), place)]
