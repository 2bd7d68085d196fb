"""Power cuts and killed processes never hide what was spent."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

from fed_diffmic.privacy import continuity
from fed_diffmic.privacy.account import FILE, FOLDER, UNITS
from fed_diffmic.privacy.accounting import Mechanism, epsilon
from fed_diffmic.privacy.continuity import ANCHOR
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.ledger_lines import head_text
from tests.privacy.ledgers import BOTH, PLACE, PRIVACY, STEP, A, B

# --- crashes -----------------------------------------------------------------------------------------------------


def work(ledger, allowed):
    """Reserve, train, settle; ``allowed`` holds what the caller was let do, before it does it."""
    for index in range(6):
        chosen = (A, B, BOTH)[index % 3]
        number = ledger.reserve(chosen, STEP, **{**PLACE, "round_index": index})
        allowed.append([chosen, STEP])
        taken = index % 6
        allowed[-1][1] = Mechanism(STEP.sample_rate, STEP.noise_multiplier, min(taken, 5))
        ledger.settle(number, min(taken, 5))


class Disk:
    """What a disk holds after a power cut: only what was flushed, and by chance some of what was not.

    The real calls are made in a real folder; before each, and at the end, the folder is looked at. A file's content is
    safe when the file was flushed, a name when its folder was.
    """

    def __init__(self, root):
        self.root, self.moments = root, []
        self.content, self.names = {}, {}  # inode -> flushed bytes; folder -> {name: inode} as flushed
        self.kept = {}  # inode -> last bytes seen: a name that comes back needs them

    def look(self):
        names, content = {}, {}
        for folder, folders, files in os.walk(self.root):
            names[folder] = {n: os.stat(os.path.join(folder, n)).st_ino for n in [*folders, *files]}
            for name in files:
                path = os.path.join(folder, name)
                with open(path, "rb") as stream:
                    content[os.stat(path).st_ino] = stream.read()
        self.kept |= content
        return names, content

    def moment(self, allowed, echoed):
        names, content = self.look()
        truth = [(u, m) for u, m in allowed]
        self.moments.append(
            (
                names,
                content,
                {k: dict(v) for k, v in self.names.items()},
                dict(self.content),
                dict(self.kept),
                truth,
                echoed,
            )
        )

    def flushed(self, fd):
        inode = os.fstat(fd).st_ino
        names, content = self.look()
        if inode in content:
            self.content[inode] = content[inode]
        for folder, kept in names.items():
            if os.stat(folder).st_ino == inode:
                self.names[folder] = dict(kept)

    def after_power_cut(self, moment, rng):
        """What survives, by its path: a file's bytes, none for a folder, each after what it lies in."""
        names, content, safe_names, safe, kept, _, _ = moment
        survived = {}

        def fill(folder, into):
            now, before = names.get(folder, {}), safe_names.get(folder, {})
            for name in sorted(now.keys() | before.keys()):
                if now.get(name) == before.get(name):
                    inode = now[name]
                else:
                    inode = rng.choice([now.get(name), before.get(name)])
                if inode is None:
                    continue
                inside = os.path.join(folder, name)
                if inside in names and os.path.isdir(inside):
                    survived[f"{into}{name}"] = None
                    fill(inside, f"{into}{name}/")
                    continue
                written, flushed = content.get(inode, kept.get(inode, b"")), safe.get(inode, b"")
                if written.startswith(flushed):
                    flushed = written[: rng.randint(len(flushed), len(written))]
                else:
                    flushed = rng.choice([written, flushed])
                survived[f"{into}{name}"] = flushed

        fill(str(self.root), "")
        return survived


def write_out(survived, target):
    target.mkdir(mode=0o700)
    for path, data in survived.items():
        if data is None:
            (target / path).mkdir(mode=0o700)
        else:
            (target / path).write_bytes(data)


