"""cold_cache.py: files are dropped before they are read, in every process of a trial, and "cold" is said only if true."""

import os
import subprocess
import sys

import pytest

from feedrate.trainables.loader import cold_cache
from feedrate.trainables.loader.cold_cache import ColdCache, resident_fraction

SIZE = 4 * 2**20
START = """
import mmap, os, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from feedrate.trainables.loader.cold_cache import ColdCache, _resident_pages, resident_fraction

folder = Path(sys.argv[1])
paths = sorted(folder.glob("*.bin"))
"""


@pytest.fixture
def files(tmp_path):
    """Four files on storage whose pages are in the cache; skips where this file system cannot drop them."""
    paths = [tmp_path / f"{index}.bin" for index in range(4)]
    for path in paths:
        path.write_bytes(os.urandom(SIZE))
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stays = resident_fraction(paths[0])
    if stays is None or stays > 0.01:
        pytest.skip(f"the file system of {tmp_path} does not drop pages")
    for path in paths:
        path.read_bytes()
        assert resident_fraction(path) > 0.9  # memory may be short: others run here too
    return paths


def in_child(code, folder):
    """Runs code in a process of its own, because an audit hook cannot be taken out; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START + code, str(folder)],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_both_kernel_calls_agree(files):
    """cachestat and mincore see a file that is in the cache, one that is not, and one that is half."""
    for drop, expected in [(0, 1.0), (SIZE // 2, 0.5), (SIZE, 0.0)]:
        with open(files[0], "rb") as stream:
            if drop:
                os.posix_fadvise(stream.fileno(), 0, drop, os.POSIX_FADV_DONTNEED)
            assert resident_fraction(files[0]) == pytest.approx(expected, abs=0.02)
            pages = cold_cache._mincore_pages(stream.fileno(), SIZE)
            assert pages * os.sysconf("SC_PAGE_SIZE") / SIZE == pytest.approx(expected, abs=0.02)


def test_an_empty_file_has_no_pages(tmp_path):
    """Its fraction is not known, and nothing is divided by nothing."""
    (tmp_path / "empty").touch()
    assert resident_fraction(tmp_path / "empty") is None


@pytest.mark.parametrize(
    "how",
    [
        "with open(path) as stream: stream.buffer.read()",
        "path.read_bytes()",
        "os.read(os.open(str(path).encode(), 0), 9)",
    ],
)
def test_a_file_is_dropped_before_it_is_read(files, how):
    """However Python opens it: when the read begins nothing of it is in the cache, and the drop is seen to work."""
    code = f"""
path = paths[0]
descriptor = os.open(path, os.O_RDONLY)
print(_resident_pages(descriptor, 4 * 2**20))
cache = ColdCache(0)
cache.install()
def opened(event, arguments):
    if event == "open" and str(path) in os.fsdecode(arguments[0]):
        print(_resident_pages(descriptor, 4 * 2**20))
sys.addaudithook(opened)
{how}
print(cache.num_dropped(), cache.stayed_fraction(), cache.why_not_cold())
"""
    lines = in_child(code, files[0].parent)
    assert int(lines[0]) > 0.9 * SIZE / os.sysconf("SC_PAGE_SIZE")
    assert int(lines[-2]) <= 0.01 * int(lines[0])  # the kernel keeps single pages that a CPU has not put on its lists yet
    num_dropped, stayed, why_not = lines[-1].split(" ", 2)
    assert (num_dropped, why_not) == ("1", "None") and float(stayed) <= 0.01


def test_files_for_writing_and_pythons_own_are_left_alone(files):
    """What is written, modules, /proc and folders are not dropped; a file that is missing fails as ever."""
    code = """
cache = ColdCache(0)
cache.install()
import colorsys, wave
(folder / "new").write_bytes(b"x")
open("/proc/self/status").read()
os.listdir(folder)
os.mkfifo(folder / "pipe")
os.close(os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK))
cache._drop(str(folder / "gone"))
os.close(os.open(folder, os.O_RDONLY))
try:
    open(folder / "missing")
except FileNotFoundError:
    print(cache.num_dropped(), cache.why_not_cold())
