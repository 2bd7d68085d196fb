"""The roster: which sites are admitted, by name and public key; and which keys never again.

One JSON file beside the coordinator's configuration. It is read strictly (an unknown field, a second site of the
same name or key is refused, so that a slip of the hand admits nobody) and written atomically.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from fed_diffmic.config.network_checks import check_site_name as _configured_name
from fed_diffmic.errors import ConfigError, CredentialError, MachineError
from fed_diffmic.files import atomic_write
from fed_diffmic.provision.keys import PublicKey, parse_public, public_text

ROLES = ("train",)
"""What a site may be asked: ``train`` is to train and to evaluate. The field is there for roles to come."""

MOST_IMAGES = 10**9
"""A number of images that no site exceeds; one beyond it in a roster is a slip of the hand."""

_VERSION = 1
_OPTIONAL = {"max_images"}
_Entry = TypeVar("_Entry", "RosterEntry", "RevokedEntry")


@dataclass(frozen=True)
class RosterEntry:
    """One admitted site.

    Args:
        name: its name in every table, log and figure (:func:`check_site_name`).
        public_key: one line of OpenSSH text (EC P-256 or P-384); kept without its comment.
        institution: who runs it, in words.
        role: one of :data:`ROLES`.
        enrolled: UTC time, ISO 8601.
        max_images: the most images (training, validation and test together) that the site may say it has; none: no
            such bound is agreed.
    """

    name: str
    public_key: str
    institution: str
    role: str
    enrolled: str
    max_images: int | None = None

    def __post_init__(self) -> None:
        _check_text(self)
        if self.role not in ROLES:
            raise CredentialError(f"site {self.name!r}: there is no role {self.role!r}", f"Use {' or '.join(ROLES)}.")
        if self.max_images is not None and (type(self.max_images) is not int or not 0 < self.max_images <= MOST_IMAGES):
            raise CredentialError(
                f"max_images of site {self.name!r} must be a whole number from 1 to {MOST_IMAGES}",
                "Say how many images the site has at most, or leave it out.",
            )
        object.__setattr__(self, "public_key", public_text(parse_public(self.public_key, f"key of site {self.name!r}")))

    @property
    def key(self) -> PublicKey:
        """The public key itself."""
        return parse_public(self.public_key)


@dataclass(frozen=True)
class RevokedEntry:
    """A key that is refused for good: who had it, since when, why."""

    name: str
    public_key: str
    revoked: str
    reason: str

    def __post_init__(self) -> None:
        _check_text(self)
        object.__setattr__(self, "public_key", public_text(parse_public(self.public_key, f"revoked key {self.name!r}")))


@dataclass(frozen=True)
class Roster:
    """Everyone who is admitted, by name; no two of the same name (whatever the case) or key, none revoked."""

    sites: tuple[RosterEntry, ...] = ()
    revoked: tuple[RevokedEntry, ...] = ()

    def __post_init__(self) -> None:
        names: set[str] = set()
        keys: dict[str, str] = {}
        gone = {entry.public_key: entry for entry in self.revoked}
        for entry in self.sites:
            if entry.name.casefold() in names:
                raise CredentialError(
                    f"the roster has two sites of the name {entry.name!r}",
                    "Give each its own name. For a new key of the same site use `fed-diffmic provision renew site`.",
                )
            if entry.public_key in keys:
                raise CredentialError(
                    f"the sites {keys[entry.public_key]!r} and {entry.name!r} have one and the same key",
                    "Each site makes its own: `fed-diffmic provision site-key FILE`.",
                )
            if entry.public_key in gone:
                raise CredentialError(
                    f"the key of site {entry.name!r} was revoked ({gone[entry.public_key].reason})",
                    "A revoked key is never admitted again: the site makes a new one.",
                )
            names.add(entry.name.casefold())
            keys[entry.public_key] = entry.name

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Roster:
        """Read a roster.

        Raises:
            CredentialError: missing, not this form, two sites of one name or key, a key that Flower refuses.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise CredentialError(
                f"there is no roster {path}",
                "Check security.roster, or put it back from the backup: who was revoked stands in it alone. "
                "`fed-diffmic provision server` writes an empty one for a new coordinator.",
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialError(f"the roster {path} cannot be read: {error}", "Check the path.") from error
        try:
            value = json.loads(text, object_pairs_hook=_no_duplicates)
            sites = _entries(RosterEntry, _field(value, "sites"))
            revoked = _entries(RevokedEntry, _field(value, "revoked"))
            if set(value) != {"version", "sites", "revoked"} or value["version"] != _VERSION:
                raise ValueError(f"it must hold version {_VERSION}, sites, revoked and nothing else")
            return cls(sites, revoked)
        except ValueError as error:
            raise CredentialError(
                f"the roster {path} cannot be used: {error}", "Restore it, and change it by `fed-diffmic provision`."
            ) from error
        except CredentialError as error:
            raise CredentialError(f"the roster {path} cannot be used: {error.cause}", error.remedy) from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the roster atomically (0644: it holds no secret); sites by name."""
        return atomic_write(path, self.to_json())

    def to_json(self) -> bytes:
        """The roster as its file holds it."""
        value = {
            "version": _VERSION,
            "sites": [_fields_of(entry) for entry in sorted(self.sites, key=lambda entry: entry.name)],
            "revoked": [asdict(entry) for entry in self.revoked],
        }
        return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()

    def site(self, name: str) -> RosterEntry:
        """The site of that name.

        Raises:
            CredentialError: there is none; names those that are.
        """
        for entry in self.sites:
            if entry.name == name:
                return entry
        known = ", ".join(sorted(entry.name for entry in self.sites))
        raise CredentialError(
            f"the roster has no site {name!r}; it has {known or 'none yet'}",
            "Check the name." if known else "`fed-diffmic provision enrol` adds the first.",
        )

    def enrol(
        self, name: str, public_key: str, institution: str, role: str = "train", max_images: int | None = None
    ) -> Roster:
        """With one more site.

        Raises:
            CredentialError: the name or key is taken, or the key was revoked.
        """
        entry = RosterEntry(name, public_key, institution, role, utc_now(), max_images)
        return replace(self, sites=(*self.sites, entry))

    def rekey(self, name: str, public_key: str, reason: str = "replaced by a new key") -> Roster:
        """With a new key for a site; the old one is revoked."""
        old = self.site(name)
        if public_text(parse_public(public_key)) == old.public_key:
            raise CredentialError(f"site {name!r} has this key already", "Make a new one under a new file name.")
        return self.revoke(name, reason).enrol(name, public_key, old.institution, old.role, old.max_images)

    def revoke(self, name: str, reason: str) -> Roster:
        """Without a site, whose key is refused from now on."""
        old = self.site(name)
        gone = RevokedEntry(name, old.public_key, utc_now(), reason)
        return Roster(tuple(entry for entry in self.sites if entry != old), (*self.revoked, gone))


def check_site_name(name: str) -> str:
    """``name`` if a site may be called so: the rule of the configuration, and only one spelling of it.

    Raises:
        CredentialError: otherwise.
    """
    try:
        _configured_name("site.name", name)
    except ConfigError as error:
        raise CredentialError(f"a site cannot be called {ascii(name)[:140]}", f"Use {error.allowed}.") from error
    if name != unicodedata.normalize("NFC", name) or name != " ".join(name.split()):
        raise CredentialError(
            f"a site cannot be called {ascii(name)[:140]}",
            "Write letters with marks as one character (NFC), and single blanks between words only.",
        )
    return name


def utc_now() -> str:
    """The time now, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


@contextmanager
def changing(path: str | os.PathLike[str], wait_s: float = 10.0) -> Iterator[None]:
    """Hold the roster for a change, so that two people at once lose neither's.

    Raises:
        MachineError: someone else holds it for longer than ``wait_s``.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=wait_s)
    try:
        lock.acquire()
    except Timeout as error:
        raise MachineError(f"someone else is changing the roster {path}", "Try again in a minute.") from error
    except OSError as error:
        raise MachineError(
            f"cannot change the roster {path}: {error.strerror}", "Choose a folder that you may write to."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _check_text(entry: RosterEntry | RevokedEntry) -> None:
    for f in fields(entry):
        if f.name in _OPTIONAL:
            continue
        value = getattr(entry, f.name)
        if not isinstance(value, str) or not value.strip() or len(value) > 512 or not value.isprintable():
            raise CredentialError(
                f"{f.name} of site {str(entry.name)[:64]!r} must be one line of text (at most 512 characters)",
                f"Say what the {f.name} is.",
            )
    check_site_name(entry.name)


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(name), list):
        raise ValueError(f"it has no list {name!r}")
    return value[name]


def _entries(kind: type[_Entry], values: list[Any]) -> tuple[_Entry, ...]:
    wanted = {f.name for f in fields(kind)}
    for n, value in enumerate(values, 1):
        if not isinstance(value, dict) or set(value) | _OPTIONAL & wanted != wanted:
            raise ValueError(f"entry {n} must hold {', '.join(sorted(wanted))} and nothing else")
    return tuple(kind(**value) for value in values)


def _fields_of(entry: RosterEntry) -> dict[str, Any]:
    """An entry as its file holds it; a bound that was not agreed is left out, as in rosters that knew none."""
    return {name: value for name, value in asdict(entry).items() if name not in _OPTIONAL or value is not None}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a field is given twice")
    return value
