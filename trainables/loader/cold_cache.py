"""Keep the page cache cold on purpose: drop the pages of each file just before the dataset reads it.

A Python audit hook sees every file that the trainer or its loader workers open for reading, and asks the kernel to drop the
file's clean pages. The hook does not see files that C libraries open by themselves; files that any process of the trial *holds*
open are found in /proc and dropped at window edges. Three kinds of pages stay in the cache, which is found out by querying
it: pages not yet written to storage (feedrate does not sync the user's files), pages that a process has mapped, and pages of
file systems without storage behind them. In a virtual machine, "cold" means cold in the guest: its host may still cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import stat
import sys
import sysconfig
import threading
from collections.abc import Callable
from typing import Any

from feedrate.trainables.machine.process import tree_pids

_COUNTS = 4
"""Counters per process: files dropped, files examined afterwards, their pages, and how many of these pages stayed in the cache."""
SAMPLE = 16
"""The first 16 files of a process are examined after they are dropped, and then every 16th."""
STAYED_FRACTION = 0.01
_SKIPPED_SUFFIXES = (".py", ".pyc", ".so", ".pth", ".egg-link")
_SKIPPED_FOLDERS = tuple(
    {
        prefix(sysconfig.get_path(name)) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        for prefix in (os.path.abspath, os.path.realpath)
    }
    | {"/proc/", "/sys/", "/dev/", "/usr/lib/", "/lib/", "/etc/"}
)
_SYS_CACHESTAT = 451
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_installed: ColdCache | None = None
_hooked = False
"""Whether the audit hook is installed; Python cannot remove an audit hook."""
_this_thread = threading.local()
"""`.drops` is true while this thread drops a file: doing so opens files itself."""


class ColdCache:
    """Drops from the page cache the files that one trial reads, and counts how many of them the kernel really dropped. Can be pickled for workers of every start method.

    Each process has its own slot of counters and is its only writer, so there is no lock: slot 0 is the trainer, slot
    `worker id + 1` a worker.
    """

    def __init__(self, num_workers: int, start_method: str | None = None) -> None:
        context = multiprocessing.get_context(start_method)
        self._counts = context.RawArray("q", _COUNTS * (num_workers + 1))
        self.slot = 0
        self._began = False

    def install(self) -> None:
        """Drop every file that this process, or a process forked from it, opens for reading from now on."""
        global _installed, _hooked
        if not _hooked:
            sys.addaudithook(_on_event)
            _hooked = True
        _installed = self

    def stop(self) -> None:
        """Stop dropping files in this process; the hook stays installed but does nothing."""
        global _installed
        _installed = None

    def wrap(self, worker_init_fn: Callable[[int], None] | None) -> Callable[[int], None]:
        """Return a picklable worker_init_fn that installs the hook in a worker, then calls the given worker_init_fn."""
        return functools.partial(_init_worker, self, worker_init_fn)

    def drop_held(self) -> None:
        """Drop every file that a process of the trial holds open for reading, or that the trainer has mapped.

        Call it before iter(loader) and at every window edge, because a file that is held open is opened only once. The
        files are examined only the first time, because workers go on reading later.
        """
        seen: set[str] = set()
        look, self._began = not self._began, True
        for pid in tree_pids():
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        path = os.readlink(f"/proc/{pid}/fd/{name}")
                        if path not in seen and _is_data(path) and _is_read_only(pid, name):
                            seen.add(path)
                            self._drop(path, look)
        for path in _mapped() - seen:
            self._drop(path, look)

    def num_dropped(self) -> int:
        """Return the number of files dropped so far by all processes; a file that is opened again counts again."""
        return sum(self._counts[0::_COUNTS])

    def stayed_fraction(self) -> float | None:
        """Return the share of pages that stayed in the cache, over all examined files; None if no file was examined."""
        pages = sum(self._counts[2::_COUNTS])
        return sum(self._counts[3::_COUNTS]) / pages if pages else None

    def why_not_cold(self) -> str | None:
        """Return None if the cache really was cold, otherwise a clause that says why not."""
        stayed = self.stayed_fraction()
        if stayed is None:
            return "the dataset did not open its files through Python, so feedrate does not know which they are"
        if stayed >= STAYED_FRACTION:
            return (
                f"{stayed:.0%} of the pages stay in the cache: they are not yet written to storage, are mapped by a process, or belong to "
                "a file system without storage"
            )
        return None

    def _drop(self, path: str, look: bool = True) -> None:
        """Drop one file; for some files, examine which pages stayed. Ignore a path that is gone or no regular file."""
        _this_thread.drops = True
        try:
            status = os.stat(path)
            size = status.st_size
            if not stat.S_ISREG(status.st_mode) or size == 0:  # the process at the other end of a pipe would notice an open()
                return
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                first = self.slot * _COUNTS
                self._counts[first] += 1
                if look and (self._counts[first] <= SAMPLE or self._counts[first] % SAMPLE == 0):
                    resident = _resident_pages(descriptor, size)
                    if resident is not None:
                        self._counts[first + 1] += 1
                        self._counts[first + 2] += -(-size // _PAGE_BYTES)
                        self._counts[first + 3] += resident
            finally:
                os.close(descriptor)
        except OSError:
            return
        finally:
            _this_thread.drops = False


def resident_fraction(path: str | os.PathLike[str]) -> float | None:
    """Return the share of a file's pages in the page cache (0..1); None if the file is empty or the kernel does not tell.

    Raises:
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        resident = _resident_pages(descriptor, size)
        return None if resident is None or not size else resident / -(-size // _PAGE_BYTES)
    finally:
        os.close(descriptor)


def _resident_pages(descriptor: int, size: int) -> int | None:
    """Return the number of a file's cached pages, from cachestat(2) (kernel 6.5) or else mincore(2); neither loads any page."""
    asked, answer = (ctypes.c_uint64 * 2)(0, size), (ctypes.c_uint64 * 5)()
    if _libc.syscall(_SYS_CACHESTAT, descriptor, asked, answer, 0) == 0:
        return int(answer[0])
    return _mincore_pages(descriptor, size)


def _mincore_pages(descriptor: int, size: int) -> int | None:
    address = _libc.mmap(None, size, 1, 1, descriptor, 0)  # PROT_READ, MAP_SHARED
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    try:
        pages = ctypes.create_string_buffer(-(-size // _PAGE_BYTES))
        if _libc.mincore(address, size, pages):
            return None
        return sum(byte & 1 for byte in pages.raw)
    finally:
        _libc.munmap(address, size)


def _on_event(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook. Python calls it for every audited event, so the common case is only one comparison."""
    if event != "open" or _installed is None or getattr(_this_thread, "drops", False):
        return
    path, _, flags = arguments
    if isinstance(path, (str, bytes)) and isinstance(flags, int) and flags & os.O_ACCMODE == os.O_RDONLY:
        # an exception here would look like an error of the user's open()
        with contextlib.suppress(Exception):
            name = os.path.abspath(os.fsdecode(path))
            if _is_data(name):
                _installed._drop(name)


def _init_worker(cache: ColdCache, worker_init_fn: Callable[[int], None] | None, worker_id: int) -> None:
    cache.slot = worker_id + 1
    cache.install()
    if worker_init_fn is not None:
        worker_init_fn(worker_id)


def _is_data(path: str) -> bool:
    """Whether a path may be data: it belongs neither to Python, nor to the system, nor to a program."""
    return path.startswith("/") and not (path.endswith(_SKIPPED_SUFFIXES) or path.startswith(_SKIPPED_FOLDERS))


def _is_read_only(pid: int, descriptor: str) -> bool:
    with open(f"/proc/{pid}/fdinfo/{descriptor}") as stream:
        flags = next(line for line in stream if line.startswith("flags:"))
    return int(flags.split()[1], 8) & os.O_ACCMODE == os.O_RDONLY


def _mapped() -> set[str]:
    """Return the data files that this process has mapped; its workers inherit them. A file with an executable mapping is a program."""
    found: set[str] = set()
    programs: set[str] = set()
    with contextlib.suppress(OSError), open("/proc/self/maps") as stream:
        for line in stream:
            _, permissions, *_, path = line.rstrip("\n").split(maxsplit=5)
            (programs if "x" in permissions else found).add(path)
    return {path for path in found - programs if _is_data(path)}
