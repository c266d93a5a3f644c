"""A grid of runs: which runs it means, and what becomes of finished and failed ones."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.common import REPOSITORY, assert_same_tensors
from tools import sweep
from tools.sweep import cells_of, main, read_sweep

DIGITS = REPOSITORY / "configs/sweeps/digits.yaml"
SETTINGS = (
    f"--dataset-config-file {REPOSITORY}/configs/datasets/digits.yaml "
    f"--config-file {REPOSITORY}/configs/trainers/CoOp/tiny.yaml"
)


def test_the_study_is_eleven_runs():
    cells = cells_of(read_sweep(DIGITS), "out", "data", [], ["OPTIM.LR", "1"])
    folders = {str(cell.folder) for cell in cells}
    shots = (1, 2, 4, 8, 16)
    expected = {f"out/CoOp/tiny_{n}shots{suffix}/seed1" for n in shots for suffix in ("", "_ctx4")}
    assert folders == expected | {"out/ZeroshotCLIP"}
    assert len(cells) == 11
    arguments = next(cell.arguments for cell in cells if cell.folder == Path("out/CoOp/tiny_8shots_ctx4/seed1"))
    assert arguments[:4] == ("--output-dir", "out/CoOp/tiny_8shots_ctx4/seed1", "--root", "data")
    assert arguments[-6:] == ("DATASET.NUM_SHOTS", "8", "TRAINER.COOP.N_CTX", "4", "OPTIM.LR", "1")


def test_seeds_repeat_the_cells_that_have_one():
    cells = cells_of(read_sweep(DIGITS), "", "", ["1", "2", "3"], [])
    assert len(cells) == 31
    assert len({cell.folder for cell in cells}) == 31
    assert all(cell.folder.is_relative_to("output/digits") for cell in cells)


@pytest.fixture
def write(tmp_path):
    def call(*runs, **keys):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "runs": list(runs), **keys}))
        return str(path)

    return call


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("\xff", ["not YAML"]),
        ("runs: [", ["not YAML"]),
        ("- a", ["keys output, runs"]),
        ("runs: []", ["keys output, runs"]),
        ("output: out\nruns: 3", ["runs takes a list; got 3"]),
        ("output: out\nthread: 1\nruns: []", ['did you mean "threads"?']),
        ("output: out\nruns: [{arguments: a}]", ["run 1 must have the keys folder"]),
        ("output: out\nruns: [{folder: a, grid: {seed: 3}}]", ["run 1", "seed", "takes a list; got 3"]),
        ("output: out\nruns: [{folder: 'a{shots}', grid: {seed: [3]}}]", ["a{shots}", "(seed)"]),
        ('output: out\nruns: [{folder: a, arguments: "--seed \'"}]', ["cannot be split", "quotation"]),
    ],
)
def test_a_sweep_that_is_wrong(tmp_path, capsys, text, parts):
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="latin-1")
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert main([str(tmp_path / "absent.yaml")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_damaged_record_means_the_run_is_done_again(write, digits_root, tmp_path, capsys):
    command = [write({"folder": "a", "arguments": f"--trainer ZeroshotCLIP --eval-only {SETTINGS}"})]
    command += ["--root", str(digits_root), "--jobs", "1"]
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "out/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out/a/result.json").write_text(damaged)
        assert main(command) == 0
        assert "1 runs, 0 finished already" in capsys.readouterr().out
    assert main(command) == 0
    assert "1 runs, 1 finished already" in capsys.readouterr().out


def test_finished_runs_are_skipped_and_failed_ones_listed(write, digits_root, tmp_path, capsys):
    good = {"folder": "good", "arguments": f"--trainer ZeroshotCLIP --eval-only {SETTINGS}"}
    bad = {"folder": "bad{n}", "arguments": f"--trainer Nothing {SETTINGS}", "grid": {"n": [1, 2]}}
    command = [write(bad, good), "--root", str(digits_root), "--jobs", "1"]
    assert main(command) == 1
    output = capsys.readouterr().out
    assert 'unknown trainer "Nothing"' in output
    assert f"2 of 3 runs failed: {tmp_path}/out/bad1, {tmp_path}/out/bad2" in output
    accuracy = json.loads((tmp_path / "out/good/result.json").read_text())["accuracy"]
    assert f"out/good: {accuracy:.2f}%" in output
    assert main(command) == 1
    assert "3 runs, 1 finished already" in capsys.readouterr().out
    main([*command, "TEST.PER_CLASS_RESULT", "True"])
    assert "3 runs, 0 finished already" in capsys.readouterr().out


def test_a_run_in_a_sweep_is_the_run_alone(write, digits_root, run, tmp_path, monkeypatch):
    """The second run of a process finds CLIP and features there, and draws the same random numbers all the same."""
    options = "DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 2"
    runs = [{"folder": f"seed{n}", "arguments": f"--trainer CoOp --seed {n} {SETTINGS} {options}"} for n in (1, 2, 1)]
    runs[2]["folder"] = "again"
    assert main([write(*runs, threads=torch.get_num_threads()), "--root", str(digits_root), "--jobs", "1"]) == 0
    for folder, seed in (("seed1", 1), ("seed2", 2), ("again", 1)):
        monkeypatch.setattr("vlm.load._shared", None)
        alone = run(*options.split(), seed=seed, out=f"alone/{folder}")
        assert_same_tensors(tmp_path / "out" / folder / "prompt_learner/model.pth.tar-2", alone.checkpoint(2))


def test_a_crash_is_one_failed_run(write, digits_root, capsys, monkeypatch):
    monkeypatch.setattr("trainers.zsclip.ZeroshotCLIP.test", lambda self: 1 / 0)
    run = {"folder": "x", "arguments": f"--trainer ZeroshotCLIP --eval-only {SETTINGS}"}
    assert main([write(run), "--root", str(digits_root), "--jobs", "1"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_stopping_says_how_to_go_on(write, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "run_cell", stop)
    assert main([write({"folder": "x"}), "--jobs", "1"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
