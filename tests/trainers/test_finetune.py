"""Runs of CLIPFineTune: recall and accuracy, checkpoints, resuming, and refused options."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.utils import listdir_nohidden
from tests.common import REPOSITORY, assert_same_tensors, load_tensors
from tests.conftest import Run
from tests.datasets.shapes import write_captions
from tests.trainers.conftest import CONFIGS
from tools import digit_pairs
from trainers.finetune import CLIPFineTune, FineTunedCLIP
from vlm.clip.load import load_cached_clip

LORA = ("TRAINER.FINETUNE.PARTS", '["lora"]')
PROJECTIONS = ("TRAINER.FINETUNE.PARTS", '["projections"]')
SHORT = ("OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 32)
DIGITS = ("--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml")


def checkpoint_path(result: Run, epoch: int):
    """Return the path of a run's checkpoint after ``epoch`` epochs."""
    return result.folder / "clip" / f"model.pth.tar-{epoch}"


def read_recall(result: Run) -> float:
    """Return the last recall@1 (%) in a run's log."""
    return float(re.findall(r"^\* recall@1: (.*)%$", result.log, re.MULTILINE)[-1])


def assert_refused(result: Run, message: str) -> None:
    """Assert that a run failed with exit code 2 and a one-line error that contains ``message``."""
    assert result.code == 2
    assert result.error.count("\n") == 1
    assert message in result.error


def test_the_test_images_of_the_digit_pairs_show_other_scans_than_the_training_images(pairs_root):
    scans = {"train": set(), "test": set()}
    for entry in json.loads((pairs_root / "digit_pairs/captions.json").read_text()):
        image = np.asarray(Image.open(pairs_root / "digit_pairs" / entry["image"]))
        scans[entry["split"]] |= {image[:, :16].tobytes(), image[:, 16:].tobytes()}
    assert len(scans["test"]) > 100
    assert not scans["train"] & scans["test"]


# ---- whole runs ----


def test_fine_tuning_raises_recall_on_test_images_and_leaves_the_shared_clip_unchanged(fine_tune, tmp_path):
    digit_pairs.main(["--root", str(tmp_path), "--pairs", "300"])
    arguments = ("--root", tmp_path, "OPTIM.MAX_EPOCH", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 20)
    shared = {
        name: value.clone() for name, value in load_cached_clip("tiny", "", "fp32", "cpu")[0].state_dict().items()
    }
    result = fine_tune(*arguments)
    assert result.code == 0, result.error
    assert "* images: 100\n* texts: 500\n" in result.log
    assert read_recall(result) > 15  # chance is 1; untrained, it is below 5
    assert result.record["recall@1"] == pytest.approx(read_recall(result), abs=0.005)
    assert result.record["classnames"] == []
    assert result.record["trainable_parameters"] == result.record["total_parameters"]
    after = load_cached_clip("tiny", "", "fp32", "cpu")[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in shared.items())


def test_eval_only_without_a_model_dir_evaluates_the_pretrained_clip(fine_tune):
    result = fine_tune("--eval-only")
    assert result.code == 0, result.error
    assert read_recall(result) < 5
    assert set(listdir_nohidden(result.folder)) == {"log.txt", "result.json"}


def test_a_checkpoint_with_lora_is_small_and_evaluates_on_captions_and_on_classes(fine_tune, run):
    trained = fine_tune(*LORA, *SHORT, "OPTIM.LR", 0.05)
    trained_tensors = load_tensors(checkpoint_path(trained, 2))
    assert all(name == "clip.logit_scale" or re.search(r"weight\.0\.(up|down)$", name) for name in trained_tensors)
    assert any("visual" in name for name in trained_tensors)
    evaluation = ("--eval-only", "--model-dir", trained.folder, *LORA)
    assert fine_tune(*evaluation, out="again").record["recall@1"] == trained.record["recall@1"]
    config = ("--config-file", CONFIGS / "tiny.yaml")
    digits = run(*config, *evaluation, trainer="CLIPFineTune", out="digits")
    assert digits.code == 0, digits.error
    assert digits.record["classnames"][:2] == ["zero", "one"]
    untrained = run(*config, "--eval-only", trainer="CLIPFineTune", out="untrained")
    assert digits.accuracy != untrained.accuracy == run("--eval-only", trainer="ZeroshotCLIP", out="zero").accuracy


