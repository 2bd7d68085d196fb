"""``fed-diffmic provision`` as the people of a coordinator and of a site use it, mistakes included."""

import io
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fed_diffmic import cli
from fed_diffmic.config.compose import compose_server, compose_site
from fed_diffmic.config.network_checks import check_server_start, check_site_start
from fed_diffmic.errors import ConfigError
from fed_diffmic.provision.authority import make_authority
from fed_diffmic.provision.certificates import issued_by, load_certificate, load_certificates, server_names
from fed_diffmic.provision.keys import load_private, load_public
from fed_diffmic.provision.roster import Roster

CONFIG = ("--config", "coordinator/server.yaml")


class Consortium:
    """A coordinator's and a site's folders, and the commands, run from the folder above them."""

    def __init__(self, capsys):
        self.capsys = capsys

    def runs(self, *arguments):
        """What a command prints that must succeed."""
        self.capsys.readouterr()
        code = cli.main(["provision", *map(str, arguments)])
        out, err = self.capsys.readouterr()
        assert code == 0, err
        return out + err

    def fails(self, *arguments, code=2):
        """What a command says that must fail, with a remedy and without a traceback."""
        self.capsys.readouterr()
        assert cli.main(["provision", *map(str, arguments)]) == code
        out, err = self.capsys.readouterr()
        assert out == ""
        assert re.search(r"error FD00\d: .+\n  What to do: .+", err), err
        return err

    def digits(self, text):
        """The digits that someone reads off the screen."""
        (found,) = re.findall(r"\b\d{5}(?:-\d{5}){5}\b", text)
        return found.replace("-", " ")

    def site(self, name="a", *more):
        """A site with its key, enrolled, its kit opened."""
        digits = self.digits(self.runs("site-key", f"{name}/site.key"))
        self.enrol(name, digits)
        self.runs("open-kit", f"{name}.kit", *self.opening(name), "--fingerprint", self.kit(name), *more)
        return compose_site(Path(name, "site.yaml"), [])

    def enrol(self, name, digits, key=None):
        key = key or f"{name}/site.key.pub"
        words = ("--key", key, "--institution", f"Hospital {name}", "--fingerprint", digits)
        return self.runs("enrol", name, *words, *CONFIG)

    def kit(self, name, file=None, *more):
        return self.digits(self.runs("kit", name, "--out", file or f"{name}.kit", *CONFIG, *more))

    def opening(self, name):
        return ("--key", f"{name}/site.key", "--folder", name)

    def roster(self):
        return Roster.load("coordinator/roster.json")


