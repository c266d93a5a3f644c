"""A little of what ``python -m tests.stress`` does at length: processes that are killed, run out of disk, or want the
same at the same time."""

import re

import pytest

from tests.stress import full_disk, kills, several


def test_killed_programs_end_as_if_nothing_had_happened(tmp_path):
    survived = list(kills.run(tmp_path, kills=5, seed=1))
    assert len({name for name, _ in survived}) == 5
    assert len({moment.split()[0] for _, moment in survived}) == 2  # both kinds of moments


def test_processes_at_once_share_data_and_cache(tmp_path):
    assert several.run(tmp_path, variants=2) > 896  # the test scans, and shots


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the runs that have to do with disks share their data, and the undisturbed run that they must come to."""
    return tmp_path_factory.mktemp("disks")


@pytest.mark.parametrize("what", full_disk.LIMITS)
def test_a_limit_on_file_sizes_costs_nothing_that_was_saved(place, what):
    ended = full_disk.file_too_large(place / what, what)
    assert ended.code == 2
    message = (
        f"error: cannot write {place / what}/output/(prompt_learner/)?{what}: File too large. What was written .*\n"
    )
    assert re.fullmatch(message, ended.errors)


def test_a_full_disk_costs_nothing_that_was_saved(place):
    if not full_disk.can_mount(place):
        pytest.skip("this user may not mount a small disk")
    ended = full_disk.disk_full(place / "full")
    assert ended.code == 2
    assert re.fullmatch("error: cannot write .*: No space left on device. What was written .*\n", ended.errors)
