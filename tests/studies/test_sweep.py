"""A grid of runs: which runs it means, and what becomes of finished and failed ones."""

import json
import os
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml

from dassl.utils import UserError
from studies import local
from studies.grid import Trial, build_trials, read_sweep
from studies.schedule import group_into_stages
from tests.common import REPOSITORY, assert_same_tensors
from tools.sweep import main

FIVE = [Trial(Path(name), ()) for name in "abcde"]
DIGITS = REPOSITORY / "configs/sweeps/digits.yaml"
SETTINGS = (
    f"--dataset-config-file {REPOSITORY}/configs/datasets/digits.yaml "
    f"--config-file {REPOSITORY}/configs/trainers/CoOp/tiny.yaml"
)


def test_the_study_is_eleven_runs():
    cells = build_trials(read_sweep(DIGITS), "out", "data", [], ["OPTIM.LR", "1"])
    folders = {str(cell.folder) for cell in cells}
    shots = (1, 2, 4, 8, 16)
    expected = {f"out/CoOp/tiny_{n}shots{suffix}/seed1" for n in shots for suffix in ("", "_ctx4")}
    assert folders == expected | {"out/ZeroshotCLIP"}
    assert len(cells) == 11
    arguments = next(cell.command for cell in cells if cell.folder == Path("out/CoOp/tiny_8shots_ctx4/seed1"))
    assert arguments[:4] == ("--output-dir", "out/CoOp/tiny_8shots_ctx4/seed1", "--root", "data")
    assert arguments[-6:] == ("DATASET.NUM_SHOTS", "8", "TRAINER.COOP.N_CTX", "4", "OPTIM.LR", "1")


def test_seeds_repeat_the_cells_that_have_one():
    cells = build_trials(read_sweep(DIGITS), "", "", ["1", "2", "3"], [])
    assert len(cells) == 31
    assert len({cell.folder for cell in cells}) == 31
    assert all(cell.folder.is_relative_to("output/digits") for cell in cells)


def test_the_study_on_imagenette_is_eleven_runs():
    cells = build_trials(read_sweep(REPOSITORY / "configs/sweeps/imagenette.yaml"), "", "", [], [])
    names = [f"CoOp/rn50_{n}shots{suffix}/seed1" for suffix in ("", "_ctx4") for n in (1, 2, 4, 8, 16)]
    assert [cell.folder for cell in cells] == [Path("output/imagenet", name) for name in ("ZeroshotCLIP", *names)]
    files = "--dataset-config-file configs/datasets/imagenet.yaml --config-file configs/trainers/CoOp/rn50.yaml"
    given = {cell.folder.parent.name: " ".join(cell.command[2:]) for cell in cells}
    assert given["imagenet"] == f"{files} --trainer ZeroshotCLIP --seed 1 --eval-only DATASET.NUM_SHOTS 0"
    assert given["rn50_8shots"] == f"{files} --trainer CoOp --seed 1 DATASET.NUM_SHOTS 8"
    assert given["rn50_8shots_ctx4"] == f"{files} --trainer CoOp --seed 1 DATASET.NUM_SHOTS 8 TRAINER.COOP.N_CTX 4"


def in_folder(folder, arguments="", seeds=(), overrides=(), **grid):
    """The cells of a sweep of one entry: folder -> what follows --output-dir FOLDER."""
    sweep = {"output": "out", "runs": [{"folder": folder, "arguments": arguments, "grid": grid}]}
    cells = build_trials(sweep, "", "", list(seeds), list(overrides))
    return {cell.folder.relative_to("out").as_posix(): list(cell.command[2:]) for cell in cells}


def test_an_axis_named_as_a_config_key_is_set_for_the_run():
    axes = {"OPTIM.LR": [0.002, 2e-5], "TRAINER.COOP.CSC": [True, False], "seed": [1]}
    cells = in_folder("lr{OPTIM.LR}_{TRAINER.COOP.CSC}/s{seed}", "--seed {seed} A 1", overrides=["B", "2"], **axes)
    assert list(cells) == ["lr0.002_True/s1", "lr0.002_False/s1", "lr2e-05_True/s1", "lr2e-05_False/s1"]
    keys = ["OPTIM.LR", "2e-05", "TRAINER.COOP.CSC", "False"]
    assert cells["lr2e-05_False/s1"] == ["--seed", "1", "A", "1", *keys, "B", "2"]
    assert in_folder("{SEED}", SEED=[1], seeds=["2", "3"]) == {"2": ["SEED", "2"], "3": ["SEED", "3"]}
    assert in_folder("a", **{"OPTIM.LR": [1]}) == {"a": ["OPTIM.LR", "1"]}  # one value needs no place in the folder
    assert in_folder("{{a}}_{{{a}}}", "'{a} b'", a=[1]) == {"{a}_{1}": ["1 b"]}