"""
    assert in_child(code, files[0].parent) == ["0 the dataset did not open its files through Python, so feedrate does not know which they are"]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_drop_what_they_open(files, method, tmp_path):
    """Loader workers of every start method read cold files, and the user's worker_init_fn still runs."""
    (tmp_path / "mine.py").write_text("""
import os, sys
from pathlib import Path
import torch
from torch.utils.data import Dataset
from feedrate.trainables.loader.cold_cache import _resident_pages

seen = None

class Files(Dataset):
    def __init__(self, paths):
        self.paths = paths
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        with open(self.paths[index], "rb") as stream:
            return torch.tensor([index, _resident_pages(stream.fileno(), 4 * 2**20), len(stream.read()), seen])

def init(worker_id):
    global seen
    seen = worker_id + 10
""")
    code = f"""
sys.path.insert(0, str(folder))
import mine
if __name__ == "__main__":
    cache = ColdCache(2, {method!r})
    cache.install()
    cache.drop_held()
    loader = DataLoader(mine.Files(paths), batch_size=1, num_workers=2, multiprocessing_context={method!r},
                        worker_init_fn=cache.wrap(mine.init))
    for batch in loader:
        print(*batch[0].tolist())
    print(cache.num_dropped(), cache.stayed_fraction(), cache.why_not_cold())
"""
    script = tmp_path / "script.py"
    script.write_text(START + code)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *rows, last = done.stdout.splitlines()
    assert [row.split() for row in rows] == [[str(i), "0", str(SIZE), str(10 + i % 2)] for i in range(4)]
    assert last == "4 0.0 None"


def test_what_is_held_open_is_dropped(files):
    """A file that this process or a child of it holds open, without Python having seen it, is dropped at window edges."""
    code = """
mine = open(paths[0], "rb")
writes = open(paths[2], "r+b")
pid = os.fork()
if pid == 0:
    held = open(paths[1], "rb")
    time.sleep(60)
    os._exit(0)
while str(paths[1]) not in [os.path.realpath(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")]:
    time.sleep(0.01)
cache = ColdCache(0)
cache.drop_held()
print(cache.num_dropped(), *[resident_fraction(path) > 0.5 for path in paths], cache.why_not_cold())
mine.read()
cache.drop_held()
print(cache.num_dropped(), resident_fraction(paths[0]), sum(cache._counts[1::4]))
os.kill(pid, 9)
os.waitpid(pid, 0)
"""
    assert in_child(code, files[0].parent) == ["2 False False True True None", "4 0.0 2"]


def test_mapped_pages_stay_and_it_is_said(files):
    """The kernel keeps what a process has mapped: then the cache is not called cold."""
    code = """
with open(paths[0], "rb") as stream:
    view = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
print(sum(view[::4096]) > 0)
cache = ColdCache(0)
cache.drop_held()
print(cache.num_dropped(), cache.stayed_fraction(), cache.why_not_cold())
"""
    lines = in_child(code, files[0].parent)
    assert lines[1].startswith("1 ")
    assert "% of the pages stay in the cache: they are not yet written to storage, are mapped by a process" in lines[1]


def test_pages_not_yet_written_stay_and_it_is_said(tmp_path):
    """A file in memory only (tmpfs) cannot be dropped; a search on it is never called cold."""
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no /dev/shm here")
    path = f"/dev/shm/feedrate-test-{os.getpid()}"
    try:
        with open(path, "wb") as stream:
            stream.write(bytes(SIZE))
        cache = ColdCache(0)
        cache._drop(path)
        assert cache.num_dropped() == 1
        assert cache.stayed_fraction() == 1.0
        assert cache.why_not_cold().startswith("100% of the pages stay")
    finally:
        os.unlink(path)


def test_only_some_files_are_looked_at(files):
    """The first ones and then every 16th: a look costs as much as a drop."""
    cache = ColdCache(0)
    for _ in range(40):
        cache._drop(str(files[3]))
    assert cache.num_dropped() == 40
    assert cache._counts[1] == 16 + 1


def test_it_can_be_stopped(files):
    """A process that goes on after a cold measurement reads from the cache again."""
    code = """
cache = ColdCache(0)
for _ in range(2):
    cache.install()
    paths[0].read_bytes()
    cache.stop()
    paths[0].read_bytes()
    print(cache.num_dropped(), resident_fraction(paths[0]) > 0.5)
"""
    assert in_child(code, files[0].parent) == ["1 True", "2 True"]
