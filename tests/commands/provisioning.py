"""The people of a coordinator and of a site, at their terminals."""

import io
import re
from pathlib import Path

from fed_diffmic import cli
from fed_diffmic.config.compose import compose_site
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


def typed(monkeypatch, text):
    """A person at a terminal who types ``text``."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal(text))