@pytest.fixture
def consortium(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    consortium = Consortium(capsys)
    consortium.runs("ca", "ca", "--name", "Skin consortium")
    consortium.runs("server", "coordinator", "--ca", "ca", "--name", "fl.example.org", "--address", "10.0.0.1")
    config = Path("coordinator/server.yaml")
    text = config.read_text().replace("classes: null", "classes: [benign, malignant]")
    config.write_text(text.replace("task: null", "task: multiclass"))
    return consortium


def typed(monkeypatch, text):
    """A person at a terminal who types ``text``."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal(text))


def test_from_nothing_to_a_site_that_can_start(consortium, tmp_path):
    (tmp_path / "table.csv").write_text("image,label\n")
    site = consortium.site("a", "--data", "table.csv")
    check_site_start(site)
    check_server_start(compose_server(Path("coordinator/server.yaml"), []))
    assert site.site.name == "a"
    assert site.coordinator.address == "fl.example.org:9443"
    assert site.dataset.classes == ["benign", "malignant"]
    assert site.dataset.task == "multiclass"
    assert site.dataset.root == str(tmp_path / "table.csv")
    assert site.policy.name == "closed"
    assert site.policy.tensors == []
    assert load_private(site.coordinator.key).public_key() == consortium.roster().site("a").key
    assert load_public(site.coordinator.public_key) == load_private("coordinator/signing.key").public_key()
    assert issued_by(load_certificate("coordinator/server.crt"), load_certificate(site.coordinator.ca))


def test_the_policy_that_the_site_file_proposes_can_be_used(consortium):
    consortium.site()
    lines = Path("a/site.yaml").read_text().splitlines()
    start = lines.index("# policy:")
    proposed = [line.removeprefix("# ") for line in lines[start : start + 5]]
    text = "\n".join([line for line in lines if line != "policy: closed"] + proposed)
    Path("a/open.yaml").write_text(text)
    policy = compose_site(Path("a/open.yaml"), []).policy
    assert policy.name == "standard"
    assert policy.classes == ["benign", "malignant"]


def test_private_files_are_private_and_no_private_key_is_said(consortium):
    consortium.runs("site-key", "a/site.key")
    for path in ("ca/ca.key", "coordinator/server.key", "coordinator/signing.key", "a/site.key"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
    for path in Path.cwd().rglob("*"):
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            assert path.name in ("ca.key", "server.key", "signing.key", "site.key")


def test_nothing_is_ever_overwritten(consortium):
    consortium.site()
    before = {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}
    kit = consortium.digits(consortium.runs("fingerprint", "a.kit"))
    for command in (
        ("ca", "ca"),
        ("server", "coordinator", "--ca", "ca"),
        ("site-key", "a/site.key"),
        ("kit", "a", "--out", "a.kit", *CONFIG),
        ("open-kit", "a.kit", *consortium.opening("a"), "--fingerprint", kit),
    ):
        assert "is there already" in consortium.fails(*command)
    assert {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()} == before


def test_a_key_exchanged_on_its_way_is_not_enrolled(consortium):
    right = consortium.digits(consortium.runs("site-key", "a/site.key"))
    consortium.runs("site-key", "evil/site.key")
    words = ("enrol", "a", "--key", "evil/site.key.pub", "--institution", "A", *CONFIG)
    assert "someone exchanged the key" in consortium.fails(*words, "--fingerprint", right)
    assert "digits that the other side reads" in consortium.fails(*words)
    assert consortium.roster().sites == ()


def test_a_kit_exchanged_on_its_way_is_not_opened(consortium, tmp_path):
    consortium.enrol("a", consortium.digits(consortium.runs("site-key", "a/site.key")))
    right = consortium.kit("a")
    consortium.runs("ca", "evil-ca")
    consortium.runs("server", "evil", "--ca", "evil-ca", "--name", "evil.example.org")
    (tmp_path / "evil/roster.json").write_bytes((tmp_path / "coordinator/roster.json").read_bytes())
    consortium.runs("kit", "a", "--out", "evil.kit", "--config", "evil/server.yaml")
    err = consortium.fails("open-kit", "evil.kit", *consortium.opening("a"), "--fingerprint", right)
    assert "not the one that the coordinator made" in err
    assert sorted(os.listdir("a")) == ["site.key", "site.key.pub"]
    assert "thirty digits" in consortium.fails(
        "open-kit", "a.kit", *consortium.opening("a"), "--fingerprint", right[:12]
    )
    consortium.runs("open-kit", "a.kit", *consortium.opening("a"), "--fingerprint", right)


def test_digits_are_asked_for_at_a_terminal_and_never_shown_before(consortium, monkeypatch):
    shown = consortium.digits(consortium.runs("site-key", "a/site.key"))
    typed(monkeypatch, f"{shown}\n")
    out = consortium.runs("enrol", "a", "--key", "a/site.key.pub", "--institution", "A", *CONFIG)
    assert "Type them" in out
    assert shown.replace(" ", "-") not in out
    digits = consortium.kit("a")
    typed(monkeypatch, f"{digits}\n")
    out = consortium.runs("open-kit", "a.kit", *consortium.opening("a"))
    assert digits.replace(" ", "-") not in out


def test_someone_who_types_nothing_opens_nothing(consortium, monkeypatch):
    consortium.enrol("a", consortium.digits(consortium.runs("site-key", "a/site.key")))
    consortium.kit("a")
    for text, words in (("", "no digits were typed"), ("\n", "thirty digits"), ("yes\n", "thirty digits")):
        typed(monkeypatch, text)
        assert cli.main(["provision", "open-kit", "a.kit", *consortium.opening("a")]) == 2
        assert words in consortium.capsys.readouterr().err
    assert not Path("a/site.yaml").exists()


def test_the_digits_can_be_read_again_from_a_file(consortium):
    shown = consortium.digits(consortium.runs("site-key", "a/site.key"))
    assert consortium.digits(consortium.runs("fingerprint", "a/site.key.pub")) == shown
    assert consortium.digits(consortium.runs("fingerprint", "a/site.key")) == shown
    consortium.enrol("a", shown)
    assert consortium.kit("a") == consortium.digits(consortium.runs("fingerprint", "a.kit"))
    assert "not an OpenSSH key" in consortium.fails("fingerprint", "coordinator/server.yaml")


def test_mistakes_at_enrolment_are_named_before_anyone_is_called(consortium, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail("asked for digits"))
    consortium.site("a")
    consortium.runs("site-key", "b/site.key")
    typed(monkeypatch, "")

    def enrol(name, key, *more):
        return consortium.fails("enrol", name, "--key", key, "--institution", "B", *CONFIG, *more)

    assert "PRIVATE key" in enrol("b", "b/site.key")
    assert "there is no public key" in enrol("b", "c/site.key.pub")
    assert "one and the same key" in enrol("b", "a/site.key.pub")
    assert "two sites of the name" in enrol("A", "b/site.key.pub")
    assert "cannot be called" in enrol("../b", "b/site.key.pub")
    assert "no role 'admin'" in enrol("b", "b/site.key.pub", "--role", "admin")
    assert "is a certificate" in enrol("b", "coordinator/ca.crt")
    assert [site.name for site in consortium.roster().sites] == ["a"]


def test_a_kit_is_made_only_for_whom_and_where_it_can_work(consortium):
    consortium.site("a")

    def kit(name, *more):
        return consortium.fails("kit", name, "--out", "new.kit", *CONFIG, *more)

    assert "no site 'b'; it has a" in kit("b")
    err = kit("a", "--address", "evil.example.org:9443")
    assert "does not name 'evil.example.org'; it names fl.example.org, localhost, 10.0.0.1" in err
    assert "not an address" in kit("a", "--address", "fl.example.org:x")
    assert not Path("new.kit").exists()
    for given, said in (("10.0.0.1", "10.0.0.1:9443"), ("FL.example.org:443", "FL.example.org:443")):
        assert f"coordinator {said}," in consortium.runs(
            "kit", "a", "--out", f"{said[:2]}.kit", *CONFIG, "--address", given
        )


def test_a_kit_opens_only_with_the_key_that_was_enrolled(consortium):
    consortium.site("a")
    consortium.runs("site-key", "b/site.key")
    err = consortium.fails("open-kit", "a.kit", *consortium.opening("b"), "--fingerprint", "1")
    assert "this kit is for site 'a' with another key" in err
    assert "there is no private key" in consortium.fails("open-kit", "a.kit", *consortium.opening("c"))
    assert "is a public key" in consortium.fails("open-kit", "a.kit", "--key", "a/site.key.pub", "--folder", "b")
    Path("a/site.key").chmod(0o644)
    assert "chmod 600" in consortium.fails("open-kit", "a.kit", *consortium.opening("a"))


def test_the_roster_says_who_is_in_who_is_out_and_what_expires(consortium):
    consortium.site("a")
    consortium.site("b")
    assert "1 site left" in consortium.runs("revoke", "a", "--reason", "left", *CONFIG)
    out = consortium.runs("roster", *CONFIG)
    assert "1 site admitted" in out
    assert re.search(r"b  train  Hospital b  since .*\d{5}-", out)
    assert re.search("revoked: a .* left", out)
    assert "the coordinator's certificate: 365 days left" in out
    value = json.loads(consortium.runs("roster", "--json", *CONFIG))
    assert [site["name"] for site in value["sites"]] == ["b"]
    assert value["expires_in_days"]["the CA 'Skin consortium'"] > 3649
    assert "no site 'a'; it has b" in consortium.fails("revoke", "a", "--reason", "again", *CONFIG)


def test_a_revoked_site_comes_back_with_a_new_key_only(consortium):
    digits = consortium.digits(consortium.runs("site-key", "a/site.key"))
    consortium.enrol("a", digits)
    consortium.runs("revoke", "a", "--reason", "laptop stolen", *CONFIG)
    words = ("--key", "a/site.key.pub", "--institution", "A", "--fingerprint", digits, *CONFIG)
    assert "was revoked (laptop stolen)" in consortium.fails("enrol", "a", *words)
    consortium.enrol("a", consortium.digits(consortium.runs("site-key", "a/new.key")), "a/new.key.pub")
    assert len(consortium.roster().sites) == 1


def test_a_sites_key_is_rotated(consortium):
    site = consortium.site("a")
    digits = consortium.digits(consortium.runs("site-key", "a/new.key"))
    renew = ("renew", "site", "a", "--key", "a/new.key.pub", *CONFIG)
    assert "not the digits of this key" in consortium.fails(*renew, "--fingerprint", digits[::-1])
    consortium.runs(*renew, "--fingerprint", digits)
    assert consortium.roster().site("a").key == load_private("a/new.key").public_key()
    consortium.kit("a", "a2.kit")
    assert "another key than the one given" in consortium.fails(
        "open-kit", "a2.kit", *consortium.opening("a"), "--update"
    )
    out = consortium.runs("open-kit", "a2.kit", "--key", "a/new.key", "--folder", "a", "--update")
    assert f"coordinator.key is {site.coordinator.key}, the kit says {Path('a/new.key').absolute()}" in out
    assert "has this key already" in consortium.fails(*renew, "--fingerprint", digits)


def test_a_site_without_the_coordinators_key_does_not_start_and_what_it_is_told_to_do_works(consortium, tmp_path):
    (tmp_path / "table.csv").write_text("image,label\n")
    consortium.site("a", "--data", "table.csv")
    with pytest.raises(ConfigError, match="coordinator.public_key") as caught:
        check_site_start(compose_site(Path("a/site.yaml"), ["coordinator.public_key=null"]))
    assert "coordinator.pub" in caught.value.remedy and "open-kit --update" in caught.value.remedy
    Path("a/coordinator.pub").unlink()
    with pytest.raises(ConfigError, match="coordinator.public_key"):
        check_site_start(compose_site(Path("a/site.yaml"), []))
    consortium.runs("open-kit", "a.kit", *consortium.opening("a"), "--update")
    check_site_start(compose_site(Path("a/site.yaml"), []))
    insecure = ["coordinator.public_key=null", "coordinator.insecure=true", "coordinator.address=127.0.0.1:1"]
    check_site_start(compose_site(Path("a/site.yaml"), insecure))


def test_an_update_needs_no_phone_call_and_leaves_the_sites_own_file(consortium):
    consortium.site("a")
    mine = Path("a/site.yaml").read_text() + "# mine\n"
    Path("a/site.yaml").write_text(mine)
    config = Path("coordinator/server.yaml")
    config.write_text(config.read_text().replace("[benign, malignant]", "[malignant, benign]"))
    consortium.kit("a", "a2.kit", "--address", "10.0.0.1:9443")
    out = consortium.runs("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    assert "coordinator.address is fl.example.org:9443, the kit says 10.0.0.1:9443" in out
    assert "dataset.classes is ['benign', 'malignant'], the kit says ['malignant', 'benign']" in out
    assert Path("a/site.yaml").read_text() == mine
    assert "--data has no use" in consortium.fails(
        "open-kit", "a2.kit", *consortium.opening("a"), "--update", "--data", "x"
    )
    assert "there is no kit" in consortium.fails(
        "open-kit", "a2.kit", "--key", "a/site.key", "--folder", "b", "--update"
    )


def test_an_update_signed_by_someone_else_needs_the_phone(consortium, tmp_path):
    consortium.site("a")
    kept = Path("a/ca.crt").read_bytes()
    consortium.runs("ca", "evil-ca")
    consortium.runs("server", "evil", "--ca", "evil-ca", "--name", "evil.example.org")
    Path("evil/roster.json").write_bytes(Path("coordinator/roster.json").read_bytes())
    out = consortium.runs("kit", "a", "--out", "evil.kit", "--config", "evil/server.yaml")
    update = ("open-kit", "evil.kit", *consortium.opening("a"), "--update")
    assert "signed by another key" in consortium.fails(*update)
    assert Path("a/ca.crt").read_bytes() == kept
    consortium.runs(
        *update, "--fingerprint", consortium.digits(out)
    )  # the coordinator did replace its key, and said so
    assert Path("a/ca.crt").read_bytes() != kept


def test_the_coordinators_certificate_is_renewed_in_place(consortium):
    consortium.site("a")
    key = Path("coordinator/server.key").read_bytes()
    out = consortium.runs("renew", "server", "coordinator", "--ca", "ca", "--name", "second.example.org", "--days", 20)
    assert "fl.example.org, second.example.org, localhost" in out
    assert Path("coordinator/server.key").read_bytes() == key
    assert issued_by(load_certificate("coordinator/server.crt"), load_certificate("a/ca.crt"))
    assert re.search(
        "WARNING: the coordinator's certificate expires in (19|20) days", consortium.runs("roster", *CONFIG)
    )
    assert "WARNING" in consortium.runs("kit", "a", "--out", "a2.kit", *CONFIG)


def test_nobody_gets_a_kit_for_an_expired_certificate(consortium):
    consortium.enrol("a", consortium.digits(consortium.runs("site-key", "a/site.key")))
    consortium.runs("renew", "server", "coordinator", "--ca", "ca", "--days", 1e-9)
    assert "WARNING: the coordinator's certificate expired" in consortium.runs("roster", *CONFIG)
    assert "certificate expired on" in consortium.fails("kit", "a", "--out", "a.kit", *CONFIG)


def test_the_ca_gets_a_longer_life(consortium):
    consortium.site("a")
    before = load_certificate("a/ca.crt")
    consortium.runs("renew", "ca", "ca", "--days", 5000)
    consortium.runs("renew", "trust", "coordinator", "--ca", "ca")
    assert len(load_certificates(Path("coordinator/ca.crt").read_bytes(), "")) == 1
    consortium.kit("a", "a2.kit")
    consortium.runs("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    after = load_certificate("a/ca.crt")
    assert after.public_key() == before.public_key()
    assert after.not_valid_after_utc > before.not_valid_after_utc


def test_one_ca_follows_another_and_at_every_step_sites_can_come_in(consortium):
    consortium.site("a")

    def trusted_by_site():
        server = load_certificate("coordinator/server.crt")
        return any(issued_by(server, ca) for ca in load_certificates(Path("a/ca.crt").read_bytes(), ""))

    consortium.runs("ca", "ca2", "--name", "Skin consortium, second")
    assert "renew trust" in consortium.fails("renew", "server", "coordinator", "--ca", "ca2")
    assert "does not hold this CA" in consortium.fails("renew", "trust", "coordinator", "--drop", "ca2")
    assert consortium.runs("renew", "trust", "coordinator", "--ca", "ca2").count("trusted:") == 2
    assert "issued the coordinator's certificate" in consortium.fails("renew", "trust", "coordinator", "--drop", "ca")
    assert trusted_by_site()
    consortium.kit("a", "a2.kit")
    consortium.runs("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    assert trusted_by_site()
    consortium.runs("renew", "server", "coordinator", "--ca", "ca2")
    assert server_names(load_certificate("coordinator/server.crt"))[0] == ["fl.example.org", "localhost"]
    assert trusted_by_site()
    assert consortium.runs("renew", "trust", "coordinator", "--drop", "ca").count("trusted:") == 1
    consortium.kit("a", "a3.kit")
    consortium.runs("open-kit", "a3.kit", *consortium.opening("a"), "--update")
    assert trusted_by_site()
    assert "not later than" in consortium.fails("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    assert trusted_by_site()


def test_a_server_yaml_without_the_files_is_told_what_makes_them(consortium):
    Path("bare.yaml").write_text("model: tiny\n")
    assert "security.roster=null" in consortium.fails("roster", "--config", "bare.yaml")
    assert "provision server" in consortium.fails("kit", "a", "--out", "a.kit", "--config", "bare.yaml")
    assert "cannot be read" in consortium.fails("roster", "--config", "none.yaml")


def test_mistakes_on_the_command_line(consortium):
    assert "no command 'sitekey'" in consortium.fails("sitekey", "x")
    assert "no command 'sites'" in consortium.fails("renew", "sites")
    assert "is not a port" in consortium.fails("server", "new", "--ca", "ca", "--port", 0)
    assert "bare name" in consortium.fails("server", "new", "--ca", "ca", "--name", "https://fl.example.org")
    assert "there is no certificate" in consortium.fails("server", "new", "--ca", "nowhere")
    assert not list(Path("new").glob("*"))
    assert "open-kit" in consortium.runs()
    assert "trust" in consortium.runs("renew")


def test_a_full_or_closed_disk_leaves_nothing_behind(consortium, monkeypatch):
    from fed_diffmic import files

    real = os.fsync
    calls = []

    def full(fd):
        calls.append(fd)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert "No space left" in consortium.fails("server", "new", "--ca", "ca", code=6)
    assert os.listdir("new") == []
    consortium.runs("server", "new", "--ca", "ca")


def test_help_loads_neither_torch_nor_flower_nor_cryptography():
    program = (
        "import sys; from fed_diffmic import cli\n"
        "try: cli.main(['provision', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "print('HEAVY', sorted({'torch', 'flwr', 'hydra', 'numpy', 'cryptography'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "open-kit" in done.stdout
    assert "HEAVY []" in done.stdout


def test_a_roster_made_by_commands_is_what_make_authority_and_tests_use(consortium, tmp_path):
    """The functions behind the commands give the same kinds of files (other tests start from them)."""
    authority = make_authority(tmp_path / "other-ca")
    certificate, key = authority.issue_server([], [], tmp_path / "other")
    assert sorted(os.listdir(tmp_path / "other")) == ["server.crt", "server.key"]
    assert stat.S_IMODE(key.stat().st_mode) == stat.S_IMODE(Path("coordinator/server.key").stat().st_mode)
    assert server_names(load_certificate(certificate)) == (["localhost"], ["127.0.0.1", "::1"])


def test_data_that_are_not_there_open_no_kit(consortium, tmp_path):
    consortium.enrol("a", consortium.digits(consortium.runs("site-key", "a/site.key")))
    opening = ("open-kit", "a.kit", *consortium.opening("a"), "--fingerprint", consortium.kit("a"))
    err = consortium.fails(*opening, "--data", "tabel.csv")
    assert "--data tabel.csv: there is no such file or folder" in err and "leave --data out" in err
    assert not Path("a/site.yaml").exists()
    consortium.runs(*opening)  # which the remedy says


def test_a_kit_opened_twice_says_how_a_newer_one_is_opened(consortium):
    consortium.site("a")
    digits = consortium.kit("a", "a2.kit")
    err = consortium.fails("open-kit", "a2.kit", *consortium.opening("a"), "--fingerprint", digits)
    assert "a kit was opened in a already" in err and "the same command with --update" in err and "renew" not in err
    consortium.runs("open-kit", "a2.kit", *consortium.opening("a"), "--fingerprint", digits, "--update")


def test_a_kit_made_before_the_classes_are_set_is_said_on_both_sides(consortium):
    config = Path("coordinator/server.yaml")
    set_later = config.read_text()
    config.write_text(set_later.replace("classes: [benign, malignant]", "classes: null"))
    consortium.enrol("a", consortium.digits(consortium.runs("site-key", "a/site.key")))
    said = consortium.runs("kit", "a", "--out", "a.kit", *CONFIG)
    assert "WARNING: the kit says no classes" in said and "Set consortium.classes" in said
    opening = ("a.kit", *consortium.opening("a"), "--fingerprint", consortium.digits(said))
    assert "The kit names no classes" in consortium.runs("open-kit", *opening)
    config.write_text(set_later)  # and a new kit, as it says
    said = consortium.runs("kit", "a", "--out", "a2.kit", *CONFIG)
    assert "WARNING" not in said
    said = consortium.runs("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    assert "dataset.classes is None, the kit says ['benign', 'malignant']" in said
