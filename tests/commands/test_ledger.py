"""``fed-diffmic ledger``: what it prints, how it ends, what it refuses."""

import pytest
import yaml

from fed_diffmic.commands import ledger
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.console import Parser
from fed_diffmic.errors import LedgerError, UsageError
from fed_diffmic.privacy.account import FILE, FOLDER
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.distributed.accounting import cost_of
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.provision.keys import load_private, make_site_key
from tests.privacy.test_units import units

STEP = Mechanism(0.1, 2.0, 5)
PRIVACY = PrivacyConfig(name="dp_sgd", unit="patient", epsilon=2.0, delta=1e-5)


def run(*arguments):
    parser = Parser(prog="fed-diffmic")
    below = parser.add_subparsers(parser_class=Parser)

    def add(name, run, about):
        command = below.add_parser(name, help=about)
        command.set_defaults(run=run, parser=command)
        return command

    ledger.register(add)
    known = parser.parse_args(["ledger", *map(str, arguments)])
    return known.run(known, [])


@pytest.fixture
def site(tmp_path):
    """A site's configuration and folder, with two private rounds of one run behind it."""
    folder, key, path = tmp_path / "state", tmp_path / "key", tmp_path / "site.yaml"
    folder.mkdir(mode=0o700)
    make_site_key(key)
    privacy = {"name": "dp_sgd", "unit": "patient", "epsilon": 2.0}
    site = {"name": "north", "folder": str(folder), "device": "cpu"}
    path.write_text(yaml.safe_dump({"site": site, "coordinator": {"key": str(key)}, "privacy": privacy}))
    with Ledger(folder, PRIVACY, load_private(key)) as books:
        for index in (1, 2):
            number = books.reserve(
                units((1, "a"), (2, "b")), STEP, run="first", arm="federated", stage="guidance", round_index=index
            )
        books.settle(number, 5)
    return path, folder


def test_show_says_what_is_spent_and_left_and_draws_it(site, tmp_path, capsys):
    path, _ = site
    assert run("show", "--config", path, "--plot", tmp_path / "epsilon.png") == 0
    out = capsys.readouterr().out
    spent = epsilon([STEP, STEP], 1e-5)
    assert f"epsilon {spent:.3f} of 2" in out and f"left: {2 - spent:.3f}" in out
    assert f"run first: epsilon {spent:.3f} in 2 rounds, 1 of them never settled and counted in full" in out
    assert (tmp_path / "epsilon.png").read_bytes().startswith(b"\x89PNG")


def test_a_drawing_is_not_written_over_the_ledger(site, capsys):
    path, folder = site
    before = [(file, file.read_bytes()) for file in (path, folder / FOLDER / FILE, folder.parent / "key")]
    for file, _ in before:
        with pytest.raises(UsageError, match="which would be written over"):
            run("show", "--config", path, "--plot", file)
    with pytest.raises(UsageError, match="is a folder"):
        run("show", "--config", path, "--plot", folder)
    assert [(file, file.read_bytes()) for file, _ in before] == before
    assert capsys.readouterr().out == ""


def test_verify_finds_a_changed_line_and_ends_with_a_code(site, capsys):
    path, folder = site
    assert run("verify", "--config", path) == 0
    assert "no problems" in capsys.readouterr().out
    book = folder / FOLDER / FILE
    book.write_bytes(book.read_bytes().replace(b'"steps":5', b'"steps":1', 1))
    assert run("verify", "--config", path) == LedgerError.exit_code
    assert "was changed" in capsys.readouterr().out


def test_project_says_how_many_rounds_fit(site, capsys):
    path, _ = site
    assert run("project", "--config", path) == 0
    fit = next(n for n in range(1, 1000) if epsilon([Mechanism(0.1, 2.0, 5 * (n + 2))], 1e-5) > 2.0) - 1
    assert f": {fit} more fit into the budget of 2" in capsys.readouterr().out


