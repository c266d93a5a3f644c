"""The parser prints what Dassl's prints; what it leaves out, it names."""

import re
import shutil

import pytest

from tests.common import SHARED, needs_shared
from tools.parse_test_res import main

LOG = "epoch [1/1]\nFinish training\n=> result\n* total: 200\n* accuracy: {accuracy}%\n* error: {error}%\n"


@pytest.fixture
def seeds(tmp_path):
    def write(folder, accuracies):
        for seed, accuracy in enumerate(accuracies, start=1):
            run = tmp_path / folder / f"seed{seed}"
            run.mkdir(parents=True)
            (run / "log.txt").write_text(LOG.format(accuracy=accuracy, error=100 - accuracy))
        return tmp_path / folder

    return write


def test_mean_and_deviation(seeds, capsys):
    folder = seeds("b", [10.0, 9.5, 15.5])
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == (
        f"Parsing files in {folder}\n"
        f"file: {folder}/seed1/log.txt. accuracy: 10.00%. \n"
        f"file: {folder}/seed2/log.txt. accuracy: 9.50%. \n"
        f"file: {folder}/seed3/log.txt. accuracy: 15.50%. \n"
        f"===\nSummary of directory: {folder}\n* accuracy: 11.67% +- 2.72%\n===\n"
    )


def test_keyword_interval_and_several_experiments(seeds, capsys):
    seeds("all/a", [8.0, 10.0, 14.5])
    seeds("all/b", [10.0, 9.5, 15.5])
    folder = seeds("all/b", []).parent
    main([str(folder / "b"), "--keyword", "error"])
    assert "* error: 88.33% +- 2.72%" in capsys.readouterr().out
    main([str(folder / "b"), "--ci95"])
    assert "* accuracy: 11.67% +- 8.27%" in capsys.readouterr().out
    main([str(folder), "--multi-exp"])
    assert capsys.readouterr().out.endswith("Average performance\n* accuracy: 11.25%\n")


def test_what_is_missing_is_named(seeds, capsys, tmp_path):
    folder = seeds("b", [10.0])
    for name, text in {"seed2": "epoch [1/2]\n* accuracy: 99.00%\n", "seed3": None}.items():
        (folder / name).mkdir()
        if text:
            (folder / name / "log.txt").write_text(text)
    assert main([str(folder)]) == 0
    output = capsys.readouterr()
    assert "* accuracy: 10.00% +- 0.00%" in output.out
    assert f"{folder}/seed2: training has not ended" in output.err
    assert f"{folder}/seed3: no log.txt" in output.err
    shutil.rmtree(folder / "seed1")
    assert main([str(folder)]) == 2
    assert f"error: no results in {folder}" in capsys.readouterr().err
    assert main([str(tmp_path / "absent")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_eval_only_logs_need_their_flag(seeds, capsys):
    folder = seeds("e", [])
    (folder / "seed1").mkdir(parents=True)
    (folder / "seed1/log.txt").write_text("=> result\n* accuracy: 50.00%\n")
    assert main([str(folder)]) == 2
    assert "--test-log" in capsys.readouterr().err
    assert main([str(folder), "--test-log"]) == 0


@needs_shared
def test_logs_of_the_original_are_read(tmp_path, capsys):
    logs = SHARED / "reference/logs"
    expected = []
    for seed in (1, 2, 3):
        source = logs / f"coop_tiny_16shot_ctx4_ep4_seed{seed}_val200_log.txt"
        (tmp_path / f"seed{seed}").mkdir()
        shutil.copy(source, tmp_path / f"seed{seed}" / "log.txt")
        expected.append(float(re.findall(r"\* accuracy: (\S+)%", source.read_text())[-1]))
    assert main([str(tmp_path)]) == 0
    assert f"* accuracy: {sum(expected) / 3:.2f}% +-" in capsys.readouterr().out
