"""Short versions of ``python -m tests.stress``: processes that are killed, fill the disk, or share a feature cache."""

import re

import pytest

from tests.common import IS_WINDOWS

if IS_WINDOWS:
    pytest.skip("needs Unix: SIGKILL, limits on file sizes", allow_module_level=True)
from tests.stress import full_disk, kills, several


def test_killed_programs_resume_to_the_result_of_an_undisturbed_run(tmp_path):
    survived = list(kills.run(tmp_path, kills=5, seed=1))
    assert len({name for name, _ in survived}) == 5
    assert len({moment.split()[0] for _, moment in survived}) == 2  # kills by the clock and kills at a write


def test_parallel_runs_share_data_and_compute_each_feature_once(tmp_path):
    assert several.run(tmp_path, variants=2) > 896  # the 896 test images and the training images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of the disk tests, where they share their data and the undisturbed run to compare with."""
    return tmp_path_factory.mktemp("disks")


@pytest.mark.parametrize("name", full_disk.LIMITS)
def test_a_run_beyond_a_limit_on_file_sizes_resumes_from_its_last_checkpoint(folder, name):
    ended = full_disk.file_too_large(folder / name, name)
    assert ended.code == 2
    path = f"{folder / name}/output/(prompt_learner/)?{name}"
    message = f"error: cannot write {path}: File too large. Earlier files are intact: .*\n"
    assert re.fullmatch(message, ended.errors)


def test_a_run_on_a_full_disk_resumes_from_its_last_checkpoint(folder):
    if not full_disk.can_mount(folder):
        pytest.skip("this user may not mount a small disk")
    ended = full_disk.disk_full(folder / "full")
    assert ended.code == 2
    assert re.fullmatch("error: cannot write .*: No space left on device. Earlier files are intact: .*\n", ended.errors)
