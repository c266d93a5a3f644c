"""One run at a time in an output directory."""

import json
import os
import socket
from threading import Timer

import pytest
from filelock import FileLock

from dassl.engine import lock as locks
from dassl.engine.lock import exclusive_lock
from dassl.utils import UserError

SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0)


@pytest.mark.usefixtures("impatient")
def test_a_second_run_is_refused_with_the_firsts_process_and_host_and_harms_nothing(run):
    first = run(*SHORT)
    log, record = first.log, first.record
    with exclusive_lock(first.folder):
        second = run(*SHORT)
    assert second.code == 2
    assert f"{first.folder} is in use by process {os.getpid()} on {socket.gethostname()}, since 20" in second.error
    assert (first.log, first.record) == (log, record)
    assert run(*SHORT).code == 0


def test_nobody_is_in_the_folder_afterwards(tmp_path):
    with pytest.raises(KeyError), exclusive_lock(tmp_path / "run"):
        raise KeyError
    assert [path.name for path in (tmp_path / "run").iterdir()] == [locks.LOCK_FILE]
    with exclusive_lock(tmp_path / "run"):
        pass


def held_by(tmp_path, **owner):
    """A lock that somebody holds, and what the folder tells of him."""
    told = {"pid": os.getpid(), "host": socket.gethostname(), "since": "2026-01-01 00:00:00", **owner}
    (tmp_path / locks.OWNER_FILE).write_text(json.dumps(told))
    return FileLock(tmp_path / locks.LOCK_FILE, thread_local=False)


@pytest.mark.usefixtures("impatient")
def test_a_process_on_another_machine_is_believed(tmp_path):
    with (
        held_by(tmp_path, host="elsewhere"),
        pytest.raises(UserError, match="process .* on elsewhere, since 2026"),
        exclusive_lock(tmp_path),
    ):
        pass


def test_what_a_killed_process_left_is_waited_for(tmp_path):
    lock = held_by(tmp_path, pid=0)
    lock.acquire()
    Timer(0.3, lock.release).start()
    with exclusive_lock(tmp_path):
        assert json.loads((tmp_path / locks.OWNER_FILE).read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("impatient")
def test_it_is_not_waited_for_without_end(tmp_path):
    (tmp_path / locks.OWNER_FILE).write_text("damaged")
    with (
        FileLock(tmp_path / locks.LOCK_FILE),
        pytest.raises(UserError, match="in use by another process"),
        exclusive_lock(tmp_path),
    ):
        pass


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".result.json.x1y2.tmp").touch()
    (tmp_path / "result.tmp").touch()
    for name in ("model", "another run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".checkpoint.x1y2.tmp").touch()
    (tmp_path / "another run" / locks.LOCK_FILE).touch()
    with exclusive_lock(tmp_path):
        left = {locks.LOCK_FILE, locks.OWNER_FILE, "result.tmp", "model", "another run"}
        assert {path.name for path in tmp_path.iterdir()} == left
    assert not list((tmp_path / "model").iterdir())
    assert len(list((tmp_path / "another run").iterdir())) == 2