def test_a_run_on_projections_warms_up_in_each_step_and_loads_with_the_same_parts_alone(fine_tune):
    trained = fine_tune(*PROJECTIONS, *SHORT, "OPTIM.LR", 0.1)
    assert re.findall(r"lr (\S+) eta", trained.log) == ["1.0000e-05", "5.0000e-02", "1.0000e-01", "2.9289e-02"]
    linear = {"clip.visual.attnpool.c_proj.weight", "clip.visual.attnpool.c_proj.bias"}
    assert set(load_tensors(checkpoint_path(trained, 2))) == {"clip.logit_scale", "clip.text_projection", *linear}
    for parts in (LORA, ()):
        evaluation = ("--eval-only", "--model-dir", trained.folder, *parts)
        assert_refused(fine_tune(*evaluation, out="other"), "TRAINER.FINETUNE.PARTS ['projections'] -> ")
        assert_refused(fine_tune("--allow-mismatch", *evaluation, out="other"), "TRAINER.FINETUNE must be")


def test_fine_tuning_on_classes_with_the_template_as_caption_beats_zero_shot(run):
    result = run("--config-file", CONFIGS / "tiny.yaml", "DATASET.NUM_SHOTS", 8, *PROJECTIONS, "OPTIM.MAX_EPOCH", 5,
                 "DATALOADER.TRAIN_X.BATCH_SIZE", 16, trainer="CLIPFineTune")  # fmt: skip
    assert result.code == 0, result.error
    assert float(result.accuracy) > 80  # zero-shot has 76


