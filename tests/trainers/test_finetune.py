"""Runs of CLIPFineTune: what they reach and leave, and that they are the same each time."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.utils import listdir_nohidden
from tests.common import REPOSITORY, assert_same_tensors, tensors
from tests.conftest import Run
from tests.trainers.conftest import CONFIGS
from tools import digit_pairs
from vlm.clip.load import load_cached_clip

LORA = ("TRAINER.FINETUNE.PARTS", '["lora"]')
PROJECTIONS = ("TRAINER.FINETUNE.PARTS", '["projections"]')
SHORT = ("OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 32)
DIGITS = ("--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml")


def checkpoint(result: Run, epoch: int):
    return result.folder / "clip" / f"model.pth.tar-{epoch}"


def recall(result: Run) -> float:
    return float(re.findall(r"^\* recall@1: (.*)%$", result.log, re.MULTILINE)[-1])


def refused(result: Run, *parts: str) -> None:
    assert result.code == 2
    assert result.error.count("\n") == 1
    for part in parts:
        assert part in result.error


def test_the_example_tests_on_other_scans(pairs_root):
    scans = {"train": set(), "test": set()}
    for entry in json.loads((pairs_root / "digit_pairs/captions.json").read_text()):
        picture = np.asarray(Image.open(pairs_root / "digit_pairs" / entry["image"]))
        scans[entry["split"]] |= {picture[:, :16].tobytes(), picture[:, 16:].tobytes()}
    assert len(scans["test"]) > 100
    assert not scans["train"] & scans["test"]


# ---- whole runs ----


def test_fine_tuning_raises_recall_on_pairs_it_has_not_seen(tune, tmp_path):
    digit_pairs.main(["--root", str(tmp_path), "--pairs", "300"])
    settings = ("--root", tmp_path, "OPTIM.MAX_EPOCH", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 20)
    shared = {
        name: value.clone() for name, value in load_cached_clip("tiny", "", "fp32", "cpu")[0].state_dict().items()
    }
    result = tune(*settings)
    assert result.code == 0, result.error
    assert "* images: 100\n* texts: 500\n" in result.log
    assert recall(result) > 15  # chance is 1; untrained, it is below 5
    assert result.record["recall@1"] == pytest.approx(recall(result), abs=0.005)
    assert result.record["classnames"] == []
    assert result.record["trainable_parameters"] == result.record["total_parameters"]
    after = load_cached_clip("tiny", "", "fp32", "cpu")[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in shared.items())  # others of this process have it


def test_without_a_model_the_pretrained_clip_is_evaluated(tune):
    result = tune("--eval-only")
    assert result.code == 0, result.error
    assert recall(result) < 5
    assert set(listdir_nohidden(result.folder)) == {"log.txt", "result.json"}


def test_a_run_with_lora_evaluates_again_and_on_classes(tune, run):
    trained = tune(*LORA, *SHORT, "OPTIM.LR", 0.05)
    learned = tensors(checkpoint(trained, 2))
    assert all(name == "clip.logit_scale" or re.search(r"weight\.0\.(up|down)$", name) for name in learned)
    assert any("visual" in name for name in learned)
    evaluation = ("--eval-only", "--model-dir", trained.folder, *LORA)
    assert tune(*evaluation, out="again").record["recall@1"] == trained.record["recall@1"]
    config = ("--config-file", CONFIGS / "tiny.yaml")
    digits = run(*config, *evaluation, trainer="CLIPFineTune", out="digits")
    assert digits.code == 0, digits.error
    assert digits.record["classnames"][:2] == ["zero", "one"]
    untrained = run(*config, "--eval-only", trainer="CLIPFineTune", out="untrained")
    assert digits.accuracy != untrained.accuracy == run("--eval-only", trainer="ZeroshotCLIP", out="zero").accuracy


def test_projections_alone_learn_by_a_rate_that_warms_up_by_steps(tune):
    trained = tune(*PROJECTIONS, *SHORT, "OPTIM.LR", 0.1)
    assert re.findall(r"lr (\S+) eta", trained.log) == ["1.0000e-05", "5.0000e-02", "1.0000e-01", "2.9289e-02"]
    linear = {"clip.visual.attnpool.c_proj.weight", "clip.visual.attnpool.c_proj.bias"}
    assert set(tensors(checkpoint(trained, 2))) == {"clip.logit_scale", "clip.text_projection", *linear}
    # The parts of a run are those that it is loaded with.
    for parts in (LORA, ()):
        refused(tune("--eval-only", "--model-dir", trained.folder, *parts, out="other"), "TRAINER.FINETUNE must be")


def test_on_classes_the_captions_are_their_template(run):
    result = run("--config-file", CONFIGS / "tiny.yaml", "DATASET.NUM_SHOTS", 8, *PROJECTIONS, "OPTIM.MAX_EPOCH", 5,
                 "DATALOADER.TRAIN_X.BATCH_SIZE", 16, trainer="CLIPFineTune")  # fmt: skip
    assert result.code == 0, result.error
    assert float(result.accuracy) > 80  # zero-shot has 76


def test_pretraining_by_config_learns_and_a_resumed_run_ends_as_if_never_stopped(tune, pairs_root):
    digit_pairs.main(["--root", str(pairs_root), "--renders", "128"])
    settings = ("DATASET.FOLDER", "digit_renders", "OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 32)
    settings += ("TRAIN.PRINT_FREQ", 1, "TRAIN.CHECKPOINT_FREQ", 1, "TEST.NO_TEST", True)
    whole = tune(*settings, config="tiny_pretrain")
    assert whole.code == 0, whole.error
    assert "starting from random weights" in whole.log
    losses = [float(value) for value in re.findall(r"loss (\S+) \(", whole.log)]
    assert sum(losses[-3:]) < sum(losses[:3])
    expected = checkpoint(whole, 2).rename(whole.folder / "whole.pth")
    (whole.folder / "clip/checkpoint").write_text("model.pth.tar-1\n")
    resumed = tune(*settings, config="tiny_pretrain")
    assert set(re.findall(r"epoch \[(\d)/2\]", resumed.log)) == {"2"}
    assert_same_tensors(checkpoint(resumed, 2), expected)


# ---- mistakes ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("TRAINER.FINETUNE.PARTS", '["images"]'), 'did you mean "image"'),
        (("TRAINER.FINETUNE.PARTS", "[]"), "PARTS is empty"),
        (("TRAINER.FINETUNE.PARTS", '["lora","text"]'), "lora takes the place"),
        (("TRAINER.FINETUNE.PARTS", '["text"]', "MODEL.BACKBONE.PRETRAINED", False), "needs TRAINER.FINETUNE.PARTS"),
        (("TRAINER.FINETUNE.CHUNK", 8, "TRAINER.FINETUNE.FREEZE_BN", False), "CHUNK does not go with FREEZE_BN False"),
        (("TRAINER.FINETUNE.PREC", "fp16"), "TRAINER.FINETUNE.PREC"),
        (("TRAINER.FINETUNE.MAX_LOGIT_SCALE", 0), "MAX_LOGIT_SCALE"),
        (("TEST.EVALUATOR", "Classification"), "has captions, which TEST.EVALUATOR Retrieval evaluates"),
        ((*DIGITS, "TEST.EVALUATOR", "Retrieval"), "has classes"),
    ],
)
def test_mistakes_are_one_message(tune, digits_root, settings, message):
    if settings[0] == "--dataset-config-file":
        settings = ("--root", digits_root, *settings)
    refused(tune(*settings), message)
