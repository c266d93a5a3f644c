"""One command, one result: a run has the same bits on any number of threads; its record says what they depend on."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from dassl.engine.run_dir import _describe_sums
from dassl.mkl import describe_cpu_sums
from tests.common import REPOSITORY, assert_same_tensors, load_tensors

CONFIGS = REPOSITORY / "configs"
SHORT = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 4)
needs_strict_mkl = pytest.mark.skipif(not describe_cpu_sums().endswith("STRICT"), reason="needs MKL's strict mode")


@pytest.fixture
def run_with_threads(run, monkeypatch):
    """A function that runs a method with a number of threads."""

    def call(threads: int, method: str = "CoOp", *arguments: object):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        torch.set_num_threads(threads)
        config = ["--config-file", CONFIGS / f"trainers/{method}/tiny.yaml", *SHORT]
        return run(*config, *arguments, out=f"{method}-{threads}", trainer=method)

    return call


@needs_strict_mkl
@pytest.mark.parametrize("method", ["CoOp", "CoCoOp", "CLIPAdapter", "TipAdapterF"])
def test_a_run_has_the_same_bits_on_one_and_on_two_threads(run_with_threads, method):
    options = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base")  # CoCoOp has a prompt for each image
    options = options if method == "CoCoOp" else ()
    one, two = (run_with_threads(threads, method, *options) for threads in (1, 2))
    assert [run.record["machine"]["threads"] for run in (one, two)] == [1, 2]
    assert [run.record["machine"]["sums"] for run in (one, two)] == [describe_cpu_sums()] * 2
    assert one.record["macro_f1"] == two.record["macro_f1"]
    (checkpoint,) = one.folder.glob("*/model.pth.tar-4")
    assert_same_tensors(checkpoint, two.folder / checkpoint.relative_to(one.folder))


@needs_strict_mkl
@pytest.mark.skipif("AUTO" in describe_cpu_sums(), reason="on AMD, MKL's sums did not depend on the threads")
def test_without_the_strict_mode_the_number_of_threads_counts(tmp_path, digits_root):
    # So the test above can fail; and the record of such a run has the number of threads.
    command = ["--root", digits_root, "--trainer", "CoOp", "--seed", 1, *SHORT]
    command += ["--config-file", CONFIGS / "trainers/CoOp/tiny.yaml"]
    command += ["--dataset-config-file", CONFIGS / "datasets/digits.yaml"]
    code = "import os, sys, torch, train\nfor threads in '12':\n    os.environ['OMP_NUM_THREADS'] = threads\n"
    code += "    torch.set_num_threads(int(threads))\n    train.main(['--output-dir', threads, *sys.argv[1:]])"
    environment = {**os.environ, "MKL_CBWR": "OFF", "PYTHONPATH": str(REPOSITORY)}
    program = [sys.executable, "-c", code, *map(str, command)]
    subprocess.run(program, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
    checkpoints = []
    for threads in (1, 2):
        assert f", {threads} thread" in (tmp_path / f"{threads}/result.json").read_text(encoding="utf-8")
        checkpoints.append(load_tensors(tmp_path / f"{threads}/prompt_learner/model.pth.tar-4")["ctx"])
    assert not torch.equal(*checkpoints)


@pytest.mark.parametrize("value", [None, "COMPATIBLE"])
def test_importing_dassl_sets_the_mode_before_the_first_product_unless_the_environment_has_one(value):
    environment = {key: text for key, text in os.environ.items() if key != "MKL_CBWR"}
    environment |= {"MKL_CBWR": value} if value else {}
    code = "import torch, dassl, os; torch.ones(9, 9) @ torch.ones(9, 9); print(os.environ['MKL_CBWR'])"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert output.stdout.strip() in ([value] if value else ["AVX512,STRICT", "AVX2,STRICT"])


@pytest.mark.parametrize(("variable", "threads"), [("", 1), ("3", 3)])
def test_a_small_clip_takes_one_thread_unless_the_environment_sets_a_number(run, monkeypatch, variable, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    torch.set_num_threads(3)
    record = run("--eval-only", "FEATURES.ENABLED", False, trainer="ZeroshotCLIP").record
    assert record["machine"]["threads"] == threads


def test_where_convolutions_or_layer_norms_are_trained_the_number_of_threads_counts():
    def describe(*layers):
        models = {"model": torch.nn.Sequential(*layers)}
        return _describe_sums(SimpleNamespace(device=torch.device("cpu"), _models=models))

    frozen = torch.nn.LayerNorm(4).requires_grad_(False)
    assert describe(torch.nn.Linear(4, 4), frozen) == describe_cpu_sums()
    assert describe(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)) == describe_cpu_sums(depends_on_threads=True)
    assert describe(torch.nn.Conv2d(3, 4, 1)) == describe_cpu_sums(depends_on_threads=True)
