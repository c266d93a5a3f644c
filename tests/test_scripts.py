"""The shell scripts, called from another folder and with a space in the output folder."""

import csv
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from tests.common import REPOSITORY, needs_bash
from tools.results_table import main as results_table

pytestmark = needs_bash
ONE_EPOCH = ("OPTIM.MAX_EPOCH", "1")


@pytest.fixture
def bash(tmp_path, digits_root, capsys, monkeypatch):
    """Return a function that runs a script in the active environment, with ``variables`` in its environment.

    Unless ``variables`` has REAL, a fake interpreter notes the programs that the script starts. They run in this
    process once the script has ended, since an interpreter takes longer to start than they do.
    """
    monkeypatch.chdir(REPOSITORY)  # as the scripts do
    (tmp_path / "bin").mkdir()
    interpreter, programs = tmp_path / "bin/python", tmp_path / "programs"
    interpreter.write_text(
        f'#!/bin/bash\n[[ $1 = *.py && -z ${{REAL:-}} ]] || exec "{sys.executable}" "$@"\n'
        f'printf "%q " "$@" >> "{programs}"\necho >> "{programs}"\n',
        encoding="utf-8",
    )
    interpreter.chmod(0o755)

    def call(script, *arguments, **variables):
        folders = {"DATA": str(digits_root), "OUTPUT": str(tmp_path / "out put")}
        python = {"VIRTUAL_ENV": sys.prefix, "PATH": f"{interpreter.parent}{os.pathsep}{os.environ['PATH']}"}
        programs.write_text("", encoding="utf-8")
        result = subprocess.run(
            ["bash", str(REPOSITORY / "scripts" / script), *arguments],
            env={**os.environ, **python, **folders, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        capsys.readouterr()
        codes = [result.returncode]
        for line in programs.read_text(encoding="utf-8").splitlines():
            path, *words = shlex.split(line)
            codes.append(import_module(path.removesuffix(".py").replace("/", ".")).main(words))
        output = capsys.readouterr()
        return subprocess.CompletedProcess(
            result.args, max(codes), result.stdout + output.out, result.stderr + output.err
        )

    return call


def test_quickstart_writes_the_table_and_repeats_only_unfinished_runs(bash, tmp_path):
    first = bash("quickstart.sh", *ONE_EPOCH, JOBS="1", REAL="1")
    assert first.returncode == 0, first.stderr
    study = tmp_path / "out put" / "digits"
    logs = {path: path.stat().st_mtime_ns for path in study.rglob("log.txt")}
    assert len(logs) == 11
    assert {"results.md", "results.csv", "results.png", "report.html"} <= {path.name for path in study.iterdir()}
    assert "| CoOp (Efficient)" in first.stdout
    assert first.stdout.endswith("digits/report.html (open it with a double click)\n")
    assert "Missing" not in first.stdout
    (study / "ZeroshotCLIP" / "result.json").unlink()  # as if that run had crashed
    second = bash("quickstart.sh", *ONE_EPOCH, JOBS="1")
    assert second.returncode == 0, second.stderr
    assert "10 finished already" in second.stdout
    changed = [path for path, time in logs.items() if path.stat().st_mtime_ns != time]
    assert changed == [study / "ZeroshotCLIP" / "log.txt"]


def test_imagenette_executes_its_sweep_unless_its_runs_would_fail(bash, tmp_path, imagenet_root):
    failed = bash("imagenette.sh", "OPTIM.LR", "fast", DATA=str(imagenet_root), SEEDS="1 2", REAL="1")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.count("error: ") == 1
    assert f"as {tmp_path}/out put/imagenet/ZeroshotCLIP would fail: " in failed.stderr


def test_main_eval_and_zeroshot_take_coops_arguments_and_skip_finished_runs(bash, tmp_path):
    out = tmp_path / "out put"
    main = ("coop/main.sh", "digits", "tiny", "end", "4", "1", "False", *ONE_EPOCH)
    result = bash(*main, SEEDS="1")
    assert result.returncode == 0, result.stderr
    run = out / "digits/CoOp/tiny_1shots/nctx4_cscFalse_ctpend/seed1"
    assert "* accuracy: " in (run / "log.txt").read_text(encoding="utf-8")
    assert "finished already" in bash(*main, SEEDS="1").stdout
    result = bash("coop/zeroshot.sh", "digits", "tiny", OUTPUT="out put")  # relative to the folder of the call
    assert result.returncode == 0, result.stderr
    assert (out / "digits/ZeroshotCLIP/tiny/result.json").is_file()
    (out / "imagenet").symlink_to(out / "digits")
    result = bash("coop/eval.sh", "digits", "tiny", SEEDS="1", SHOTS="1", NCTX="4")
    assert result.returncode == 0, result.stderr
    assert (out / "evaluation/CoOp/tiny_1shots/nctx4_cscFalse_ctpend/digits/seed1/result.json").is_file()


def test_base2new_scripts_take_coops_arguments_and_write_the_folders_of_the_table(bash, tmp_path):
    tiny = {"TRAINER": "CoOp", "CFG": "tiny", "SHOTS": "1"}
    epochs = ("OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1")
    result = bash("cocoop/base2new_train.sh", "digits", "1", *epochs, **tiny)
    assert result.returncode == 0, result.stderr
    result = bash("cocoop/base2new_test.sh", "digits", "1", LOADEP="1", **tiny)
    assert result.returncode == 0, result.stderr
    assert "model.pth.tar-1" in result.stdout
    folder = tmp_path / "out put/base2new"
    assert (folder / "train_base/digits/shots_1/CoOp/tiny/seed1/result.json").is_file()
    assert results_table([str(folder)]) == 0
    _, coop = csv.reader((folder / "base_to_new.csv").open(encoding="utf-8"))
    assert "-" not in coop


def test_cocoop_scripts_evaluate_zero_shot_clip_once_for_all_seeds(bash, tmp_path, imagenet_root):
    """With CoOp's config, as zero-shot methods have none of their own."""
    zero_shot, out = {"TRAINER": "ZeroshotCLIP", "CFG": "tiny"}, tmp_path / "out put"
    for script, seed in (("base2new_train.sh", "1"), ("base2new_test.sh", "2")):
        result = bash(f"cocoop/{script}", "digits", seed, **zero_shot)
        assert result.returncode == 0, result.stderr
    assert results_table([str(out / "base2new")]) == 0
    _, row = csv.reader((out / "base2new/base_to_new.csv").open(encoding="utf-8"))
    assert row[:2] == ["digits", "ZeroshotCLIP, tiny, 0 shots"]
    assert "-" not in row
    for script, *arguments in (("xd_train.sh", "1"), ("xd_test.sh", "digits", "1")):
        result = bash(f"cocoop/{script}", *arguments, DATA=str(imagenet_root), **zero_shot)
        assert result.returncode == 0, result.stderr
    assert results_table([str(out / "evaluation")]) == 0
    _, row = csv.reader((out / "evaluation/transfer.csv").open(encoding="utf-8"))
    assert "-" not in row


def test_xd_scripts_train_on_imagenet_and_write_the_folders_of_the_transfer_table(bash, tmp_path, imagenet_root):
    """The three ImageNet classes are noise; the other data set is the digits."""
    tiny = {"TRAINER": "CoOp", "CFG": "tiny", "SHOTS": "1", "DATA": str(imagenet_root)}
    for script, *arguments in (("xd_train.sh", "1", *ONE_EPOCH), ("xd_test.sh", "digits", "1")):
        result = bash(f"cocoop/{script}", *arguments, **tiny)
        assert result.returncode == 0, result.stderr
    assert results_table([str(tmp_path / "out put/evaluation")]) == 0
    head, row = csv.reader((tmp_path / "out put/evaluation/transfer.csv").open(encoding="utf-8"))
    assert head == ["accuracy (%)", "imagenet", "digits", "average of other data sets"]
    assert "-" not in row


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("scripts/co*/*.sh")), ids=lambda path: path.name)
def test_a_script_without_arguments_prints_its_usage(path):
    """In any folder, and before packages are installed."""
    command = ["bash", f"{path.parent.name}/{path.name}"]
    result = subprocess.run(command, cwd=REPOSITORY / "scripts", capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (2, "")
    assert f"bash scripts/{path.parent.name}/{path.name} " in result.stdout
    assert not re.search("^(#!|[^#])", result.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("variables", "is_created"),
    [
        ({}, True),
        ({"VIRTUAL_ENV": "/somewhere"}, False),
        ({"CONDA_PREFIX": "/conda/envs/mine", "CONDA_DEFAULT_ENV": "mine"}, False),
        ({"CONDA_PREFIX": "/conda", "CONDA_DEFAULT_ENV": "base"}, True),
    ],
)
def test_an_environment_is_created_if_none_is_active(tmp_path, variables, is_created):
    """A fake interpreter takes the place of Python, so that nothing is installed."""
    interpreter = tmp_path / "python"
    interpreter.write_text(
        '#!/bin/sh\nif [ "$2" = venv ]; then mkdir -p "$3/bin" && : > "$3/bin/activate"; fi\n', encoding="utf-8"
    )
    interpreter.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHON": str(interpreter), **variables}
    command = ["bash", "-euc", f". {REPOSITORY}/scripts/env.sh"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / ".venv").is_dir() == is_created


def test_if_the_packages_cannot_be_installed_the_message_names_a_mirror(tmp_path):
    """A fake interpreter takes the place of Python, and its pip fails."""
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    interpreter.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": "/somewhere"}
    command = ["bash", "-euc", f". {REPOSITORY}/scripts/env.sh; echo installed"]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert (result.returncode, result.stdout) == (1, "")
    assert "export PIP_INDEX_URL=https://pypi.tuna.tsinghua.edu.cn/simple" in result.stderr
