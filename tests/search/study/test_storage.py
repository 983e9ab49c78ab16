"""storage.py: journals and databases that are torn, locked, damaged or away."""

import os
import sqlite3
import subprocess
import sys
import time

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import create_trial

from feedrate.search.space.search_space import Choice, SearchSpace
from feedrate.search.study.brain import Brain
from feedrate.search.study.storage import BrainError, open_storage, open_study, with_retry
from feedrate.trainables.config import LoaderConfig


def test_torn_journal_line_is_cut(tmp_path):
    """A journal whose last line was torn by a crash opens, and can be read again after more was written."""
    path = tmp_path / "study.journal"
    study = optuna.create_study(storage=open_storage(None, path), study_name="s")
    study.add_trial(create_trial(value=1.0))
    with path.open("ab") as stream:
        stream.write(b'{"op_code": 4, "worker')
    study = optuna.load_study(storage=open_storage(None, path), study_name="s")
    study.add_trial(create_trial(value=2.0))
    assert len(optuna.load_study(storage=open_storage(None, path), study_name="s").trials) == 2


def test_lock_ends_with_its_process(tmp_path, monkeypatch):
    """A process killed while it holds the journal's lock delays nobody, with a relative path too."""
    monkeypatch.chdir(tmp_path)
    open_storage(None, "study.journal")
    code = (
        "import os, signal; from feedrate.search.study.storage import _FileLock\n"
        f"_FileLock({str(tmp_path / 'study.journal')!r}).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    optuna.create_study(storage=open_storage(None, "study.journal"), study_name="s")  # a lock that is held is waited for without an end


def test_damaged_journal(tmp_path):
    """A file that is no journal is refused with the way out."""
    path = tmp_path / "study.journal"
    path.write_text("hello\nworld\n")
    with pytest.raises(BrainError, match="resume then rebuilds the study"):
        open_storage(None, path)


def test_journal_in_a_missing_folder(tmp_path):
    """The path that cannot be written is named."""
    with pytest.raises(BrainError, match=r"none/study\.journal: No such file"):
        open_storage(None, tmp_path / "none" / "study.journal")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("not-a-url secret", "not a database address"),
        ("mysql://user:secret@host/db", "cannot use mysql"),
        ("sqlite:////nowhere/at/all.db", "cannot be opened: unable to open database file"),
        ("postgresql+nosuchdriver://user:secret@host/db", "cannot be opened"),
        ("postgresql://user:secret@127.0.0.1:1/db?password=secret", "postgresql database 'db' on 127.0.0.1"),
    ],
)
def test_bad_addresses(tmp_path, url, words):
    """An address that cannot be used gives one sentence, without its password, and touches no file."""
    with pytest.raises(BrainError, match=words) as caught:
        open_storage(url, tmp_path / "study.journal")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None  # nor does --debug show it
    assert not os.listdir(tmp_path)


def test_database_of_another_program(tmp_path):
    """A SQLite file that is no database is refused."""
    (tmp_path / "x.db").write_text("hello world, this is no database\n" * 100)
    with pytest.raises(BrainError, match="not a database"):
        open_storage(f"sqlite:///{tmp_path}/x.db", tmp_path / "study.journal")


@pytest.mark.parametrize("unusable", ["no database", "another space"])
def test_no_connection_is_left_open_to_a_database_that_cannot_be_used(tmp_path, unusable, monkeypatch):
    """Python 3.13 and newer warn about it, whenever the connection is collected."""
    opened, connect = [], sqlite3.connect

    def remember(*arguments, **options):
        opened.append(connect(*arguments, **options))
        return opened[-1]

    path = tmp_path / "x.db"
    if unusable == "no database":
        path.write_text("hello world, this is no database\n" * 100)
    else:
        brain = Brain.open(f"sqlite:///{path}", "", study_name="s", space=space(32))
        brain.enqueue(LoaderConfig(num_workers=0, batch_size=32), "seed")
        brain.close()
    monkeypatch.setattr(sqlite3, "connect", remember)
    monkeypatch.setattr(sqlite3.dbapi2, "connect", remember)
    with pytest.raises(BrainError):
        Brain.open(f"sqlite:///{path}", "", study_name="s", space=space(64))
    assert opened
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
            connection.execute("SELECT 1")


def space(batch_size):
    return SearchSpace.default(num_cpus=2, has_accelerator=False, given={"batch_size": Choice((batch_size,))})


def test_other_choices_are_refused(tmp_path):
    """A study that searched other choices is refused at once; a longer range is not."""
    storage = open_storage(None, tmp_path / "study.journal")
    sampler, pruner = optuna.samplers.RandomSampler(), optuna.pruners.NopPruner()
    known = {"batch_size": CategoricalDistribution((32, 64)), "num_workers": IntDistribution(0, 8)}
    study = open_study(storage, "s", sampler, pruner, known)
    study.add_trial(create_trial(params={"batch_size": 32, "num_workers": 4}, distributions=known, value=1.0))
    open_study(storage, "s", sampler, pruner, known | {"num_workers": IntDistribution(0, 32)})
    with pytest.raises(BrainError, match="other values of --batch-size: 32,64; ask for the same"):
        open_study(storage, "s", sampler, pruner, known | {"batch_size": CategoricalDistribution((32,))})


def failing(times, error):
    left = [error] * times

    def call():
        if left:
            raise left.pop()
        return "done"

    return call


@pytest.fixture
def pauses(monkeypatch):
    """Time passes only in pauses."""
    made = []
    monkeypatch.setattr(time, "sleep", made.append)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + sum(made))
    return made


def test_busy_database_is_asked_again(pauses, capsys):
    """A call that fails because the database is away is repeated. The search waits for a minute and prints that it does; then the error names `feedrate resume`."""
    away = sqlalchemy.exc.OperationalError("select", {}, Exception("server closed the connection"))
    wrapped = StorageInternalError("commit failed")
    wrapped.__cause__ = away
    assert with_retry(failing(3, away)) == with_retry(failing(2, wrapped)) == "done"
    assert pauses == pytest.approx([0.1, 0.4, 1.6, 0.1, 0.4])
    assert capsys.readouterr().err == ""
    assert with_retry(failing(14, away)) == "done"
    assert 50 < sum(pauses) < 70
    assert capsys.readouterr().err == "waiting: the study's database does not answer (server closed the connection)\n"
    with pytest.raises(BrainError, match=r"server closed the connection.*resume"):
        with_retry(failing(100, away))
    with pytest.raises(KeyError):
        with_retry(failing(1, KeyError("a defect")))


def lost_between_statements(reason):
    """What Optuna raises where a connection is lost between two statements of one transaction, as SQLAlchemy 2.1 chains it."""
    wrapped = StorageInternalError("commit failed")
    wrapped.__cause__ = sqlalchemy.exc.PendingRollbackError("can't reconnect until the transaction is rolled back")
    wrapped.__cause__.__context__ = reason
    return wrapped


def test_a_connection_lost_between_two_statements(pauses):
    """The database was away then too; the same error for another reason is a defect, which is not repeated."""
    away = sqlalchemy.exc.OperationalError("select", {}, Exception("server closed the connection"))
    assert with_retry(failing(2, lost_between_statements(away))) == "done"
    with pytest.raises(BrainError, match="server closed the connection"):
        with_retry(failing(100, lost_between_statements(away)))
    with pytest.raises(StorageInternalError):
        with_retry(failing(1, lost_between_statements(ValueError("a defect"))))
