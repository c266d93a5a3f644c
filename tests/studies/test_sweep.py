"""Sweeps on one machine: the trials of a grid, and how finished, failed and stopped trials are treated."""

import json
import os
import shlex
from concurrent.futures import Future, ThreadPoolExecutor
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

TRIALS = [Trial(Path(name), ()) for name in "abcde"]
DIGITS = REPOSITORY / "configs/sweeps/digits.yaml"
SETTINGS = (
    f"--dataset-config-file {REPOSITORY}/configs/datasets/digits.yaml "
    f"--config-file {REPOSITORY}/configs/trainers/CoOp/tiny.yaml"
)
DIVERGING = f"--trainer CoOp {SETTINGS} DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 3 OPTIM.LR 1e30"  # fails while it trains


def test_the_digits_sweep_has_eleven_runs():
    trials = build_trials(read_sweep(DIGITS), "out", "data", [], ["OPTIM.LR", "1"])
    folders = {str(trial.folder) for trial in trials}
    shots = (1, 2, 4, 8, 16)
    expected = {f"out/CoOp/tiny_{n}shots{suffix}/seed1" for n in shots for suffix in ("", "_ctx4")}
    assert folders == expected | {"out/ZeroshotCLIP"}
    assert len(trials) == 11
    arguments = next(trial.command for trial in trials if trial.folder == Path("out/CoOp/tiny_8shots_ctx4/seed1"))
    assert arguments[:4] == ("--output-dir", "out/CoOp/tiny_8shots_ctx4/seed1", "--root", "data")
    assert arguments[-6:] == ("DATASET.NUM_SHOTS", "8", "TRAINER.COOP.N_CTX", "4", "OPTIM.LR", "1")


def test_backslashes_in_the_arguments_of_a_sweep_stay():
    run = {
        "folder": "one",
        "arguments": r"""--config-file C:\coop\a.yaml --root 'D:\my data' DATASET.TEMPLATE "a {{}}." """,
    }
    (trial,) = build_trials({"output": "out", "runs": [run]}, "", "", [], [])
    words = ["--config-file", r"C:\coop\a.yaml", "--root", r"D:\my data", "DATASET.TEMPLATE", "a {}."]
    assert [*trial.command][2:] == words


def test_seeds_on_the_command_line_repeat_trials_that_have_a_seed():
    trials = build_trials(read_sweep(DIGITS), "", "", ["1", "2", "3"], [])
    assert len(trials) == 31
    assert len({trial.folder for trial in trials}) == 31
    assert all(trial.folder.is_relative_to("output/digits") for trial in trials)


def test_the_imagenette_sweep_has_eleven_runs():
    trials = build_trials(read_sweep(REPOSITORY / "configs/sweeps/imagenette.yaml"), "", "", [], [])
    names = [f"CoOp/rn50_{n}shots{suffix}/seed1" for suffix in ("", "_ctx4") for n in (1, 2, 4, 8, 16)]
    assert [trial.folder for trial in trials] == [Path("output/imagenet", name) for name in ("ZeroshotCLIP", *names)]
    files = "--dataset-config-file configs/datasets/imagenet.yaml --config-file configs/trainers/CoOp/rn50.yaml"
    commands = {trial.folder.parent.name: " ".join(trial.command[2:]) for trial in trials}
    assert commands["imagenet"] == f"{files} --trainer ZeroshotCLIP --seed 1 --eval-only DATASET.NUM_SHOTS 0"
    assert commands["rn50_8shots"] == f"{files} --trainer CoOp --seed 1 DATASET.NUM_SHOTS 8"
    assert commands["rn50_8shots_ctx4"] == f"{files} --trainer CoOp --seed 1 DATASET.NUM_SHOTS 8 TRAINER.COOP.N_CTX 4"


def build_commands(folder, arguments="", seeds=(), overrides=(), **grid):
    """Return the commands of a sweep with one run, without ``--output-dir FOLDER``, by folder below the sweep's."""
    sweep = {"output": "out", "runs": [{"folder": folder, "arguments": arguments, "grid": grid}]}
    trials = build_trials(sweep, "", "", list(seeds), list(overrides))
    return {trial.folder.relative_to("out").as_posix(): list(trial.command[2:]) for trial in trials}


