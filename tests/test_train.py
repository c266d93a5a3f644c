"""Whole runs of train.py: the files they leave, and that equal commands give equal results."""

from __future__ import annotations

import os
import re
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.engine.hooks import LogPrinter
from dassl.log_format import END_OF_TRAINING
from datasets.digits import DIGIT_NAMES
from tests.common import REPOSITORY, assert_same_tensors, load_tensors
from tests.conftest import Run
from trainers.coop import CoOp
from vlm.tiny.weights import load_tiny

TEST_SCANS = 896  # test images of the digits
SHORT = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2)


def test_zero_shot_classifies_digits_with_or_without_eval_only(run):
    result = run("--eval-only", "TEST.COMPUTE_CMAT", True, trainer="ZeroshotCLIP")
    assert result.code == 0
    assert float(result.accuracy) > 70  # chance is 10
    assert f"* total: {TEST_SCANS}" in result.log
    assert result.record["trainable_parameters"] == 0
    assert result.record["accuracy"] == pytest.approx(float(result.accuracy), abs=0.005)
    matrix = torch.load(result.folder / "cmat.pt", weights_only=True)
    assert matrix.shape == (10, 10)
    assert torch.allclose(matrix.sum(1), torch.ones(10, dtype=matrix.dtype))
    assert run(out="other", trainer="ZeroshotCLIP").accuracy == result.accuracy


@pytest.mark.parametrize(("choice", "count"), [("select", 8), ("all", 80)])
def test_prompt_ensembling_adds_the_template_of_the_data_set_to_the_selected_ones(run, choice, count):
    result = run("--eval-only", "TRAINER.ZEROSHOTCLIP2.TEMPLATES", choice, trainer="ZeroshotCLIP2")
    assert f"Prompt ensembling (n={count})" in result.log
    assert float(result.accuracy) > 70


def test_prompt_ensembling_on_imagenet_uses_the_selected_templates_alone(run, imagenet_root):
    data = ("--root", imagenet_root, "--dataset-config-file", REPOSITORY / "configs/datasets/imagenet.yaml")
    assert "Prompt ensembling (n=7)" in run(*data, "--eval-only", trainer="ZeroshotCLIP2").log


def test_coop_learns_from_few_shots(run):
    zero_shot = run("--eval-only", out="zero", trainer="ZeroshotCLIP")
    few_shot = run("DATASET.NUM_SHOTS", 8, "OPTIM.MAX_EPOCH", 20, "OPTIM.LR", 0.02)
    losses = [float(x) for x in re.findall(r"loss \S+ \((\S+)\)", few_shot.log)]
    assert losses[-1] < 0.8 * losses[0]
    assert float(few_shot.accuracy) > float(zero_shot.accuracy)


