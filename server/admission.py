"""Who is admitted to a running SuperLink: the roster, followed as it changes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from fed_diffmic.errors import CredentialError
from fed_diffmic.provision.keys import PublicKey, parse_public
from fed_diffmic.provision.roster import Roster
from fed_diffmic.transport.control import Control
from fed_diffmic.transport.superlink import LinkLostError, RunningLink
from server.replies import Events


class Admission:
    """Keeps the nodes that the SuperLink knows the same as the sites of the roster.

    A newly enrolled site is registered; one that was removed is dropped from :meth:`names_of_nodes` within ``pause_s``
    seconds, and so asked for nothing more (the guard of the public listener refuses it at once). A roster that
    cannot be read any more changes nothing, and is said once.

    Args:
        link: the SuperLink.
        roster: its path.
        events: where facts go.
        pause_s: how often the roster is looked at.

    Raises:
        CredentialError: the roster cannot be used at the start.
        LinkLostError: the SuperLink does not answer.
    """

    def __init__(self, link: RunningLink, roster: Path, events: Events, *, pause_s: float = 1.0) -> None:
        self._control = Control(link)
        self._path = roster
        self._events = events
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._nodes: dict[str, tuple[str, int]] = {}
        self._most: dict[str, int] = {}
        self._complaint = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="roster")
        self._apply(Roster.load(roster))

    def start(self) -> None:
        """Follow the roster from here on."""
        self._thread.start()

    def stop(self) -> None:
        """Follow it no more."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._control.close()

    def names_of_nodes(self) -> Mapping[int, str]:
        """The admitted site that each of Flower's nodes is."""
        with self._lock:
            return {node: name for name, (_, node) in self._nodes.items()}

    def key_of(self, site: str) -> PublicKey | None:
        """The key of an admitted site, or none."""
        with self._lock:
            key, _ = self._nodes.get(site, ("", 0))
        return parse_public(key) if key else None

    def most_images(self) -> Mapping[str, int]:
        """How many images a site may say that it has, for those whose entry says so."""
        with self._lock:
            return dict(self._most)

    def _follow(self) -> None:
        while not self._over.wait(self._pause_s):
            try:
                self._apply(Roster.load(self._path))
                self._complaint = ""
            except CredentialError as error:
                self._say_once(error.cause)
            except LinkLostError:
                return  # the supervisor sees it too, and starts anew

    def _apply(self, roster: Roster) -> None:
        wanted = {entry.name: entry.public_key for entry in roster.sites}
        with self._lock:
            self._most = {entry.name: entry.max_images for entry in roster.sites if entry.max_images is not None}
            gone = sorted(name for name, (key, _) in self._nodes.items() if wanted.get(name) != key)
            for name in gone:
                del self._nodes[name]
            new = {name: key for name, key in wanted.items() if name not in self._nodes}
        for name in gone:
            self._events.emit("site_removed", site=name)
        if new:
            nodes = self._control.register(list(new.values()))
            with self._lock:
                self._nodes |= {name: (key, nodes[key]) for name, key in new.items()}
            for name in sorted(new):
                self._events.emit("site_admitted", site=name)
        elif not self._nodes and not self._complaint:
            self._say_once("the roster admits no site")

    def _say_once(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            self._events.emit("warning", code="roster", message=f"the roster in use stays: {complaint}")