def test_a_thousand_power_cuts_never_hide_what_was_spent(tmp_path, key, monkeypatch):
    import random

    from fed_diffmic import files
    from fed_diffmic.exchange import audit

    site = tmp_path / "site"
    site.mkdir(mode=0o700)
    disk, allowed, echoed = Disk(site), [], [""]
    disk.names = {str(site): {}}

    class Watched:
        """The operating system's functions; whoever flushes or writes is seen."""

        def __getattr__(self, name):
            real = getattr(os, name)
            if name not in ("write", "fsync", "replace", "truncate", "open", "close"):
                return real

            def call(*args, **kwargs):
                disk.moment(allowed, echoed[0])
                result = real(*args, **kwargs)
                if name == "fsync":
                    disk.flushed(args[0])
                disk.moment(allowed, echoed[0])
                return result

            return call

    for place in (files, audit, continuity):
        monkeypatch.setattr(place, "os", Watched())
    for _ in range(2):  # closed and opened again in between
        with Ledger(site, PRIVACY, key) as ledger:
            work(ledger, allowed)
            echoed[0] = head_text(ledger.head())
            ledger.grant(50.0, "more")
    monkeypatch.undo()
    rng = random.Random(0)
    assert len(disk.moments) > 500
    torn, tried = 0, set()
    for cut in range(1000):
        moment = rng.choice(disk.moments)
        survived = disk.after_power_cut(moment, rng)
        raw = survived.get(f"{FOLDER}/{FILE}", b"")
        torn += bool(raw) and not raw.endswith(b"\n")
        found = (tuple(survived.items()), moment[6], tuple((id(u), m) for u, m in moment[5]))
        if found in tried:  # the same bytes after the same promises: the same answer
            continue
        tried.add(found)
        target = tmp_path / f"cut-{cut}"
        write_out(survived, target)
        with Ledger(target, PRIVACY, key, echoed=moment[6]) as again:
            for chosen in (A, B, BOTH):
                shared = [m for u, m in moment[5] if u is chosen or (u is BOTH) or (chosen is BOTH)]
                if chosen is BOTH:
                    worst = max(
                        epsilon_of([m for u, m in moment[5] if u in (A, BOTH)]),
                        epsilon_of([m for u, m in moment[5] if u in (B, BOTH)]),
                    )
                else:
                    worst = epsilon_of(shared)
                assert again.spent(chosen) >= worst - 1e-9
        shutil.rmtree(target)
    assert torn > 20 and len(tried) > 150  # the case was among them


COSTS = {}


def epsilon_of(mechanisms):
    steps = sum(m.steps for m in mechanisms)
    if steps not in COSTS:
        COSTS[steps] = epsilon([Mechanism(STEP.sample_rate, STEP.noise_multiplier, steps)], 1e-5)
    return COSTS[steps]


def test_killed_processes_never_hide_what_was_spent(tmp_path, key):
    """Twenty times a process that keeps books is killed by its pid, at any moment; what it was let do is in a pipe."""
    site = tmp_path / "site"
    site.mkdir(mode=0o700)
    wide = replace(PRIVACY, budget=1e6)
    Ledger(site, wide, key).close()
    total = 0
    for attempt in range(20):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(read)
                with Ledger(site, wide, key) as ledger:
                    for index in range(1000):
                        ledger.reserve(A, STEP, **{**PLACE, "round_index": index})
                        os.write(write, b".")
            finally:
                os._exit(0)
        os.close(write)
        try:
            got = os.read(read, 1)
            time.sleep(0.002 * attempt)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        while more := os.read(read, 1 << 16):
            got += more
        os.close(read)
        total += len(got)
        with Ledger(site, wide, key) as ledger:
            counted = sum(e.mechanism.steps for e in ledger.entries())
            assert counted >= total * STEP.steps
            total = counted // STEP.steps  # a reservation whose caller never heard of it stays counted
    assert total >= 20
    assert json.loads((site / ANCHOR).read_text())["length"] > 20
    assert len(list((site / FOLDER / UNITS).iterdir())) == 1
