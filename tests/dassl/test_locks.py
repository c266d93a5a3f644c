"""The lock of a folder: one run at a time in an output directory."""

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
def no_timeout(monkeypatch):
    """Make a process that finds a lock fail at once."""
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0)


@pytest.mark.usefixtures("no_timeout")
def test_a_second_run_in_a_locked_folder_is_refused_and_leaves_the_first_runs_files_alone(run):
    first = run(*SHORT)
    log, record = first.log, first.record
    with exclusive_lock(first.folder):
        second = run(*SHORT)
    assert second.code == 2
    assert f"{first.folder} is in use by process {os.getpid()} on {socket.gethostname()}, since 20" in second.error
    assert (first.log, first.record) == (log, record)
    assert run(*SHORT).code == 0


def test_a_lock_ends_with_the_body_even_after_an_error(tmp_path):
    with pytest.raises(KeyError), exclusive_lock(tmp_path / "run"):
        raise KeyError
    assert [path.name for path in (tmp_path / "run").iterdir()] == [locks.LOCK_FILE]
    with exclusive_lock(tmp_path / "run"):
        pass


def lock_with_owner(tmp_path, **owner):
    """Write the description of a lock's owner, and return the lock."""
    description = {"pid": os.getpid(), "host": socket.gethostname(), "since": "2026-01-01 00:00:00", **owner}
    (tmp_path / locks.OWNER_FILE).write_text(json.dumps(description))
    return FileLock(tmp_path / locks.LOCK_FILE, thread_local=False)


@pytest.mark.usefixtures("no_timeout")
def test_a_lock_of_a_process_on_another_machine_is_respected(tmp_path):
    with (
        lock_with_owner(tmp_path, host="elsewhere"),
        pytest.raises(UserError, match="process .* on elsewhere, since 2026"),
        exclusive_lock(tmp_path),
    ):
        pass


def test_a_lock_that_a_killed_process_left_is_waited_for(tmp_path):
    lock = lock_with_owner(tmp_path, pid=0)
    lock.acquire()
    Timer(0.3, lock.release).start()
    with exclusive_lock(tmp_path):
        assert json.loads((tmp_path / locks.OWNER_FILE).read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("no_timeout")
def test_waiting_for_a_lock_ends_with_the_timeout(tmp_path):
    (tmp_path / locks.OWNER_FILE).write_text("damaged")
    with (
        FileLock(tmp_path / locks.LOCK_FILE),
        pytest.raises(UserError, match="in use by another process"),
        exclusive_lock(tmp_path),
    ):
        pass


def test_temporary_files_of_killed_processes_are_removed_except_in_folders_with_a_lock(tmp_path):
    (tmp_path / ".result.json.x1y2.tmp").touch()
    (tmp_path / "result.tmp").touch()
    for name in ("model", "another run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".checkpoint.x1y2.tmp").touch()
    (tmp_path / "another run" / locks.LOCK_FILE).touch()
    with exclusive_lock(tmp_path):
        expected = {locks.LOCK_FILE, locks.OWNER_FILE, "result.tmp", "model", "another run"}
        assert {path.name for path in tmp_path.iterdir()} == expected
    assert not list((tmp_path / "model").iterdir())
    assert len(list((tmp_path / "another run").iterdir())) == 2