def test_the_output_folder_stands_in_arguments():
    assert in_folder("a{n}", "--model-dir {output}/b{n}", n=[1]) == {"a1": ["--model-dir", "out/b1"]}
    sweep = {"output": "out", "runs": [{"folder": "a", "arguments": "--model-dir {output}/b"}]}
    for output in ("other place", "other place/"):
        assert build_trials(sweep, output, "", [], [])[0].arguments[2:] == ("--model-dir", "other place/b")


def test_a_run_comes_after_the_one_whose_model_it_evaluates():
    def cell(name, model=""):
        return Trial(Path("out", name), ("--eval-only", "--model-dir", f"out/{model}") if model else ())

    c, b, a, x, d = cell("c", "b"), cell("b", "a"), cell("a"), cell("x", "elsewhere"), cell("d")
    assert group_into_stages([c, b, a, x, d]) == [[a, x, d], [b], [c]]
    with pytest.raises(UserError, match="out/p"):
        group_into_stages([a, cell("p", "q"), cell("q", "p")])


def test_a_value_is_one_argument():
    axes = {"TRAINER.COOP.CTX_INIT": ["", 'it\'s a "photo" of', "C:\\x"], "INPUT.SIZE": [[32, 32]], "words": ["a  b"]}
    cells = in_folder("{TRAINER.COOP.CTX_INIT}.", "--note {words}", **axes)
    assert [arguments[3] for arguments in cells.values()] == axes["TRAINER.COOP.CTX_INIT"]
    for arguments in cells.values():
        assert arguments[:2] == ["--note", "a  b"]
        assert arguments[-2:] == ["INPUT.SIZE", "[32, 32]"]


def test_values_reach_the_config(write, digits_root, tmp_path):
    grid = {"TRAINER.COOP.CTX_INIT": ["a photo of a"], "TRAINER.COOP.CSC": [True], "INPUT.SIZE": [[32, 32], "(32, 32)"]}
    settings = f"--trainer CoOp {SETTINGS} DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 1"
    path = write({"folder": "{INPUT.SIZE}", "arguments": settings, "grid": {**grid, "SEED": [7]}})
    assert main([path, "--root", str(digits_root), "--jobs", "1"]) == 0
    for folder in ("[32, 32]", "(32, 32)"):
        config = json.loads((tmp_path / "out" / folder / "result.json").read_text())["config"]
        assert config["TRAINER"]["COOP"]["CTX_INIT"] == "a photo of a"
        assert config["TRAINER"]["COOP"]["CSC"] is True
        assert (config["INPUT"]["SIZE"], config["SEED"]) == ([32, 32], 7)


@pytest.mark.parametrize(
    ("folder", "grid", "parts"),
    [
        ("x", {"OPTIM.LR": [1, 2], "n": [1], "seed": [1, 2]}, ["folder out/x;", 'put {OPTIM.LR} and {seed} into "x"']),
        ("x{seed}", {"OPTIM.LR": [1, 2], "seed": [1, 2]}, ["out/x1;", 'put {OPTIM.LR} and {seed} into "x{seed}"']),
        ("x{OPTIM.LR.a}", {"OPTIM.LR": [1]}, ["x{OPTIM.LR.a}", "(OPTIM.LR)"]),
        ("x{}", {"seed": [1]}, ["x{}", "(seed)"]),
        ("x{seed", {"seed": [1]}, ["x{seed", "(seed)"]),
        ("x}", {}, ["x}", "(none)"]),
        ("x{output}", {}, ["x{output}", "(none)"]),
        ("x{output}", {"output": [1]}, ["{output} is the sweep's folder", "axis of x{output} another name"]),
        ("x{A}", {"A": [1]}, ["A is an axis of the grid of x{A}", "cannot be set for every run"]),
    ],
)
def test_a_grid_that_is_wrong(folder, grid, parts):
    with pytest.raises(UserError) as error:
        in_folder(folder, overrides=["A", "2"], **grid)
    assert all(part in str(error.value) for part in parts), error.value


def test_two_entries_with_one_folder():
    runs = [{"folder": "x"}, {"folder": "{a}", "grid": {"a": ["x"]}}]
    with pytest.raises(UserError, match="two runs have the folder out/x"):
        build_trials({"output": "out", "runs": runs}, "", "", [], [])


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


