"""``fed-diffmic ledger``: what a site's patients have spent, what is left, and what only a person may decide."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from fed_diffmic.commands.provision_parts import below
from fed_diffmic.errors import LedgerError, UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add
    from fed_diffmic.config.site import SiteConfig

_ABOUT = """The privacy ledger of this site: epsilon spent on the units of its data, over all runs.

  fed-diffmic ledger show --config site.yaml [--plot epsilon.png]
  fed-diffmic ledger verify --config site.yaml
  fed-diffmic ledger project --config site.yaml
  fed-diffmic ledger grant --config site.yaml --epsilon 10 --reason TEXT
  fed-diffmic ledger accept --config site.yaml --spent 4.2 --reason TEXT
  fed-diffmic ledger share --epsilon 3 --delta 1e-5 --sample-rate 0.05 --rounds 100 --honest-sites 2
"""


_SHARE: tuple[tuple[str, type, str], ...] = (
    ("--epsilon", float, "of all rounds, if so many others are honest"),
    ("--delta", float, "probability that the bound fails"),
    ("--sample-rate", float, "strategy.sample_rate"),
    ("--rounds", int, "of the stages that are trained so, together"),
    ("--honest-sites", int, "how many others in each sum are taken to be honest (privacy.honest_sites)"),
)


def register(add: Add) -> None:
    """Add ``ledger`` and the commands below it."""
    ledger = add("ledger", None, "what was spent of this site's privacy budget, and what is left")
    ledger.description = _ABOUT
    add_below = below(ledger)
    show = add_below("show", _show, "spent and left, in total and for each run")
    show.add_argument("--plot", type=Path, metavar="PNG", help="draw epsilon over the rounds into this file")
    verify = add_below("verify", _verify, "check the chain, its signatures and its anchor")
    project = add_below("project", _project, "how many more rounds fit into what is left")
    grant = add_below("grant", _grant, "set the budget, signed with the site's key")
    grant.add_argument("--epsilon", type=float, help="the new budget, of every unit over all runs")
    grant.add_argument("--alone", type=float, help="the new budget if no other site adds noise (privacy.budget_alone)")
    accept = add_below("accept", _accept, "let a ledger that was refused be continued, with a reason")
    accept.add_argument("--spent", required=True, type=float, help="epsilon spent as far as is known, beside its lines")
    accept.add_argument(
        "--echoed",
        default="",
        metavar="LENGTH:DIGEST[:SPENT]",
        help="what the coordinator insists on; without it, what it insisted on when the ledger was refused last",
    )
    share = add_below("share", _share, "the noise that each site adds, where sites share it (strategy.noise_share)")
    for name, kind, text in _SHARE:
        share.add_argument(name, required=True, type=kind, help=text)
    for command in (grant, accept):
        command.add_argument("--reason", required=True, help="why; it stands in the ledger")
    for command in (show, verify, project, grant, accept):
        command.add_argument("--config", required=True, type=Path, metavar="FILE", help="site.yaml")
        command.add_argument("settings", nargs="*", metavar="key=value", help="settings of the site, as for `client`")


def _site(arguments: argparse.Namespace) -> tuple[SiteConfig, Path]:
    from fed_diffmic.config.compose import compose_site

    config = compose_site(arguments.config, arguments.settings)
    if config.site.folder is None:
        raise UsageError("site.folder is not set", "Name the site's own folder in its configuration.")
    return config, Path(config.site.folder)


def _show(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.commands.outputs import check_output, check_spares
    from fed_diffmic.privacy.account import FILE, FOLDER, read_account

    config, folder = _site(arguments)
    if arguments.plot is not None:
        check_output("--plot", arguments.plot)
        key = config.coordinator.key
        read = [("--config", arguments.config), ("the ledger", folder / FOLDER / FILE), ("the key", key)]
        check_spares("--plot", arguments.plot, read)
    account = read_account(folder)
    terms, spent = account.terms, account.total()
    print(f"unit: {terms.unit} (one more or one less); delta {terms.delta:g}; accountant {terms.accountant}")
    print(f"spent by the {terms.unit} that spent most: {_epsilon(spent)} of {terms.budget:g}")
    print(f"left: {max(0.0, terms.budget - spent):.3f}")
    if terms.budget_alone is not None:
        alone = account.total(alone=True)
        print(f"if no other site added noise: {_epsilon(alone)} of {terms.budget_alone:g}, left ", end="")
        print(f"{max(0.0, terms.budget_alone - alone):.3f}")
    for run in dict.fromkeys(entry.run for entry in account.entries()):
        own = [entry for entry in account.entries() if entry.run == run]
        open_ones = sum(not entry.settled and entry.mechanism is not None for entry in own)
        rounds = sum(entry.what == "train" for entry in own)
        left = f", {open_ones} of them never settled and counted in full" if open_ones else ""
        apart = f" ({_epsilon(account.total(run, alone=True))} alone)" if any(e.alone for e in own) else ""
        print(f"  run {run}: {_epsilon(account.total(run))}{apart} in {rounds} rounds{left}")
    if terms.unknown:
        print(f"  stated by a person for lost lines: {_epsilon(terms.unknown)}")
    if any(entry.mechanism is None for entry in account.entries()):
        print("  some stages trained without privacy: for their data no epsilon holds")
    if any(entry.tested for entry in account.entries()):
        print("  some noise came from privacy.test_seed: for the data that it was to hide no epsilon holds")
    if arguments.plot is not None:
        from fed_diffmic.privacy.plot import plot_spending

        plot_spending(account, arguments.plot)
        print(f"drawn: {arguments.plot}")
    return 0


def _verify(arguments: argparse.Namespace, hint: list[str]) -> int:
    from client.start import site_key, site_signer
    from fed_diffmic.exchange.audit import read_lines
    from fed_diffmic.privacy.account import FILE, FOLDER
    from fed_diffmic.privacy.continuity import kept_echo, problems, witness_of
    from fed_diffmic.privacy.ledger_lines import REMEDY

    config, folder = _site(arguments)
    path = folder / FOLDER / FILE
    key = site_key(config)
    echo = kept_echo(folder)
    found = problems(folder, site_signer(config), echo, witness_of(key))
    for problem in found:
        print(f"problem: line {problem.line}: {problem.text}" if problem.line else f"problem: {problem.text}")
    count = len(read_lines(path)) if path.exists() else 0
    print(f"{path}: {count} lines, {len(found) or 'no'} problems")
    if echo:
        print(f"the coordinator insisted on {_echo(echo)} when the ledger was refused last")
    if found:
        print(REMEDY)
    return LedgerError.exit_code if found else 0


def _project(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.privacy.account import read_account
    from fed_diffmic.privacy.shares import shares

    config, folder = _site(arguments)
    account = read_account(folder)
    left = account.terms.budget - account.total()
    most = shares(left, config.privacy, config.policy.budget)
    print(
        f"left: {most.left:.3f}; of it a run that begins now may spend {most.run:.3f}, and one of its rounds by itself "
        f"{most.round:.3f} (policy.budget); noise that is computed from privacy.epsilon keeps to both"
    )
    trained = [e for e in account.entries() if e.what == "train" and e.mechanism is not None and e.mechanism.steps]
    if not trained:
        print("no private round was trained yet: `privacy.epsilon` with `privacy.noise_multiplier=null` plans a run")
        return 0
    last = trained[-1]
    assert last.mechanism is not None
    rounds = account.rounds_left(account.units(last.units), last.mechanism, alone=last.alone)
    limits = f"the budget of {account.terms.budget:g}"
    if account.terms.budget_alone is not None:
        limits += f", and into {account.terms.budget_alone:g} if no other site adds noise"
    print(
        f"rounds like the last one ({last.mechanism.steps} steps, sample rate {last.mechanism.sample_rate:.4g}, noise "
        f"multiplier {last.mechanism.noise_multiplier:.4g}) on the same data: {rounds} more fit into {limits}"
    )
    return 0


def _grant(arguments: argparse.Namespace, hint: list[str]) -> int:
    from client.start import site_key, site_signer
    from fed_diffmic.privacy.account import read_account
    from fed_diffmic.privacy.continuity import witness_of
    from fed_diffmic.privacy.ledger import Ledger

    config, folder = _site(arguments)
    read_account(folder)  # a grant begins no ledger
    given = [number for number in (arguments.epsilon, arguments.alone) if number is not None]
    if not given or not all(0 < number < math.inf for number in given) or not arguments.reason.strip():
        raise UsageError(
            "a grant lacks an epsilon or a reason",
            "Give --epsilon or --alone, a finite number above zero, and --reason with words.",
        )
    key = site_key(config)
    with Ledger(folder, config.privacy, site_signer(config), witness=witness_of(key)) as ledger:
        before = ledger.terms
        ledger.grant(arguments.epsilon, arguments.reason, arguments.alone)
    for name, new in (("budget", arguments.epsilon), ("budget_alone", arguments.alone)):
        if new is None:
            continue
        old, own = getattr(before, name), getattr(config.privacy, name)
        print(f"{name}: {'none' if old is None else f'{old:g}'} before, {new:g} now")
        if own is not None and own < new:
            print(f"privacy.{name}={own:g} in the configuration is lower and holds: raise it there too")
    return 0


def _share(arguments: argparse.Namespace, hint: list[str]) -> int:
    from fed_diffmic.privacy.accounting import epsilon
    from fed_diffmic.privacy.distributed.accounting import cost_of, share_for

    rate, rounds, honest = arguments.sample_rate, arguments.rounds, arguments.honest_sites
    known = 0 < arguments.epsilon < math.inf and 0 < arguments.delta < 1 and 0 < rate <= 1
    if not known or rounds < 1 or not 0 <= honest <= 10_000:
        raise UsageError(
            "these numbers describe no run",
            "Give --epsilon above 0, --delta below 1, --sample-rate above 0 and at most 1, one of --rounds or more and "
            "--honest-sites from 0.",
        )
    try:
        share = math.ceil(1e4 * share_for(arguments.epsilon, arguments.delta, rate, rounds, honest)) / 1e4
    except ValueError as error:
        raise UsageError(str(error), "Give a larger --epsilon, or fewer --rounds.") from error
    price = cost_of(share, rate, honest, rounds)
    together, alone = (epsilon([part], arguments.delta) for part in (price.honest, price.alone))
    print(f"strategy.noise_share={share:.10g}")
    print(f"{rounds} rounds cost epsilon {together:.3f} if {honest} others are honest, and {alone:.3f} if nobody else "
          "adds noise; class counts that a site releases come on top")  # fmt: skip
    return 0


def _accept(arguments: argparse.Namespace, hint: list[str]) -> int:
    from client.start import site_key, site_signer
    from fed_diffmic.privacy.continuity import accept, kept_echo, witness_of

    config, folder = _site(arguments)
    if not 0 <= arguments.spent < math.inf or not arguments.reason.strip():
        raise UsageError(
            "accepting lacks what was spent or a reason",
            "Give --spent, a finite number that is not below zero, and --reason with words.",
        )
    key = site_key(config)
    echo = arguments.echoed or kept_echo(folder)
    counted = accept(
        folder,
        site_signer(config),
        reason=arguments.reason,
        spent=arguments.spent,
        echoed=echo,
        witness=witness_of(key),
    )
    print("accepted; the reason and what was spent stand in the ledger")
    print(f"counted for every unit besides the ledger's lines: {_epsilon(counted)}")
    if counted > arguments.spent and echo:
        print(f"more than --spent says, since the coordinator or the file beside the key saw {_echo(echo)}")
    return 0


def _echo(text: str) -> str:
    from fed_diffmic.privacy.ledger_lines import parse_seen

    seen = parse_seen(text)
    return "nothing" if seen is None else f"line {seen.head.length}, with {_epsilon(seen.spent)} spent"


def _epsilon(value: float) -> str:
    return "no epsilon holds" if math.isinf(value) else f"epsilon {value:.3f}"
