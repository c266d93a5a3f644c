"""Runs of KgCoOp, ProGrad and CLIP-LoRA on the digits: resume, evaluation, export, settings that are refused."""

from __future__ import annotations

import json
import re

import pytest
import torch

from studies.estimate import Estimate, Speed
from tests.common import REPOSITORY, assert_same_tensors, load_tensors
from tools import export_classifier, export_clip, interpret_prompt
from vlm.clip.load import load_cached_clip

METHODS = ("KgCoOp", "ProGrad", "CLIPLoRA")
SHORT = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "TRAIN.PRINT_FREQ", 1)
LORA = "TRAINER.CLIPLORA"
EPOCHS = (f"{LORA}.N_ITERS", 0)  # OPTIM.MAX_EPOCH counts


@pytest.fixture
def train_method(run):
    """Return a function that runs a method with its config for the tiny CLIP, two short epochs unless changed."""

    def call(method: str, *arguments: object, out: str = "run"):
        config = ("--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml")
        flags = [argument for argument in arguments if str(argument).startswith("--") or "/" in str(argument)]
        options = [argument for argument in arguments if argument not in flags]
        return run(*config, *flags, *SHORT, *EPOCHS, *options, trainer=method, out=out)

    return call


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_as_an_unbroken_one_and_evaluates_and_exports_the_same(train_method, method, capsys):
    trained = train_method(method, "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.LR", 0.01, "OPTIM.WARMUP_EPOCH", 0)
    assert trained.code == 0, trained.error
    folder = trained.folder / ("clip" if method == "CLIPLoRA" else "prompt_learner")
    first = load_tensors(folder / "model.pth.tar-1")
    expected = (folder / "model.pth.tar-2").rename(trained.folder / "unbroken.pth")
    assert any(not torch.equal(value, first[name]) for name, value in load_tensors(expected).items())
    (folder / "checkpoint").write_text("model.pth.tar-1\n", encoding="utf-8")
    resumed = train_method(method, "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.LR", 0.01, "OPTIM.WARMUP_EPOCH", 0)
    assert resumed.code == 0, resumed.error
    assert set(re.findall(r"epoch \[(\d)/2\]", resumed.log)) == {"2"}
    assert_same_tensors(folder / "model.pth.tar-2", expected)
    evaluated = train_method(method, "--eval-only", "--model-dir", trained.folder, out="evaluated")
    assert evaluated.code == 0, evaluated.error
    assert evaluated.accuracy == trained.accuracy
    assert export_classifier.main([str(trained.folder)]) == 0  # compares the files' logits with the run's
    assert (trained.folder / "classifier/classifier.onnx").is_file()
    if method != "CLIPLoRA":
        assert interpret_prompt.main([str(trained.folder)]) == 0
        assert "4 context tokens" in capsys.readouterr().out


def test_the_clip_of_a_lora_run_gives_its_accuracy_without_the_updates(train_method, run):
    before = {
        name: value.clone() for name, value in load_cached_clip("tiny", "", "fp32", "cpu")[0].state_dict().items()
    }
    trained = train_method("CLIPLoRA", "OPTIM.LR", 0.02)
    state = load_tensors(trained.folder / "clip/model.pth.tar-2")
    assert all(re.search(r"weight\.0\.(up|down)$", name) for name in state)
    assert {name.split(".")[1] for name in state} == {"visual", "transformer"}
    assert export_clip.main([str(trained.folder)]) == 0
    clip = ("MODEL.BACKBONE.WEIGHTS", trained.folder / "clip.safetensors")
    assert run(*clip, trainer="ZeroshotCLIP", out="exported").accuracy == trained.accuracy
    assert run(trainer="ZeroshotCLIP", out="zero").accuracy != trained.accuracy
    after = load_cached_clip("tiny", "", "fp32", "cpu")[0].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(("encoder", "prefix"), [("vision", "clip.visual."), ("text", "clip.transformer.")])
def test_one_encoder_alone_has_updates_of_the_named_projections(digits_trainer, encoder, prefix):
    trainer = digits_trainer("CLIPLoRA", f"{LORA}.ENCODER", encoder, f"{LORA}.PARAMS", "['v']")
    state = trainer.model.state_dict()
    assert state
    assert all(name.startswith(prefix) for name in state)
    batch = next(iter(trainer.train_loader_x))
    assert batch["img"].ndim == (2 if encoder == "text" else 4)  # features of the frozen image encoder
    trainer.set_model_mode("train")
    trainer.forward_backward(batch)
    assert (trainer.model.text_features is None) == (encoder == "text")  # fixed class features are kept
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)
    for name, module in trainer.model.named_modules():
        if hasattr(module, "draw_mask") and "in_proj_weight" in name:
            assert module.blocks == (False, False, True)