def test_models_are_evaluated_once_they_are_there(write, digits_root, tmp_path, capsys):
    """Whatever the order in the file and the number of processes; of a failed run there is no model to evaluate."""
    out, settings = tmp_path / "out", f"--trainer CoOp {SETTINGS}"
    short = f"{settings} DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 1"
    test = {"folder": "test/{name}", "arguments": f"--eval-only --model-dir {{output}}/{{name}} {settings}"}
    runs = [{**test, "grid": {"name": ["good", "bad"]}}, {"folder": "good", "arguments": short}]
    path = write(*runs, {"folder": "bad", "arguments": f"{short} OPTIM.LR fast"})
    assert main([path, "--root", str(digits_root), "--jobs", "2"]) == 1
    output = capsys.readouterr().out
    assert f"{out}/test/bad: FAILED\nnot started: its model's run failed, {out}/bad\n" in output
    assert not (out / "test/bad").exists()
    made, tested = (json.loads((out / name / "result.json").read_text()) for name in ("good", "test/good"))
    assert tested["accuracy"] == made["accuracy"]

    command = [write({**test, "grid": {"name": ["good"]}}, runs[1]), "--root", str(digits_root), "--jobs", "1"]

    def finished() -> str:
        assert main(command) == 0
        return capsys.readouterr().out.partition(" finished")[0]

    assert finished() == "2 runs, 2"
    (out / "good/result.json").unlink()  # the run that makes the model is to be done again, so its evaluation is too
    assert finished() == "2 runs, 0"
    os.utime(out / "good/prompt_learner/model.pth.tar-1", (2**32, 2**32))  # another model than was evaluated
    assert finished() == "2 runs, 1"


def test_a_run_in_a_sweep_is_the_run_alone(write, digits_root, run, tmp_path, monkeypatch):
    """The second run of a process finds CLIP and features there, and draws the same random numbers all the same."""
    options = "DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 2"
    runs = [{"folder": f"seed{n}", "arguments": f"--trainer CoOp --seed {n} {SETTINGS} {options}"} for n in (1, 2, 1)]
    runs[2]["folder"] = "again"
    assert main([write(*runs, threads=torch.get_num_threads()), "--root", str(digits_root), "--jobs", "1"]) == 0
    for folder, seed in (("seed1", 1), ("seed2", 2), ("again", 1)):
        monkeypatch.setattr("vlm.clip.load._cached_clip", None)
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

    monkeypatch.setattr(local, "run_trial", stop)
    path = write({"folder": "x"}, {"folder": "y"})
    assert main([path, "--jobs", "1"]) == 130
    said = capsys.readouterr().err
    assert "stopped after 0 of 2 runs; this goes on with the others:\n" in said
    assert said.endswith(f"tools/sweep.py {path} --jobs 1\n")


@pytest.fixture
def pool(monkeypatch):
    """Stands for the pool of processes."""
    pool = Mock()
    monkeypatch.setattr(local, "ProcessPoolExecutor", lambda *_, **__: pool)
    return pool


def ended(error: BaseException | None = None) -> Future:
    future = Future()
    future.set_exception(error) if error else future.set_result(None)
    return future


def test_no_run_waits_in_the_pool(pool):
    pool.submit.side_effect = [ended() for _ in FIVE]
    for number, (_, error) in enumerate(local.run_trials(FIVE, 2, 1)):
        assert error is None
        assert pool.submit.call_count <= number + 2
    assert [call.args[1] for call in pool.submit.call_args_list] == FIVE


def test_a_sweep_that_is_stopped_starts_nothing_more(pool):
    pool.submit.side_effect = [ended(KeyboardInterrupt()), Future(), *(ended() for _ in range(3))]
    with pytest.raises(KeyboardInterrupt):
        list(local.run_trials(FIVE, 2, 1))
    assert pool.submit.call_count == 2
    pool.shutdown.assert_called_once_with(cancel_futures=True)


def test_every_run_is_accounted_for_where_a_process_was_killed(pool):
    pool.submit.side_effect = [ended(), ended(BrokenProcessPool()), *[BrokenProcessPool()] * 3]
    found = dict(local.run_trials(FIVE, 2, 1))
    first, second, *others = (found[cell] for cell in FIVE)
    assert (first, second) == (None, "its process was killed (out of memory?)")
    assert all("not started: the process of another run was killed" in error for error in others)