def test_an_axis_named_like_a_config_key_sets_that_key():
    axes = {"OPTIM.LR": [0.002, 2e-5], "TRAINER.COOP.CSC": [True, False], "seed": [1]}
    commands = build_commands(
        "lr{OPTIM.LR}_{TRAINER.COOP.CSC}/s{seed}", "--seed {seed} A 1", overrides=["B", "2"], **axes
    )
    assert list(commands) == ["lr0.002_True/s1", "lr0.002_False/s1", "lr2e-05_True/s1", "lr2e-05_False/s1"]
    keys = ["OPTIM.LR", "2e-05", "TRAINER.COOP.CSC", "False"]
    assert commands["lr2e-05_False/s1"] == ["--seed", "1", "A", "1", *keys, "B", "2"]
    assert build_commands("{SEED}", SEED=[1], seeds=["2", "3"]) == {"2": ["SEED", "2"], "3": ["SEED", "3"]}
    assert build_commands("a", **{"OPTIM.LR": [1]}) == {"a": ["OPTIM.LR", "1"]}  # one value need not be in the folder
    assert build_commands("{{a}}_{{{a}}}", "'{a} b'", a=[1]) == {"{a}_{1}": ["1 b"]}


def test_the_field_output_in_arguments_is_the_sweeps_folder():
    assert build_commands("a{n}", "--model-dir {output}/b{n}", n=[1]) == {"a1": ["--model-dir", "out/b1"]}
    sweep = {"output": "out", "runs": [{"folder": "a", "arguments": "--model-dir {output}/b"}]}
    for output in ("other place", "other place/"):
        assert build_trials(sweep, output, "", [], [])[0].arguments[2:] == ("--model-dir", "other place/b")


def test_a_trial_is_in_a_later_stage_than_the_trial_whose_model_it_evaluates():
    def trial(name, model=""):
        """Return a trial in the folder ``name`` that evaluates the model in the folder ``model``, if any."""
        return Trial(Path("out", name), ("--eval-only", "--model-dir", f"out/{model}") if model else ())

    c, b, a, x, d = trial("c", "b"), trial("b", "a"), trial("a"), trial("x", "elsewhere"), trial("d")
    assert group_into_stages([c, b, a, x, d]) == [[a, x, d], [b], [c]]
    with pytest.raises(UserError, match="out/p"):
        group_into_stages([a, trial("p", "q"), trial("q", "p")])


def test_a_value_with_spaces_or_quotes_is_one_argument():
    axes = {"TRAINER.COOP.CTX_INIT": ["", 'it\'s a "photo" of', "C:\\x"], "INPUT.SIZE": [[32, 32]], "words": ["a  b"]}
    commands = build_commands("{TRAINER.COOP.CTX_INIT}.", "--note {words}", **axes)
    assert [arguments[3] for arguments in commands.values()] == axes["TRAINER.COOP.CTX_INIT"]
    for arguments in commands.values():
        assert arguments[:2] == ["--note", "a  b"]
        assert arguments[-2:] == ["INPUT.SIZE", "[32, 32]"]


def test_values_of_axes_reach_the_config(write_sweep, digits_root, tmp_path):
    grid = {"TRAINER.COOP.CTX_INIT": ["a photo of a"], "TRAINER.COOP.CSC": [True], "INPUT.SIZE": [[32, 32], "(32, 32)"]}
    settings = f"--trainer CoOp {SETTINGS} DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 1"
    path = write_sweep({"folder": "{INPUT.SIZE}", "arguments": settings, "grid": {**grid, "SEED": [7]}})
    assert main([path, "--root", str(digits_root), "--jobs", "1"]) == 0
    for folder in ("[32, 32]", "(32, 32)"):
        config = json.loads((tmp_path / "out" / folder / "result.json").read_text(encoding="utf-8"))["config"]
        assert config["TRAINER"]["COOP"]["CTX_INIT"] == "a photo of a"
        assert config["TRAINER"]["COOP"]["CSC"] is True
        assert (config["INPUT"]["SIZE"], config["SEED"]) == ([32, 32], 7)