def test_project_says_what_a_run_and_a_round_may_take(site, capsys):
    path, _ = site
    left = 2 - epsilon([STEP, STEP], 1e-5)
    assert run("project", "--config", path) == 0
    assert f"may spend {left:.3f}, and one of its rounds by itself {left / 3:.3f}" in capsys.readouterr().out
    assert run("project", "--config", path, "policy.budget.run_share=0.5", "policy.budget.round_share=0.1") == 0
    assert f"may spend {left / 2:.3f}, and one of its rounds by itself {left / 10:.3f}" in capsys.readouterr().out


def test_accept_counts_what_the_coordinator_saw_and_says_so(site, capsys):
    path, folder = site
    key = load_private(path.with_name("key"))
    with pytest.raises(LedgerError):
        Ledger(folder, PRIVACY, key, echoed=f"40:{'a' * 64}:3.5")
    assert run("verify", "--config", path) == LedgerError.exit_code
    assert "line 40, with epsilon 3.500 spent" in capsys.readouterr().out
    assert run("accept", "--config", path, "--spent", 1.25, "--reason", "restored") == 0
    out = capsys.readouterr().out
    assert "besides the ledger's lines: epsilon 3.500" in out and "more than --spent says" in out
    assert run("verify", "--config", path) == 0
    assert (path.parent / "key.ledger").exists()
    run("show", "--config", path)
    assert "stated by a person for lost lines: epsilon 3.500" in capsys.readouterr().out


def test_a_grant_needs_a_reason_and_is_kept(site, capsys):
    path, _ = site
    with pytest.raises(UsageError, match="reason"):
        run("grant", "--config", path, "--epsilon", 5, "--reason", " ")
    assert run("grant", "--config", path, "--epsilon", 5, "--reason", "the board agreed") == 0
    assert "2 before, 5 now" in capsys.readouterr().out
    run("show", "--config", path)
    assert " of 5" in capsys.readouterr().out


def test_accept_lets_a_lost_ledger_go_on(site, capsys):
    path, folder = site
    with pytest.raises(LedgerError, match="nothing is wrong"):
        run("accept", "--config", path, "--spent", 1, "--reason", "x")
    (folder / FOLDER / FILE).unlink()
    assert run("verify", "--config", path) == LedgerError.exit_code
    with pytest.raises(UsageError, match="spent"):
        run("accept", "--config", path, "--spent", -1, "--reason", "x")
    assert run("accept", "--config", path, "--spent", 1.25, "--reason", "disk lost") == 0
    assert run("verify", "--config", path) == 0
    assert "accepted" in capsys.readouterr().out


def test_without_a_ledger_it_says_so(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({"site": {"name": "n", "folder": str(tmp_path)}}))
    for command in (("show",), ("project",), ("grant", "--epsilon", 3, "--reason", "x")):
        with pytest.raises(LedgerError, match="no privacy ledger"):
            run(*command, "--config", path)
    path.write_text(yaml.safe_dump({"site": {"name": "n"}}))
    with pytest.raises(UsageError, match=r"site\.folder"):
        run("show", "--config", path)


def test_share_says_the_noise_whose_rounds_cost_what_is_asked(capsys):
    """By the accountant itself, of the share as it is printed."""
    given = ("--epsilon", 3, "--delta", 1e-5, "--sample-rate", 0.05, "--rounds", 100, "--honest-sites", 2)
    assert run("share", *given) == 0
    first, second = capsys.readouterr().out.splitlines()
    share = float(first.removeprefix("strategy.noise_share="))
    price = cost_of(share, 0.05, 2, 100)
    assert 2.98 < epsilon([price.honest], 1e-5) <= 3 < epsilon([price.alone], 1e-5)
    assert f"{epsilon([price.alone], 1e-5):.3f} if nobody else" in second
    for name, wrong in (("--epsilon", 0), ("--rounds", 0), ("--honest-sites", -1), ("--sample-rate", 1.5)):
        with pytest.raises(UsageError):
            run("share", *(wrong if i and given[i - 1] == name else part for i, part in enumerate(given)))
