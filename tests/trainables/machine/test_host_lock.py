"""host_lock.py: one trial at a time on a host; no other user can block it for ever."""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from census import eventually, remove_locks

from feedrate.trainables.machine import host_lock
from feedrate.trainables.machine.host import host_id
from feedrate.trainables.machine.host_lock import HostLock


@pytest.fixture(autouse=True)
def own_host(monkeypatch):
    """A host of this test's own, so that no search on this machine is in the way."""
    monkeypatch.setenv("FEEDRATE_HOST_ID", f"test-{os.getpid()}-{time.monotonic_ns()}")
    yield
    remove_locks()


def holder(more="sys.stdin.read()", gpus=()):
    """A process that holds this host's lock until its standard input ends, unless `more` says something else."""
    code = f"""if True:
        import os, sys, time
        from feedrate.trainables.machine.host_lock import HostLock
        lock = HostLock({gpus!r}, command='feedrate search images')
        lock.acquire(lambda why: print("waiting", flush=True))
        print("held", flush=True)
        {more}
    """
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def is_free(gpus=()):
    """Whether somebody else could take the lock now."""
    waits, lock = [], HostLock(gpus)

    class Busy(Exception):
        pass

    def give_up(why):
        waits.append(1)
        raise Busy

    with contextlib.suppress(Busy):
        lock.acquire(give_up)
    lock.release()
    return not waits


def test_the_second_waits_and_says_so():
    """Two processes never hold the lock together; the second one reports once that it waits, and goes on when the first one ends."""
    with holder() as first:
        assert first.stdout.readline() == "held\n"
        with holder() as second:
            assert second.stdout.readline() == "waiting\n"
            time.sleep(0.3)
            assert second.poll() is None
            first.stdin.close()
            assert second.stdout.readline() == "held\n"
            assert not is_free()
            second.stdin.close()
    assert is_free()


def test_a_lock_is_given_back_and_taken_again():
    """`release` frees it, twice is harmless, and one process can take it again."""
    lock = HostLock()
    for _ in range(2):
        lock.acquire(pytest.fail)
        assert not is_free()
        lock.release()
        lock.release()
        assert is_free()


@pytest.mark.parametrize("kill_first", [False, True])
def test_the_lock_is_held_as_long_as_a_grandchild_lives(kill_first):
    """A forked process of the trial holds the lock after its parent ended or was killed, and frees it with its end."""
    forks = "pid = os.fork()\n        if pid == 0: time.sleep(1000)\n        print(pid, flush=True)\n        sys.stdin.read()"
    with holder(forks) as first:
        assert first.stdout.readline() == "held\n"
        grandchild = psutil.Process(int(first.stdout.readline()))
        if kill_first:
            first.kill()
        first.stdin.close()
        first.wait()
        assert not is_free()
        os.kill(grandchild.pid, signal.SIGKILL)
        assert eventually(is_free)


def test_everybody_can_open_the_lock(monkeypatch, tmp_path):
    """A careful umask does not lock other users out, who also write there who they are."""
    monkeypatch.setattr(host_lock, "LOCK_FOLDER", tmp_path)
    lock, before = HostLock(), os.umask(0o077)
    try:
        assert lock.acquire(pytest.fail) is None
    finally:
        os.umask(before)
    assert lock.path.stat().st_mode & 0o777 == 0o666
    lock.release()
    assert lock.path.read_bytes() == b""


def test_the_holder_is_named():
    """Who, which process, since when and with which command; a process that took the lock without feedrate is named, too."""
    said = []
    with holder() as first:
        assert first.stdout.readline() == "held\n"
        waiting = threading.Thread(target=HostLock().acquire, args=(said.append,))
        waiting.start()
        assert eventually(lambda: said)
        first.stdin.close()
        waiting.join(10)
    user = pwd.getpwuid(os.getuid()).pw_name
    assert re.fullmatch(rf"another feedrate trial is measuring on this host \({user}, process {first.pid}, since 20.*: feedrate search images\)", said[0])


