"""Runs of CLIPFineTune: what they reach and leave, and that they are the same each time."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import train
from dassl.utils import listdir_nohidden
from tests.common import REPOSITORY, assert_same_tensors, tensors
from tests.conftest import Run
from tests.trainers.conftest import CONFIGS
from tools import digit_pairs
from vlm.clip.load import load_shared

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


def test_the_example_says_what_is_true_of_one_pair_alone_and_tests_on_other_scans(pairs_root):
    said = [text for left in range(10) for right in range(10) for text in digit_pairs.captions(left, right)]
    assert len(said) == len(set(said)) == 500
    assert "the number forty seven" in digit_pairs.captions(4, 7)
    scans = {"train": set(), "test": set()}
    for entry in json.loads((pairs_root / "digit_pairs/captions.json").read_text()):
        picture = np.asarray(Image.open(pairs_root / "digit_pairs" / entry["image"]))
        scans[entry["split"]] |= {picture[:, :16].tobytes(), picture[:, 16:].tobytes()}
    assert len(scans["test"]) > 100
    assert not scans["train"] & scans["test"]


# ---- whole runs ----


def test_fine_tuning_raises_recall_on_pairs_it_has_not_seen(pairs_root, tune, tmp_path):
    digit_pairs.main(["--root", str(tmp_path), "--pairs", "600"])
    settings = ("--root", tmp_path, "OPTIM.MAX_EPOCH", 4, "DATALOADER.TRAIN_X.BATCH_SIZE", 50)
    result = tune(*settings, "TEST.FINAL_MODEL", "last_step")
    assert result.code == 0, result.error
    assert "* images: 100\n* texts: 500\n" in result.log
    assert recall(result) > 15  # chance is 1; untrained, it is below 5
    assert result.record["recall@1"] == pytest.approx(recall(result), abs=0.005)
    assert result.record["classnames"] == []
    assert result.record["trainable_parameters"] == result.record["total_parameters"]


def test_without_a_model_the_pretrained_clip_is_evaluated(tune):
    result = tune("--eval-only")
    assert result.code == 0, result.error
    assert recall(result) < 5
    assert set(listdir_nohidden(result.folder)) == {"log.txt", "result.json"}


def test_a_run_evaluates_again_and_on_classes(tune, run):
    trained = tune(*LORA, *SHORT, "OPTIM.LR", 0.05)
    again = tune("--eval-only", "--model-dir", trained.folder, *LORA, out="again")
    assert again.record["recall@1"] == trained.record["recall@1"]
    digits = run("--config-file", CONFIGS / "tiny.yaml", "--eval-only", "--model-dir", trained.folder, *LORA,
                 trainer="CLIPFineTune", out="digits")  # fmt: skip
    zero_shot = run("--eval-only", trainer="ZeroshotCLIP", out="zero")
    assert digits.code == 0, digits.error
    assert "* total: 896" in digits.log
    assert digits.record["classnames"][:2] == ["zero", "one"]
    assert digits.accuracy != zero_shot.accuracy


def test_untrained_it_classifies_as_zero_shot_clip_does(run):
    same = run("--config-file", CONFIGS / "tiny.yaml", "--eval-only", trainer="CLIPFineTune", out="fine")
    assert same.code == 0, same.error
    assert same.accuracy == run("--eval-only", trainer="ZeroshotCLIP", out="zero").accuracy


def test_on_classes_the_captions_are_their_template(run):
    result = run("--config-file", CONFIGS / "tiny.yaml", "DATASET.NUM_SHOTS", 8, *PROJECTIONS, "OPTIM.MAX_EPOCH", 5,
                 "DATALOADER.TRAIN_X.BATCH_SIZE", 16, trainer="CLIPFineTune")  # fmt: skip
    assert result.code == 0, result.error
    assert float(result.accuracy) > 80  # zero-shot has 76


@pytest.mark.parametrize("parts", [LORA, ("TRAINER.FINETUNE.PARTS", '["image"]')])
def test_a_resumed_run_ends_as_if_never_stopped(tune, parts):
    settings = (*parts, "OPTIM.MAX_EPOCH", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 32, "TRAIN.CHECKPOINT_FREQ", 1)
    whole, stopped = tune(*settings, out="whole"), tune(*settings, out="stopped")
    for path in (checkpoint(stopped, 3), checkpoint(stopped, 2), stopped.folder / "result.json"):
        path.unlink()
    (stopped.folder / "clip/checkpoint").write_text("model.pth.tar-1\n")
    resumed = tune(*settings, out="stopped")
    assert set(re.findall(r"epoch \[(\d)/3\]", resumed.log)) == {"2", "3"}
    assert_same_tensors(checkpoint(whole, 3), checkpoint(resumed, 3))
    assert whole.record["recall@1"] == resumed.record["recall@1"]


def test_chunks_give_the_run_of_the_whole_batch(tune):
    whole = tune(*PROJECTIONS, *SHORT, out="whole")
    chunks = tune(*PROJECTIONS, *SHORT, "TRAINER.FINETUNE.CHUNK", 7, out="chunks")
    one, other = (tensors(checkpoint(result, 2)) for result in (whole, chunks))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def test_the_rate_warms_up_by_steps(tune):
    rates = re.findall(r"lr (\S+) eta", tune(*PROJECTIONS, *SHORT, "OPTIM.LR", 0.1).log)
    assert rates == ["1.0000e-05", "5.0000e-02", "1.0000e-01", "2.9289e-02"]


# ---- what learns, what is kept ----


def test_a_checkpoint_holds_what_learns(tune):
    lora = tensors(checkpoint(tune(*LORA, *SHORT, out="lora"), 2))
    assert all(name == "clip.logit_scale" or re.search(r"weight\.0\.(up|down)$", name) for name in lora)
    assert any("visual" in name for name in lora)
    projections = tensors(checkpoint(tune(*PROJECTIONS, *SHORT, out="projections"), 2))
    linear = {"clip.visual.attnpool.c_proj.weight", "clip.visual.attnpool.c_proj.bias"}
    assert set(projections) == {"clip.logit_scale", "clip.text_projection", *linear}


def test_the_parts_of_a_run_are_those_it_is_loaded_with(tune):
    trained = tune(*PROJECTIONS, *SHORT)
    refused(tune("--eval-only", "--model-dir", trained.folder, *LORA, out="other"), "TRAINER.FINETUNE must be")
    refused(tune("--eval-only", "--model-dir", trained.folder, out="whole"), "TRAINER.FINETUNE must be")


def test_the_clip_that_others_share_stays_as_it_is(tune):
    before = {name: value.clone() for name, value in load_shared("tiny", "", "fp32", "cpu")[0].state_dict().items()}
    tune(*SHORT, out="whole")
    tune(*LORA, *SHORT, out="lora")
    after = load_shared("tiny", "", "fp32", "cpu")[0].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_pretraining_by_config_learns(tune, pairs_root):
    digit_pairs.main(["--root", str(pairs_root), "--renders", "256"])
    settings = ("DATASET.FOLDER", "digit_renders", "OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 32)
    result = tune(*settings, "TRAIN.PRINT_FREQ", 1, config="tiny_pretrain")
    assert result.code == 0, result.error
    assert "starting from random weights" in result.log
    losses = [float(value) for value in re.findall(r"loss (\S+) \(", result.log)]
    assert sum(losses[-4:]) < sum(losses[:4])


# ---- mistakes, configs ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("TRAINER.FINETUNE.PARTS", '["images"]'), 'did you mean "image"'),
        (("TRAINER.FINETUNE.PARTS", "[]"), "PARTS is empty"),
        (("TRAINER.FINETUNE.PARTS", '["lora","text"]'), "lora takes the place"),
        (("TRAINER.FINETUNE.PARTS", '["text"]', "MODEL.BACKBONE.PRETRAINED", False), "needs TRAINER.FINETUNE.PARTS"),
        (("TRAINER.FINETUNE.CHUNK", 8, "TRAINER.FINETUNE.FREEZE_BN", False), "CHUNK does not go with FREEZE_BN False"),
        (("TRAINER.FINETUNE.PREC", "fp16"), "TRAINER.FINETUNE.PREC"),
        (("TRAINER.FINETUNE.LORA_RANK", 0), "LORA_RANK"),
        (("TRAINER.FINETUNE.MAX_LOGIT_SCALE", 0), "MAX_LOGIT_SCALE"),
        (("TEST.EVALUATOR", "Classification"), "has captions, which TEST.EVALUATOR Retrieval evaluates"),
        ((*DIGITS, "TEST.EVALUATOR", "Retrieval", "DATASET.FOLDER", ""), "has classes"),
    ],
)
def test_mistakes_are_one_message(tune, digits_root, settings, message):
    if settings[0] == "--dataset-config-file":
        settings = ("--root", digits_root, *settings)
    refused(tune(*settings), message)


@pytest.mark.parametrize("file", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_configs_name_their_command(arguments, file):
    cfg = train.setup_cfg(train.parse_args(arguments(config=file)))
    header = (CONFIGS / f"{file}.yaml").read_text()
    assert f"configs/trainers/CLIPFineTune/{file}.yaml" in header.partition("DATALOADER")[0]
    assert cfg.OPTIM.NAME == "adamw"
    assert not cfg.OPTIM.WARMUP_RECOUNT
