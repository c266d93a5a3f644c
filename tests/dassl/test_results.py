"""When a run counts as finished, so that the same command passes over it."""

import json
import os

import pytest

from dassl.engine.record import is_finished


@pytest.fixture
def evaluation(tmp_path):
    """The folder of an evaluation that ended at the time 100, its command, and the files, of before, that it is of."""
    files = [tmp_path / "data.yaml", tmp_path / "method.yaml"]
    model = tmp_path / "model/prompt_learner"
    model.mkdir(parents=True)
    files += [model / f"model{name}" for name in ("-best.pth.tar", ".pth.tar-3", "-latest.pth.tar-4")]
    for file in files:
        file.write_text("")
        os.utime(file, (50, 50))
    command = ["--config-file", str(files[1]), "--dataset-config-file", str(files[0])]
    command += ["--model-dir", str(tmp_path / "model"), "--eval-only"]
    (tmp_path / "result.json").write_text(json.dumps({"command": command}))
    os.utime(tmp_path / "result.json", (100, 100))
    return tmp_path, command, files


def test_a_finished_run_of_the_same_command(evaluation):
    folder, command, _ = evaluation
    assert is_finished(folder, command)
    assert not is_finished(folder, [*command, "OPTIM.LR", "1"])
    assert not is_finished(folder / "elsewhere", command)


@pytest.mark.parametrize("number", range(5))
def test_a_file_that_has_changed_since_makes_it_another_run(evaluation, number):
    folder, command, files = evaluation
    os.utime(files[number], (150, 150))
    assert not is_finished(folder, command)


def test_a_config_file_that_is_gone(evaluation):
    folder, command, files = evaluation
    files[0].unlink()
    assert not is_finished(folder, command)