@pytest.mark.parametrize(
    ("folder", "grid", "messages"),
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
def test_a_wrong_grid_is_refused_with_its_folder_and_axes(folder, grid, messages):
    with pytest.raises(UserError) as error:
        build_commands(folder, overrides=["A", "2"], **grid)
    assert all(message in str(error.value) for message in messages), error.value


def test_two_runs_with_one_folder_are_refused():
    runs = [{"folder": "x"}, {"folder": "{a}", "grid": {"a": ["x"]}}]
    with pytest.raises(UserError, match="two runs have the folder out/x"):
        build_trials({"output": "out", "runs": runs}, "", "", [], [])


@pytest.fixture
def write_sweep(tmp_path):
    """A function that writes a sweep file with these runs and keys, and returns its path."""

    def write(*runs, **keys):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "runs": list(runs), **keys}), encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    ("text", "messages"),
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
def test_a_wrong_sweep_file_is_refused_with_its_key(tmp_path, capsys, text, messages):
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="latin-1")
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error
    assert main([str(tmp_path / "absent.yaml")]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_run_with_a_damaged_record_is_repeated(write_sweep, digits_root, tmp_path, capsys):
    command = [write_sweep({"folder": "a", "arguments": f"--trainer ZeroshotCLIP --eval-only {SETTINGS}"})]
    command += ["--root", str(digits_root), "--jobs", "1"]
    for damaged in ("{", "[]", "{}"):
        (tmp_path / "out/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "out/a/result.json").write_text(damaged, encoding="utf-8")
        assert main(command) == 0
        assert "1 runs, 0 finished already" in capsys.readouterr().out
    assert main(command) == 0
    assert "1 runs, 1 finished already" in capsys.readouterr().out


def test_finished_runs_are_skipped_and_failed_runs_are_listed(write_sweep, digits_root, tmp_path, capsys):
    good = {"folder": "good", "arguments": f"--trainer ZeroshotCLIP --eval-only {SETTINGS}"}
    bad = {"folder": "bad{n}", "arguments": DIVERGING, "grid": {"n": [1, 2]}}
    command = [write_sweep(bad, good), "--root", str(digits_root), "--jobs", "1"]
    assert main(command) == 1
    output = capsys.readouterr().out
    assert "infinite or NaN" in output
    assert f"2 of 3 runs failed: {tmp_path}/out/bad1, {tmp_path}/out/bad2" in output
    accuracy = json.loads((tmp_path / "out/good/result.json").read_text(encoding="utf-8"))["accuracy"]
    assert f"out/good: {accuracy:.2f}%" in output
    assert main(command) == 1
    assert "3 runs, 1 finished already" in capsys.readouterr().out
    main([*command, "TEST.PER_CLASS_RESULT", "True"])
    assert "3 runs, 0 finished already" in capsys.readouterr().out


def test_a_model_is_evaluated_after_it_was_trained_and_not_if_its_run_failed(
    write_sweep, digits_root, tmp_path, capsys, monkeypatch
):
    """This holds for any order in the file, also in a pool: here of a thread, which starts at once."""
    monkeypatch.setattr(local, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    out, settings = tmp_path / "out", f"--trainer CoOp {SETTINGS}"
    short = f"{settings} DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 1"
    test = {"folder": "test/{name}", "arguments": f"--eval-only --model-dir {{output}}/{{name}} {settings}"}
    runs = [{**test, "grid": {"name": ["good", "bad"]}}, {"folder": "good", "arguments": short}]
    path = write_sweep(*runs, {"folder": "bad", "arguments": DIVERGING})
    assert main([path, "--root", str(digits_root), "--jobs", "2"]) == 1
    output = capsys.readouterr().out
    assert f"{out}/test/bad: FAILED\nnot started: its model's run failed, {out}/bad\n" in output
    assert not (out / "test/bad").exists()
    made, tested = (
        json.loads((out / name / "result.json").read_text(encoding="utf-8")) for name in ("good", "test/good")
    )
    assert tested["accuracy"] == made["accuracy"]

    command = [write_sweep({**test, "grid": {"name": ["good"]}}, runs[1]), "--root", str(digits_root), "--jobs", "1"]

    def count_finished() -> str:
        """Run the sweep and return its number of runs and of runs that were finished before."""
        assert main(command) == 0
        return capsys.readouterr().out.partition(" finished")[0]

    assert count_finished() == "2 runs, 2"
    (out / "good/result.json").unlink()  # the training run is repeated, so its evaluation is, too
    assert count_finished() == "2 runs, 0"
    os.utime(out / "good/prompt_learner/model.pth.tar-1", (2**32, 2**32))  # the model is newer than its evaluation
    assert count_finished() == "2 runs, 1"


def test_a_run_in_a_sweep_gives_the_same_bits_as_the_run_alone(write_sweep, digits_root, run, tmp_path, monkeypatch):
    """The second run in a process reuses CLIP and features, and still draws the same random numbers."""
    options = "DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 2"
    runs = [{"folder": f"seed{n}", "arguments": f"--trainer CoOp --seed {n} {SETTINGS} {options}"} for n in (1, 2, 1)]
    runs[2]["folder"] = "again"
    assert main([write_sweep(*runs, threads=torch.get_num_threads()), "--root", str(digits_root), "--jobs", "1"]) == 0
    for folder, seed in (("seed1", 1), ("seed2", 2), ("again", 1)):
        monkeypatch.setattr("vlm.clip.load._cached_clip", None)
        alone = run(*options.split(), seed=seed, out=f"alone/{folder}")
        assert_same_tensors(tmp_path / "out" / folder / "prompt_learner/model.pth.tar-2", alone.checkpoint(2))


def test_a_crash_fails_only_its_run(write_sweep, digits_root, capsys, monkeypatch):
    monkeypatch.setattr("trainers.zsclip.ZeroshotCLIP.test", lambda self: 1 / 0)
    run = {"folder": "x", "arguments": f"--trainer ZeroshotCLIP --eval-only {SETTINGS}"}
    assert main([write_sweep(run), "--root", str(digits_root), "--jobs", "1"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_ctrl_c_prints_the_command_that_continues_the_sweep(write_sweep, digits_root, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(local, "run_trial", stop)
    runs = ({"folder": name, "arguments": f"--trainer ZeroshotCLIP --eval-only {SETTINGS}"} for name in "xy")
    path, root = write_sweep(*runs), str(digits_root)
    assert main([path, "--root", root, "--jobs", "1"]) == 130
    error = capsys.readouterr().err
    assert "stopped after 0 of 2 runs; this command resumes with the remaining runs:\n" in error
    assert error.endswith(shlex.join(["tools/sweep.py", path, "--root", root, "--jobs", "1"]) + "\n")


@pytest.fixture
def pool(monkeypatch):
    """A mock in place of the pool of processes."""
    pool = Mock()
    monkeypatch.setattr(local, "ProcessPoolExecutor", lambda *_, **__: pool)
    return pool


def ended_future(error: BaseException | None = None) -> Future:
    """Return a future with the result None, or with an error."""
    future = Future()
    future.set_exception(error) if error else future.set_result(None)
    return future


def test_the_pool_gets_a_trial_only_when_a_process_is_free(pool):
    pool.submit.side_effect = [ended_future() for _ in TRIALS]
    for number, (_, error) in enumerate(local.run_trials(TRIALS, 2, 1)):
        assert error is None
        assert pool.submit.call_count <= number + 2
    assert [call.args[1] for call in pool.submit.call_args_list] == TRIALS


def test_a_stopped_sweep_starts_no_more_trials(pool):
    pool.submit.side_effect = [ended_future(KeyboardInterrupt()), Future(), *(ended_future() for _ in range(3))]
    with pytest.raises(KeyboardInterrupt):
        list(local.run_trials(TRIALS, 2, 1))
    assert pool.submit.call_count == 2
    pool.shutdown.assert_called_once_with(cancel_futures=True)


def test_every_trial_is_reported_after_a_process_was_killed(pool):
    pool.submit.side_effect = [ended_future(), ended_future(BrokenProcessPool()), *[BrokenProcessPool()] * 3]
    outcomes = dict(local.run_trials(TRIALS, 2, 1))
    first, second, *remaining = (outcomes[trial] for trial in TRIALS)
    assert (first, second) == (None, "its process was killed (out of memory?)")
    assert all("not started: the process of another run was killed" in error for error in remaining)