def test_who_is_not_seen_is_named_by_the_file(monkeypatch, tmp_path):
    """As in another PID namespace; what a file says is cut, and control characters are left out."""
    monkeypatch.setattr(host_lock, "LOCKS", tmp_path / "none")
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": 7, "user": "ann", "command": "feedrate\x1b[2J" + "x" * 1000, "since_unix_s": 0}))
    with path.open() as stream:
        found = host_lock.holder_of(stream.fileno())
        assert (found.pid, found.user, found.is_known, len(found.command)) == (7, "ann", False, host_lock.MOST_CHARACTERS)
        assert "\x1b" not in found.command
        for text in ("", "[]", "{}", '{"pid": null}', "\0" * 10000):
            path.write_text(text)
            assert host_lock.holder_of(stream.fileno()) is None


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("flock") is None, reason="needs root, to be another user, and the program flock")
@pytest.mark.parametrize("which", ["path", "_turn"])
def test_another_users_lock_is_not_waited_for_for_ever(which):
    """Whoever took it with whatever program is named, and the trial measures without it."""
    lock = HostLock(others_wait_s=0.0)
    path, said = getattr(lock, which), []
    command = ["flock", path, "sh", "-c", "echo held; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user=65534, cwd="/") as other:
        assert other.stdout.readline() == "held\n"
        why = lock.acquire(said.append)
        name = pwd.getpwuid(65534).pw_name
        assert said == [f"this host's lock {path} is held by process {other.pid} of {name}"]
        assert why == f"{path} was held for 0 min by process {other.pid} of {name}"
        lock.release()
        other.stdin.close()
    assert lock.acquire(pytest.fail) is None
    lock.release()


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
def test_something_else_in_the_locks_place_stops_nobody(monkeypatch, tmp_path, what):
    """A link is not followed, a pipe not waited for; the trial measures without the lock."""
    monkeypatch.setattr(host_lock, "LOCK_FOLDER", tmp_path)
    lock, target = HostLock(), tmp_path / "target"
    target.write_text("mine")
    {"link": lambda: lock.path.symlink_to(target), "pipe": lambda: os.mkfifo(lock.path), "folder": lock.path.mkdir}[what]()
    assert lock.acquire(pytest.fail).startswith(str(lock.path))
    assert target.read_text() == "mine"
    assert lock._descriptors == []
    lock.path.rmdir() if what == "folder" else lock.path.unlink()


def test_a_file_with_another_name_is_not_written_to(monkeypatch, tmp_path):
    """Another user may have linked one of ours to the lock's place."""
    monkeypatch.setattr(host_lock, "LOCK_FOLDER", tmp_path)
    lock, target = HostLock(), tmp_path / "target"
    target.write_text("mine")
    lock.path.hardlink_to(target)
    assert lock.acquire(pytest.fail) is None
    lock.release()
    assert target.read_text() == "mine"


def test_two_hosts_do_not_wait_for_each_other(monkeypatch):
    """FEEDRATE_HOST_ID names the host: two of them on one machine have two locks."""
    first = HostLock()
    first.acquire(pytest.fail)
    own, other = os.environ["FEEDRATE_HOST_ID"], os.environ["FEEDRATE_HOST_ID"] + "-b/../c"
    assert host_id() == own
    monkeypatch.setenv("FEEDRATE_HOST_ID", other)
    second = HostLock()
    assert second.path.parent == first.path.parent
    second.acquire(pytest.fail)
    first.release()
    second.release()
    remove_locks()
    monkeypatch.setenv("FEEDRATE_HOST_ID", own)


def test_trials_on_other_gpus_share_a_host():
    """Each GPU has one trial at a time; who needs the host alone waits for all of them, and keeps new ones out meanwhile."""
    with holder(gpus=(0, 1)) as first:
        assert first.stdout.readline() == "held\n"
        assert is_free((2,))
        assert not is_free((1, 2))
        assert not is_free()
        with holder() as alone:
            assert alone.stdout.readline() == "waiting\n"
            assert not is_free((2,)), "it would never have the host for itself"
            first.stdin.close()
            assert alone.stdout.readline() == "held\n"
            assert not is_free((0,))
            alone.stdin.close()
    assert is_free((0,))
    assert is_free()


def test_waiting_in_a_thread_works():
    """The lock needs no main thread: Ray runs functions in others."""
    lock, taken = HostLock(), HostLock()
    taken.acquire(pytest.fail)
    waits = []
    thread = threading.Thread(target=lock.acquire, args=(lambda why: waits.append(1),))
    thread.start()
    assert eventually(lambda: waits)
    taken.release()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert waits == [1]
    lock.release()
