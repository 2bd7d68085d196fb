"""What a test puts between a site and its coordinator, under a site's folder, and under a process's clock."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

RESET = struct.pack("ii", 1, 0)
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static int64_t ahead(void) {
    static volatile int64_t *shared;
    if (!shared) {
        const char *path = getenv("TEST_CLOCK_FILE");
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *found = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
        static int64_t none;
        shared = found == MAP_FAILED ? &none : found;
        if (fd >= 0) close(fd);
    }
    return *shared;
}
int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, t);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += ahead();
    return result;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


class Link:
    """A TCP proxy that passes everything, until it is told to stall, to cut, or to stop in the middle of a request.

    Args:
        port: of the coordinator on this machine.

    Attributes:
        up, down: bytes that were passed on, from the site and to it.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.up = self.down = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._change = threading.Condition()
        self._mode = "pass"
        self._threshold = 0
        self._open: set[socket.socket] = set()
        self.hit = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def stop_inside(self, threshold: int) -> None:
        """Stall once a single request of the site has sent so many bytes; ``hit`` is set then."""
        self.hit.clear()
        self._threshold = threshold

    def stall(self) -> None:
        """Pass nothing more, close nothing: a cable that was pulled."""
        self._set("stall")

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._set("cut")
        self._drop()

    def heal(self) -> None:
        """Pass again. Connections that stalled are dead, as they are after a firewall forgot them."""
        self._threshold = 0
        self._drop()
        self._set("pass")

    def close(self) -> None:
        """End it."""
        self._set("closed")
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._drop()

    def _set(self, mode: str) -> None:
        with self._change:
            self._mode = mode
            self._change.notify_all()

    def _drop(self) -> None:
        for sock in list(self._open):
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while self._mode != "closed":
            try:
                near, _ = self._listener.accept()
                if self._mode != "cut":
                    far = socket.create_connection(("127.0.0.1", self._to), timeout=5)
                    far.settimeout(None)
            except OSError:
                with suppress(OSError, UnboundLocalError):
                    near.close()
                continue
            if self._mode == "cut":
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                near.close()
                continue
            self._open |= {near, far}
            sent = [0]
            for source, sink, up in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._copy, args=(source, sink, up, sent), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, up: bool, sent: list[int]) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                sent[0] = sent[0] + len(data) if up else 0
                if up and self._threshold and sent[0] > self._threshold:
                    self._threshold = 0
                    self._set("stall")
                    self.hit.set()
                with self._change:
                    self._change.wait_for(lambda: self._mode != "stall")
                    self.up, self.down = self.up + (len(data) if up else 0), self.down + (0 if up else len(data))
                sink.sendall(data)
        for sock in (source, sink):
            self._open.discard(sock)
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


class Clock:
    """The wall clock of processes that are started with :attr:`env`, ahead by as much as is said, at once.

    Args:
        folder: gets the small library that they load.
        compiler: of C.
    """

    @classmethod
    def make(cls, folder: Path) -> Clock | None:
        """One, or none where there is no C compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        return None if compiler is None or sys.platform != "linux" else cls(folder, compiler)

    def __init__(self, folder: Path, compiler: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "clock.c").write_text(CLOCK)
        library = folder / "clock.so"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(folder / "clock.c"), "-ldl"], check=True
        )
        file = folder / "clock"
        file.write_bytes(struct.pack("q", 0))
        with file.open("r+b") as stream:
            self._shared = mmap.mmap(stream.fileno(), 8)
        self.env = {"LD_PRELOAD": str(library), "TEST_CLOCK_FILE": str(file)}

    def ahead(self, seconds: int) -> None:
        """From now on."""
        self._shared[:8] = struct.pack("q", seconds)


def small_disk(folder: Path, stack: ExitStack, mib: int = 128) -> bool:
    """Mount a file system of its own over ``folder`` until ``stack`` ends; whether that is allowed here."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    if done.returncode == 0:
        stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
    return done.returncode == 0


def fill(folder: Path) -> Path:
    """Use up what is left of the disk under ``folder``; the file that does it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as stream, suppress(OSError):
        while stream.write(b"\0" * 65536):
            pass
    with path.open("ab", buffering=0) as stream, suppress(OSError):
        while stream.write(b"\0"):
            pass
    os.sync()
    return path
