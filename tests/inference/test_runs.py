"""predict.py --model-dir: the predictions of a run, compared with those of train.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from datasets.digits import DIGIT_NAMES
from vlm.tiny.weights import load_tiny

TINY = ("--backbone", "tiny")
SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", "True")


def read_file_stats(folder: Path) -> dict[Path, tuple]:
    """Return path -> (modification time, size) of everything below ``folder``."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def few_digits(digits_root, tmp_path_factory) -> Path:
    """Return the root of a copy of the digits with eight test images for each digit."""
    root = tmp_path_factory.mktemp("few")
    shutil.copytree(digits_root / "digits", root / "digits")
    for folder in (root / "digits/images/val").iterdir():
        for path in sorted(folder.iterdir())[8:]:
            path.unlink()
    return root


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp", "ZeroshotCLIP2", "LinearProbe", "TipAdapterF", "CLIPAdapter"])
def test_predictions_of_a_run_have_the_accuracy_in_its_log(run, call, few_digits, trainer):
    trained = run("--root", few_digits, *SHORT, "TEST.NO_TEST", "False", "TRAINER.NAME", trainer)
    assert trained.code == 0, trained.error
    before = read_file_stats(trained.folder)
    result = call(few_digits / "digits/images/val", "--model-dir", trained.folder, "--json")
    assert result.code == 0
    correct = [
        record["predictions"][0]["class"] == DIGIT_NAMES[int(Path(record["image"]).parent.name)]
        for record in result.records
    ]
    assert len(correct) == 80
    assert f"{100 * sum(correct) / len(correct):.2f}" == trained.accuracy
    assert read_file_stats(trained.folder) == before


@pytest.fixture
def three(digits_root) -> Path:
    """Return the path of a test image of the digit three."""
    return digits_root / "digits/images/val/3/0013.png"


def test_a_learned_context_works_with_new_classes(run, call, three):
    trained = run(*SHORT)
    old = call(three, "--model-dir", trained.folder, "--json", "--top-k", 10).probabilities()
    new = call(three, "--model-dir", trained.folder, "--json", "--classes", "nine", "three").probabilities()
    assert new["three"] == pytest.approx(old["three"] / (old["three"] + old["nine"]), abs=1e-5)
    unseen = call(three, "--model-dir", trained.folder, "--json", "--classes", "red_envelope", "cup")
    assert set(unseen.probabilities()) == {"red_envelope", "cup"}


@pytest.mark.parametrize(
    ("trainer", "options", "message"),
    [
        ("CoOp", ("TRAINER.COOP.CSC", True), "--classes differs from the classes of the run (zero, one"),
        ("LinearProbe", (), "in another order"),
        ("TipAdapter", (), "in another order"),
    ],
)
def test_a_model_bound_to_its_classes_refuses_others(run, call, three, refused, trainer, options, message):
    command = (three, "--model-dir", run(*SHORT, *options, trainer=trainer).folder)
    assert call(*command).code == 0
    refused(*command, "--classes", *DIGIT_NAMES[1:], DIGIT_NAMES[0], fragments=[message, "--classes"])


def test_load_epoch_weights_and_the_folder_are_checked_against_the_run(run, call, three, refused, tmp_path):
    folder = run(*SHORT, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, out="CoOp/seed1").folder
    command = (three, "--model-dir", folder, "--json")
    first, last, newest = (call(*command, *epoch) for epoch in (["--load-epoch", 1], ["--load-epoch", 2], []))
    assert last.probabilities() == newest.probabilities() != first.probabilities()
    refused(*command, "--load-epoch", 7, fragments=["epoch 7", "epochs there: 1, 2"])
    weights, changed = load_tiny(), tmp_path / "changed.safetensors"
    save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, changed)
    refused(*command, "--weights", changed, fragments=["began with other weights", changed])
    refused(three, "--model-dir", folder.parent, fragments=["no run in", f"below it there are {folder}"])
    (folder / "result.json").unlink()
    refused(*command, fragments=[folder, "no result.json", "--classes"])
    assert call(*command, "--classes", *DIGIT_NAMES).output == newest.output


def test_a_run_predicts_its_classes_though_an_evaluation_took_the_place_of_its_record(run, call, three, refused):
    """As versions before this one let an evaluation do."""
    trained = run(*SHORT)
    new = run("--eval-only", "--model-dir", trained.folder, *SHORT, "DATASET.SUBSAMPLE_CLASSES", "new", out="new")
    expected = call(three, "--model-dir", trained.folder, "--json").output
    record = trained.folder / "result.json"
    renamed = record.rename(f"{record}-2026-01-01-00-00-00")
    shutil.copy(new.folder / "result.json", record)
    assert call(three, "--model-dir", trained.folder, "--json").output == expected
    renamed.unlink()
    refused(three, "--model-dir", trained.folder, fragments=[trained.folder, "of a training run", "--classes"])
    assert call(three, "--model-dir", trained.folder, "--json", "--classes", *DIGIT_NAMES).output == expected


def test_a_run_that_only_evaluated_predicts_as_zero_shot_clip(run, call, few_digits, three):
    trained = run("--root", few_digits, "--eval-only", trainer="ZeroshotCLIP")
    assert not (trained.folder / "config.yaml").exists()
    zero_shot = call(three, "--json", "--classes", *DIGIT_NAMES, *TINY, "--template", "a photo of the number {}.")
    from_run = call(three, "--json", "--model-dir", trained.folder)
    assert from_run.probabilities() == pytest.approx(zero_shot.probabilities(), abs=1e-5)