def test_lora_trains_for_a_number_of_steps_a_shot_in_whole_epochs_and_so_says_the_estimate(digits_trainer):
    trainer = digits_trainer(
        "CLIPLoRA", "DATASET.NUM_SHOTS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 6, f"{LORA}.N_ITERS", 4
    )
    assert len(trainer.train_loader_x) == 3
    assert trainer.max_epoch == 3  # 8 steps
    estimate = Estimate(speed=Speed(0, 0, 0, 0))
    estimate.add(trainer, trainer.cfg, is_evaluation=False)
    assert estimate.steps == 9
    assert digits_trainer("CLIPLoRA", *EPOCHS, "OPTIM.MAX_EPOCH", 7).max_epoch == 7
    rates = []
    for _ in range(9):
        rates.append(trainer.get_current_lr())
        trainer._optims["clip"].step()
        trainer.update_lr()
    assert rates[0] == 2e-4
    assert trainer.get_current_lr() == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


def test_descriptions_take_the_place_of_templates_as_hand_written_prompts(digits_trainer, tmp_path, capsys):
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    path = tmp_path / "descriptions.json"
    path.write_text(json.dumps({name: [f"a drawing of {name}", f"a {name}"] for name in names}), encoding="utf-8")
    for method in ("KgCoOp", "ProGrad"):
        plain, described = (digits_trainer(method, *o) for o in ((), ("DATASET.DESCRIPTIONS", path)))
        assert not torch.allclose(plain.handwritten_features, described.handwritten_features, atol=1e-3)
        assert described.provenance["descriptions"]["file"] == str(path)
    assert "does nothing" not in capsys.readouterr().out
    lora = digits_trainer("CLIPLoRA", "DATASET.DESCRIPTIONS", path)
    assert lora.num_prompts == [2] * 10
    with torch.no_grad():
        torch.testing.assert_close(lora.class_features(), lora.prompts.build_classifier(lora.encoder))


@pytest.mark.parametrize(
    ("method", "key", "value", "message"),
    [
        ("KgCoOp", "TRAINER.COOP.SAMPLED_CLASSES", 6, "SAMPLED_CLASSES goes with CoOp alone: KgCoOp compares"),
        ("ProGrad", "TRAINER.COOP.SAMPLED_CLASSES", 6, "SAMPLED_CLASSES goes with CoOp alone: ProGrad compares"),
        ("ProGrad", "TRAINER.PROGRAD.T", 0, "TRAINER.PROGRAD.T is 0.0; it must be above 0"),
        ("KgCoOp", "DATASET.TEMPLATE", "a number", "DATASET.TEMPLATE"),
        ("CLIPLoRA", f"{LORA}.ENCODER", "image", f"{LORA}.ENCODER"),
        ("CLIPLoRA", f"{LORA}.PARAMS", "['o']", f"{LORA}.PARAMS"),
        ("CLIPLoRA", f"{LORA}.PARAMS", "[]", f"the number of {LORA}.PARAMS"),
        ("CLIPLoRA", f"{LORA}.R", 0, f"{LORA}.R"),
        ("CLIPLoRA", f"{LORA}.DROPOUT_RATE", 1.0, f"{LORA}.DROPOUT_RATE is 1.0; it must be from 0 to below 1"),
    ],
)
def test_values_that_cannot_be_used_are_refused_in_one_line(train_method, method, key, value, message):
    result = train_method(method, key, value)
    assert result.code == 2
    assert result.error.count("\n") == 1
    assert message in result.error


def test_a_lora_run_is_evaluated_with_its_own_rank_alone(train_method):
    trained = train_method("CLIPLoRA", "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
    evaluation = ("--eval-only", "--model-dir", trained.folder)
    result = train_method("CLIPLoRA", *evaluation, f"{LORA}.R", 3, f"{LORA}.DROPOUT_RATE", 0.0, out="other")
    assert result.code == 2
    assert "TRAINER.CLIPLORA.R 2 -> 3" in result.error
    assert "DROPOUT" not in result.error
    forced = ("--allow-mismatch", *evaluation)
    result = train_method("CLIPLoRA", *forced, f"{LORA}.ENCODER", "text", out="other")
    assert "TRAINER.CLIPLORA must be as in training" in result.error