def test_a_run_leaves_its_config_log_checkpoints_and_record(run):
    result = run(*SHORT, "TEST.FINAL_MODEL", "best_val")
    files = {"config.yaml", "log.txt", "predictions.csv", "prompt_learner", "result.json", "tensorboard"}
    assert {path.name for path in result.folder.iterdir()} == {*files, ".lock"}
    checkpoints = {"checkpoint", "model.pth.tar-2", "model-best.pth.tar"}
    assert {path.name for path in (result.folder / "prompt_learner").iterdir()} == checkpoints
    assert (result.folder / "prompt_learner" / "checkpoint").read_text(encoding="utf-8") == "model.pth.tar-2\n"
    assert result.log.count("Evaluate on the *val* set\n=> result\n* total: 20") == 2
    assert result.log.count("Evaluate on the *test* set") == 1
    checkpoint = torch.load(result.checkpoint(2), weights_only=True)
    dassl_keys = {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert set(checkpoint) == {*dassl_keys, "random", "best_result", "origin"}
    assert set(checkpoint["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}
    record = result.record
    assert record["trainable_parameters"] == checkpoint["state_dict"]["ctx"].numel()
    assert record["config"]["DATASET"]["NUM_SHOTS"] == 2
    assert record["weights"]["backbone"] == "tiny"
    assert re.fullmatch("[0-9a-f]{64}", record["weights"]["sha256"])


def test_the_log_has_the_lines_that_parsers_look_for(run):
    lines = run(*SHORT, "TEST.PER_CLASS_RESULT", True).log.splitlines()
    for end in END_OF_TRAINING:
        assert lines.index(end) < lines.index("=> result")
    start = lines.index("=> result")
    patterns = (rf"\* total: {TEST_SCANS}", r"\* correct: \d+", r"\* accuracy: \d+\.\d\d%", r"\* error: \d+\.\d\d%")
    for line, pattern in zip(lines[start + 1 :], (*patterns, r"\* macro_f1: \d+\.\d\d%"), strict=False):
        assert re.fullmatch(pattern, line)
    pattern = r"^\* class: 3 \(three\)\ttotal: \d+\tcorrect: \d+\tacc: \d+\.\d\d%$"
    assert re.search(pattern, "\n".join(lines), re.MULTILINE)
    progress = [line for line in lines if line.startswith("epoch [")]
    assert len(progress) == 2
    assert re.fullmatch(
        r"epoch \[2/2\] batch \[1/1\] time \d\.\d{3} \(\d\.\d{3}\) data \d\.\d{3} \(\d\.\d{3}\) "
        r"loss \d+\.\d{4} \(\d+\.\d{4}\) acc \d+\.\d{4} \(\d+\.\d{4}\) lr \S+ eta \d:\d\d:\d\d",
        progress[-1],
    )
    assert re.search(r"Trainable parameters: [\d,]+ of [\d,]+ \(\d\.\d{4}%\)", "\n".join(lines))


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp", "CLIPAdapter", "TipAdapterF"])
def test_the_logged_learning_rate_is_that_of_the_batch_and_changes_with_the_epoch(run, trainer):
    """Two batches an epoch: warm-up, then cosine over 3 epochs."""
    batches = ("DATASET.NUM_SHOTS", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "TRAIN.PRINT_FREQ", 1, "OPTIM.MAX_EPOCH", 3)
    rates = re.findall(r"lr (\S+) eta", run(*batches, "TEST.NO_TEST", True, trainer=trainer).log)
    assert rates == ["1.0000e-05", "1.0000e-05", "2.0000e-03", "2.0000e-03", "1.5000e-03", "1.5000e-03"]


def test_the_same_command_gives_the_same_tensors_with_any_number_of_workers(run):
    """CLIP is loaded for the first run, and in memory for the second one."""
    augmented = (*SHORT, "INPUT.TRANSFORMS", '["random_resized_crop","random_flip","normalize"]')
    first = run(*augmented, out="first", seed=3)
    second = run(*augmented, "DATALOADER.NUM_WORKERS", 2, out="second", seed=3)
    assert first.accuracy == second.accuracy
    assert_same_tensors(first.checkpoint(2), second.checkpoint(2))


def test_zero_is_a_seed_and_seeds_differ(run):
    zero, one = run(*SHORT, out="a", seed=0), run(*SHORT, out="b", seed=1)
    assert zero.record["seed"] == 0
    assert not torch.equal(load_tensors(zero.checkpoint(2))["ctx"], load_tensors(one.checkpoint(2))["ctx"])


def test_a_rerun_leaves_only_its_own_result_where_parsers_read(run):
    first = run(*SHORT)
    old, checkpoint = first.log, first.checkpoint(2)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert run(*SHORT).code == 2  # fails after the log has begun
    assert "=> result" not in first.log
    assert "error: " in first.log.splitlines()[-1]
    assert not (first.folder / "result.json").exists()
    assert [p.read_text(encoding="utf-8") for p in first.folder.glob("log.txt-*")] == [old]
    assert len(list(first.folder.glob("result.json-*"))) == 1


def test_a_resume_from_another_folder_with_other_settings_is_refused_unless_forced(run):
    longer = ("--resume", run(*SHORT).folder, *SHORT, "OPTIM.MAX_EPOCH", 3)
    refused = run(*longer, out="longer")
    assert refused.code == 2
    assert "OPTIM.MAX_EPOCH 2 -> 3." in refused.error
    forced = run("--force-resume", *longer, out="longer")
    assert re.findall(r"epoch \[\d/3\]", forced.log) == ["epoch [3/3]"]
    assert "OPTIM.MAX_EPOCH 2 -> 3\n" in forced.log
    assert "MAX_EPOCH: 3\n" in (forced.folder / "config.yaml").read_text(encoding="utf-8")


def test_old_checkpoints_are_never_taken_for_those_of_a_run_with_other_settings(run, tmp_path):
    first, second = run(*SHORT), run(*SHORT, out="second")
    old, other = first.log, ("DATASET.NUM_SHOTS", 4)
    assert "no checkpoint to resume from" in run("--resume", tmp_path / "absent", *SHORT, *other).error
    assert "DATASET.NUM_SHOTS 2 -> 4." in run(*SHORT, *other).error
    assert "was not resumed from" in run("--resume", second.folder, *SHORT, *other).error
    assert first.log == old
    (first.folder / "config.yaml").unlink()
    assert "no config.yaml with their settings" in run(*SHORT).error


def test_without_a_seed_a_run_draws_one_which_the_same_command_takes_again(run):
    first = run(*SHORT, seed=-1)
    seed, accuracy = first.record["seed"], first.accuracy
    assert f"Setting fixed seed: {seed}" in first.log
    second = run(*SHORT, seed=-1)
    assert (second.record["seed"], second.accuracy) == (seed, accuracy)
    assert run(*SHORT, seed=-1, out="other").record["seed"] != seed >= 0


def test_skip_finished_skips_a_finished_run_of_the_same_command(run, tmp_path):
    config = tmp_path / "more.yaml"
    config.write_text("TRAIN:\n  PRINT_FREQ: 1\n", encoding="utf-8")
    tiny = ("INPUT.SIZE", "(32, 32)", "MODEL.BACKBONE.NAME", "tiny")
    command = ("--skip-finished", "--config-file", config, *tiny, *SHORT)
    first = run(*command)
    log = first.folder / "log.txt"
    assert "--skip-finished" not in first.record["command"]

    def runs_again(*arguments):
        before = log.stat().st_mtime_ns
        assert run(*arguments).code == 0
        return log.stat().st_mtime_ns != before

    assert not runs_again(*command)
    assert runs_again(*command, "TEST.PER_CLASS_RESULT", "True")
    assert runs_again(*command)
    os.utime(config, (time.time() + 10, time.time() + 10))
    assert runs_again(*command)


def test_long_work_logs_its_progress_where_there_is_no_terminal(run, monkeypatch):
    lines = r"^(?:encoding|evaluating) .* [\d,]+ of [\d,]+, \d\d:\d\d left$"
    assert not re.search(lines, run(*SHORT, "FEATURES.ENABLED", "False").log, re.MULTILINE)  # in less than 30 seconds
    monkeypatch.setattr("dassl.utils.progress.LINE_SECONDS", 1e-9)
    found = re.findall(lines, run(*SHORT, "FEATURES.ENABLED", "False", out="slow").log, re.MULTILINE)
    work = ("encoding train_x images: 20 of 20", "encoding test images: 896 of 896", "evaluating test batches: 2 of 2")
    assert all(f"{text}, 00:00 left" in found for text in work)


def test_a_subclass_of_coop_keeps_coops_config_node(run):
    @TRAINER_REGISTRY.register(force=True)
    class CoOpChild(CoOp):
        @classmethod
        def extend_cfg(cls, cfg):
            cfg.TRAINER.COOPCHILD = CfgNode({"WEIGHT": 1.0})

    result = run(*SHORT, "TRAINER.COOP.N_CTX", 2, trainer="CoOpChild")
    assert result.code == 0
    assert set(result.record["config"]["TRAINER"]) == {"NAME", "COOP", "COOPCHILD"}
    assert result.record["trainable_parameters"] == 2 * 128


def test_a_finished_run_of_initial_weights_that_have_changed_since_is_not_resumed(run, tmp_path):
    first, second = (run(*SHORT, seed=seed, out=f"seed{seed}").checkpoint(2) for seed in (1, 2))
    start = tmp_path / "start.pth"
    command = (*SHORT, "MODEL.INIT_WEIGHTS", start)
    start.write_bytes(first.read_bytes())
    assert run(*command).code == run(*command).code == 0
    start.write_bytes(second.read_bytes())
    assert "made with other initial weights" in run(*command).error


def test_initial_weights_of_another_shape_are_refused(run):
    four = run(*SHORT, "TRAINER.COOP.N_CTX", 4, out="four")
    start = ("MODEL.INIT_WEIGHTS", four.checkpoint(2))
    assert "ctx (16, 128)" in run("--eval-only", *SHORT, *start).error
    assert run("--eval-only", *SHORT, *start, "TRAINER.COOP.N_CTX", 4).accuracy == four.accuracy


def test_eval_only_gives_the_result_of_the_run(run):
    trained = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1)
    assert run(*SHORT, "--eval-only", "--model-dir", trained.folder, out="newest").code == 2  # flags come first
    newest = run("--eval-only", "--model-dir", trained.folder, *SHORT, out="newest")
    assert (newest.code, newest.accuracy) == (0, trained.accuracy)
    first = run("--eval-only", "--model-dir", trained.folder, "--load-epoch", 1, *SHORT, out="first")
    assert 'model.pth.tar-1" (epoch = 1)' in first.log


def test_an_evaluation_in_the_folder_of_a_training_run_leaves_the_run_as_it_is(run, capsys):
    trained = run(*SHORT, "DATASET.SUBSAMPLE_CLASSES", "base")
    files = {path: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()}
    command = ("--eval-only", "--model-dir", trained.folder, *SHORT, "DATASET.SUBSAMPLE_CLASSES", "new")
    assert run(*command).code == 0
    assert {path: path.read_bytes() for path in trained.folder.iterdir() if path.is_file()} == files
    new = Run(0, trained.folder / "eval-Digits-test-new", "")
    assert new.record["classnames"] == [*DIGIT_NAMES[5:]]
    assert f"total: {new.record['total']}" in new.log
    (trained.folder / "config.yaml").unlink()  # as a downloaded model
    assert run(*command, "TEST.SPLIT", "val").code == 0
    assert (trained.folder / "eval-Digits-val-new/result.json").is_file()
    assert (trained.folder / "log.txt").read_bytes() == files[trained.folder / "log.txt"]

    time = (new.folder / "log.txt").stat().st_mtime_ns
    assert run("--skip-finished", *command).code == 0
    assert (new.folder / "log.txt").stat().st_mtime_ns == time


@pytest.mark.parametrize(
    ("trainer", "trained_with", "evaluated_with"),
    [
        ("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION end", "TRAINER.COOP.CLASS_TOKEN_POSITION middle"),
        ("CoCoOp", "TRAINER.COCOOP.N_CTX 2", "TRAINER.COCOOP.N_CTX 3"),
        ("CLIPAdapter", "TRAINER.CLIPADAPTER.RATIO 0.2", "TRAINER.CLIPADAPTER.RATIO 0.5"),
        ("CoOp", "TRAINER.NAME CoOp", "TRAINER.NAME CoCoOp"),
    ],
)
def test_a_model_is_not_evaluated_under_other_settings(run, trainer, trained_with, evaluated_with):
    trained = run(*SHORT, *trained_with.split(), "TEST.NO_TEST", True, trainer=trainer)
    evaluation = ("--eval-only", "--model-dir", trained.folder, *SHORT, *evaluated_with.split())
    refused = run(*evaluation, trainer=trainer, out="other")
    assert refused.code == 2
    assert f"with other settings: {trained_with} -> {evaluated_with.split()[1]}. Evaluate" in refused.error
    assert not (refused.folder / "result.json").exists()


def test_a_model_is_not_evaluated_on_other_weights_unless_allowed(run, tmp_path):
    """The weights of the same width under the same name: only their digest tells them apart."""
    weights = load_tiny()
    save_file({**weights, "logit_scale": weights["logit_scale"] + 1}, tmp_path / "changed.safetensors")
    trained = run(*SHORT)
    for start in (("--model-dir", trained.folder, *SHORT), (*SHORT, "MODEL.INIT_WEIGHTS", trained.checkpoint(2))):
        command = (*start, "MODEL.BACKBONE.WEIGHTS", tmp_path / "changed.safetensors")
        refused = run("--eval-only", *command, out="changed")
        assert refused.code == 2
        sha256 = trained.record["weights"]["sha256"]
        assert f"with other settings: MODEL.BACKBONE.NAME (weights) tiny ({sha256[:12]}) -> tiny (" in refused.error
        allowed = run("--eval-only", "--allow-mismatch", *command, out="changed")
        assert allowed.code == 0
        assert "--allow-mismatch: " in allowed.log
        [mismatch] = allowed.record["allowed_mismatch"]
        assert f"-> tiny ({allowed.record['weights']['sha256'][:12]})" in mismatch
    save_file(weights, tmp_path / "same.safetensors")  # the same weights in another file
    other = (*SHORT, "MODEL.BACKBONE.NAME", "mine", "MODEL.BACKBONE.WEIGHTS", tmp_path / "same.safetensors")
    assert run("--eval-only", "--model-dir", trained.folder, *other, out="same").accuracy == trained.accuracy


@pytest.mark.parametrize(
    ("trainer", "options", "reason"),
    [
        ("TipAdapter", (), "it learned other classes than these"),
        ("CoOp", ("TRAINER.COOP.CSC", True), "its contexts are class-specific (CSC), for other classes than these"),
    ],
)
def test_a_model_of_its_classes_alone_is_not_evaluated_on_others(run, imagenet_root, trainer, options, reason):
    """Of three classes, two are base and one is new: the shapes differ as well."""
    data = ("--root", imagenet_root, "--dataset-config-file", REPOSITORY / "configs/datasets/imagenet.yaml")
    options = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, *options, "DATASET.SUBSAMPLE_CLASSES")
    base = run(*data, *options, "base", trainer=trainer)
    assert base.code == 0, base.error
    refused = run(*data, "--eval-only", "--model-dir", base.folder, *options, "new", trainer=trainer, out="new")
    assert refused.code == 2
    assert reason in refused.error
    assert "size mismatch" not in refused.error


def test_settings_that_only_training_reads_may_differ_in_evaluation(run):
    trained = run(*SHORT, "TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.PREC", "fp32")
    other = ("OPTIM.LR", 0.1, "TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.PREC", "fp16", "DATASET.NUM_SHOTS", 1)
    evaluated = run("--eval-only", "--model-dir", trained.folder, *other, out="other")  # four words, four tokens
    assert (evaluated.code, evaluated.accuracy) == (0, trained.accuracy)
    assert "allowed_mismatch" not in evaluated.record


def test_a_context_trained_on_base_classes_is_evaluated_on_new_classes(run):
    base = run(*SHORT, "DATASET.SUBSAMPLE_CLASSES", "base", out="base")
    new = run("--eval-only", "--model-dir", base.folder, *SHORT, "DATASET.SUBSAMPLE_CLASSES", "new", out="new")
    assert new.code == 0
    assert "# classes  5" in base.log
    assert "# classes  5" in new.log
    assert int(re.search(r"total: (\d+)", base.log)[1]) + int(re.search(r"total: (\d+)", new.log)[1]) == TEST_SCANS


def test_new_classes_that_a_model_was_trained_on_are_refused(run, tmp_path):
    base = tmp_path / "base.txt"
    base.write_text("zero\nseven\n", encoding="utf-8")
    trained = run(*SHORT, "DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.BASE_CLASSES", base)
    flags = ("--eval-only", "--model-dir", trained.folder, *SHORT, "DATASET.SUBSAMPLE_CLASSES", "new")
    refused = run(*flags, out="other")  # without BASE_CLASSES, seven is in the second half
    assert refused.code == 2
    assert "it was trained on 1 of the new classes (seven)" in refused.error
    assert run(*flags, "DATASET.BASE_CLASSES", base, out="new").record["eval_only"] is True


def test_a_context_of_another_length_or_kind_is_refused_in_words(run):
    trained = run(*SHORT)
    words = run("--eval-only", "--model-dir", trained.folder, *SHORT, "TRAINER.COOP.CTX_INIT", "a_photo", out="other")
    assert "its context has 16 tokens, not 2 (N_CTX, or the words of CTX_INIT)" in words.error
    flags = ("--eval-only", "--allow-mismatch", "--model-dir", trained.folder, *SHORT)
    csc = run(*flags, "TRAINER.COOP.CSC", True, out="other")
    assert "it has one context for all classes, not class-specific contexts (CSC)" in csc.error


def test_descriptions_that_a_method_does_not_read_are_named(run, tmp_path):
    (tmp_path / "d.json").write_text('{"one": ["A stroke."]}', encoding="utf-8")
    log = run(*SHORT, "DATASET.DESCRIPTIONS", tmp_path / "d.json").log
    assert "Note: DATASET.DESCRIPTIONS does nothing: CoOp learns its prompts" in log


def test_the_time_left_counts_what_happens_between_the_epochs(monkeypatch, capsys):
    trainer = SimpleNamespace(epoch=1, start_epoch=0, max_epoch=3, num_batches=1, batch_idx=0, current_lr=0.1)
    trainer.cfg, trainer._losses = CfgNode({"TRAIN": {"PRINT_FREQ": 1}}), ""
    trainer._batch_time = trainer._data_time = SimpleNamespace(val=1.0, avg=1.0)
    trainer.time_start = 0.0
    monkeypatch.setattr("dassl.engine.hooks.time.time", lambda: 20.0)  # two epochs of a batch of a second
    LogPrinter().after_step(trainer)
    assert capsys.readouterr().out.endswith("eta 0:00:10\n")