def test_pretraining_lowers_the_loss_and_a_resumed_run_ends_with_the_same_weights(fine_tune, pairs_root):
    digit_pairs.main(["--root", str(pairs_root), "--renders", "128"])
    options = ("DATASET.FOLDER", "digit_renders", "OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 32)
    options += ("TRAIN.PRINT_FREQ", 1, "TRAIN.CHECKPOINT_FREQ", 1, "TEST.NO_TEST", True)
    uninterrupted = fine_tune(*options, config="tiny_pretrain")
    assert uninterrupted.code == 0, uninterrupted.error
    assert "starting from random weights" in uninterrupted.log
    losses = [float(value) for value in re.findall(r"loss (\S+) \(", uninterrupted.log)]
    assert sum(losses[-3:]) < sum(losses[:3])
    expected = checkpoint_path(uninterrupted, 2).rename(uninterrupted.folder / "uninterrupted.pth")
    (uninterrupted.folder / "clip/checkpoint").write_text("model.pth.tar-1\n")
    resumed = fine_tune(*options, config="tiny_pretrain")
    assert set(re.findall(r"epoch \[(\d)/2\]", resumed.log)) == {"2"}
    assert_same_tensors(checkpoint_path(resumed, 2), expected)


# ---- refused options ----


@pytest.mark.parametrize(
    ("arguments", "message"),
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
def test_an_unusable_option_is_refused_with_a_one_line_error(fine_tune, digits_root, arguments, message):
    if arguments[0] == "--dataset-config-file":
        arguments = ("--root", digits_root, *arguments)
    assert_refused(fine_tune(*arguments), message)


# ---- captions ----


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_equal_captions_are_encoded_once_and_the_batch_size_does_not_change_the_recall(
    fine_tune, tmp_path, monkeypatch, batch_size
):
    """Captions are equal if their tokens are: those of upper case, with more spaces, or cut in front of their end."""
    articles, ends = ("the", "The", "the "), ("", " red" * 80, " red" * 80 + " one")

    def captions(number):
        return [f"{articles[number % 2]} number {number % 3}", f"{articles[number % 3]} {number % 5}{ends[number % 3]}"]

    write_captions(tmp_path, 30, captions)
    encoded = []
    encode = CLIPFineTune.encode_tokens
    monkeypatch.setattr(
        CLIPFineTune, "encode_tokens", lambda self, tokens: encoded.extend(tokens.tolist()) or encode(self, tokens)
    )
    command = ("--root", tmp_path, "--eval-only", "DATASET.FOLDER", "")
    result = fine_tune(*command, "DATALOADER.TEST.BATCH_SIZE", batch_size, out=f"batch{batch_size}")
    assert result.code == 0, result.error
    results = result.record
    assert len(encoded) == len({*map(tuple, encoded)}) == 3 + 2 * 5
    assert results["shared_captions"] == {"test": 30 - 3 + 30 - 2 * 5}
    expected = fine_tune(*command, "DATALOADER.TEST.BATCH_SIZE", 13, out="expected").record
    metrics = [name for name in expected if "recall" in name or "map" in name]
    assert len(metrics) == 9
    assert {name: results[name] for name in metrics} == {name: expected[name] for name in metrics}
    assert results["t2i_recall@10"] > 0


def test_a_model_that_is_always_right_has_full_recall_where_images_share_captions(fine_tune, tmp_path, monkeypatch):
    """The red of an image is 60 times the number in its caption; the patched encoders return this number, one-hot."""
    for name in range(40):
        Image.new("RGB", (32, 32), (60 * (name % 4), 0, 0)).save(tmp_path / f"{name}.png")
    rows = [{"image": f"{i}.png", "caption": f"number {i % 4}", "split": "test" if i else "train"} for i in range(40)]
    (tmp_path / "captions.json").write_text(json.dumps(rows))

    def encode_images(self, images):
        red = images[:, 0, 0, 0] * self.clip.visual.std[0] + self.clip.visual.mean[0]
        return torch.eye(4)[(red * 255 / 60).round().long()]

    def encode_tokens(self, tokens):
        digits = self.encoder.tokenize([f"number {number}" for number in range(4)])
        return torch.eye(4)[(tokens[:, None] == digits).all(2).int().argmax(1)]

    monkeypatch.setattr(FineTunedCLIP, "encode_images", encode_images)
    monkeypatch.setattr(CLIPFineTune, "encode_tokens", encode_tokens)
    result = fine_tune("--root", tmp_path, "--eval-only", "DATASET.FOLDER", "", "DATALOADER.TEST.BATCH_SIZE", 8)
    assert result.code == 0, result.error
    assert {value for name, value in result.record.items() if "recall" in name or "map" in name} == {100}


def test_the_log_has_the_number_of_captions_that_are_too_long(fine_tune, tmp_path):
    """Long in characters alone, above 77 tokens, and above what can be counted."""
    texts = ["short", "in" * 40, "a " * 75, "a " * 76, "狗" * 100, "a " * 4000]
    write_captions(tmp_path, 6, lambda number: [texts[number % 6], "short"])
    result = fine_tune("--root", tmp_path, "--eval-only", "DATASET.FOLDER", "")
    assert result.code == 0, result.error
    assert result.log.count("Captions above 77 tokens, cut: 3 of 12 train, 3 of 12 test\n") == 1


@pytest.mark.parametrize(
    ("count", "options", "problem"),
    [
        (3, ("DATALOADER.TRAIN_X.BATCH_SIZE", 1), "batches have one pair (DATALOADER.TRAIN_X.BATCH_SIZE 1, 3 images)"),
        (1, (), "batches have one pair (DATALOADER.TRAIN_X.BATCH_SIZE 128, 1 images)"),
        (3, ("DATASET.CAPTIONS", "equal.json"), "all captions of the 3 training images are equal"),
    ],
)
def test_training_without_negatives_is_refused(fine_tune, tmp_path, count, options, problem):
    write_captions(tmp_path, count, lambda number: f"image {number}")
    captions = (tmp_path / "captions.json").read_text()
    (tmp_path / "equal.json").write_text(re.sub(r"image (\d+)", lambda m: "one" if m[1] == "0" else " One", captions))
    options = ("DATASET.FOLDER", "", *options)
    result = fine_tune("--root", tmp_path, *options)
    assert_refused(result, f"the contrastive loss needs two captions in a batch, but {problem}")
    assert fine_tune("--root", tmp_path, "--eval-only", *options, out="evaluated").code == 0
