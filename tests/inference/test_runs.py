"""predict.py --model-dir: what runs have learned, against the runs themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from datasets.digits import NAMES
from vlm.tiny.weights import load_tiny

TINY = ("--backbone", "tiny")
SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", "True")


def files_of(folder: Path) -> dict[Path, tuple]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def few_digits(digits_root, tmp_path_factory) -> Path:
    """The digits with eight scans for testing each."""
    root = tmp_path_factory.mktemp("few")
    shutil.copytree(digits_root / "digits", root / "digits")
    for folder in (root / "digits/images/val").iterdir():
        for path in sorted(folder.iterdir())[8:]:
            path.unlink()
    return root


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp", "ZeroshotCLIP2", "LinearProbe", "TipAdapterF", "CLIPAdapter"])
def test_a_run_gives_the_accuracy_of_its_log(run, call, few_digits, trainer):
    trained = run("--root", few_digits, *SHORT, "TEST.NO_TEST", "False", "TRAINER.NAME", trainer)
    assert trained.code == 0, trained.error
    before = files_of(trained.folder)
    result = call(few_digits / "digits/images/val", "--model-dir", trained.folder, "--json")
    assert result.code == 0
    right = [
        record["predictions"][0]["class"] == NAMES[int(Path(record["image"]).parent.name)] for record in result.records
    ]
    assert len(right) == 80
    assert f"{100 * sum(right) / len(right):.2f}" == trained.accuracy
    assert files_of(trained.folder) == before


@pytest.fixture
def three(digits_root) -> Path:
    return digits_root / "digits/images/val/3/0013.png"


def test_new_classes_for_a_learned_context(run, call, three):
    trained = run(*SHORT)
    old = call(three, "--model-dir", trained.folder, "--json", "--top-k", 10).probabilities()
    new = call(three, "--model-dir", trained.folder, "--json", "--classes", "nine", "three").probabilities()
    assert new["three"] == pytest.approx(old["three"] / (old["three"] + old["nine"]), abs=1e-5)
    other = call(three, "--model-dir", trained.folder, "--json", "--classes", "red_envelope", "cup")
    assert set(other.probabilities()) == {"red_envelope", "cup"}


@pytest.mark.parametrize(
    ("trainer", "options", "message"),
    [
        ("CoOp", ("TRAINER.COOP.CSC", True), "--classes differs from the classes of the run (zero, one"),
        ("LinearProbe", (), "in another order"),
        ("TipAdapter", (), "in another order"),
    ],
)
def test_what_goes_with_its_classes_alone(run, call, three, refused, trainer, options, message):
    command = (three, "--model-dir", run(*SHORT, *options, trainer=trainer).folder)
    assert call(*command).code == 0
    refused(*command, "--classes", *NAMES[1:], NAMES[0], parts=[message, "--classes"])


def test_an_epoch_other_weights_a_folder_of_runs_and_a_lost_record(run, call, three, refused, tmp_path):
    folder = run(*SHORT, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, out="CoOp/seed1").folder
    command = (three, "--model-dir", folder, "--json")
    first, last, newest = (call(*command, *epoch) for epoch in (["--load-epoch", 1], ["--load-epoch", 2], []))
    assert last.probabilities() == newest.probabilities() != first.probabilities()
    refused(*command, "--load-epoch", 7, parts=["epoch 7", "epochs there: 1, 2"])
    weights, other = load_tiny(), tmp_path / "other.safetensors"
    save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, other)
    refused(*command, "--weights", other, parts=["began with other weights", other])
    refused(three, "--model-dir", folder.parent, parts=["no run in", f"below it there are {folder}"])
    (folder / "result.json").unlink()
    refused(*command, parts=[folder, "no result.json", "--classes"])
    assert call(*command, "--classes", *NAMES).output == newest.output


def test_a_run_that_only_evaluated(run, call, few_digits, three):
    trained = run("--root", few_digits, "--eval-only", trainer="ZeroshotCLIP")
    assert not (trained.folder / "config.yaml").exists()
    zero_shot = call(three, "--json", "--classes", *NAMES, *TINY, "--template", "a photo of the number {}.")
    found = call(three, "--json", "--model-dir", trained.folder)
    assert found.probabilities() == pytest.approx(zero_shot.probabilities(), abs=1e-5)
