"""Runs with the means for many classes, on the digits: each has the result it has without, or says that it has not."""

import re

import pytest
import torch

from dassl.utils import derive_seed
from studies.tables.cells import read_cell
from tests.common import assert_same_tensors
from tools.fix_imagenet import imagenet21k_names
from tools.fix_imagenet import main as fix
from trainers import coop, sampled_softmax, zsclip
from trainers.sampled_softmax import SampledSoftmax
from vlm.text import class_features
from vlm.text.encoder import TextEncoder

SAMPLED = ("TRAINER.COOP.SAMPLED_CLASSES", 5, "DATALOADER.TRAIN_X.BATCH_SIZE", 3)
SHORT = ("DATASET.NUM_SHOTS", 1, "TRAINER.COOP.N_CTX", 4, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1)
TINY_BLOCKS = ("TEST.LOGITS_GB", 3 * 4 * 500 / 1e9)  # three classes of the ten at a time


@pytest.fixture
def small(monkeypatch):
    """What is for many classes comes into play with ten."""
    for place in (class_features, coop):
        monkeypatch.setattr(place, "BLOCK", 4)
    for place in (coop, zsclip):
        monkeypatch.setattr(place, "FEW", 0)


def results(run) -> dict:
    return {key: run.record[key] for key in ("accuracy", "error_rate", "macro_f1", "correct", "perclass_accuracy")}


@pytest.mark.parametrize("csc", [False, True])
def test_sampled_classes_are_named_and_resumed_exactly(run, monkeypatch, csc):
    of_steps, real = [], SampledSoftmax.__call__

    def noting(self, *inputs):
        loss, output, places = real(self, *inputs)
        of_steps.append(output.shape)
        return loss, output, places

    monkeypatch.setattr(SampledSoftmax, "__call__", noting)
    few = (*SHORT, *SAMPLED, "TRAINER.COOP.CSC", csc)
    whole = run(*few, out="whole")
    assert whole.code == 0, whole.error
    assert {shape[1] for shape in of_steps} == {5}
    said = "Sampled softmax: 5 of 10 classes a step, an approximation (TRAINER.COOP.SAMPLED_CLASSES)"
    assert said in whole.log
    assert whole.record["sampled_classes"] == 5
    assert next(iter(read_cell([whole.folder], {}, True).shortcuts)).startswith("TRAINER.COOP.SAMPLED_CLASSES 5: ")
    stopped = run(*few, out="stopped")
    for path in (stopped.checkpoint(2), stopped.folder / "result.json"):
        path.unlink()
    (stopped.checkpoint(1).parent / "checkpoint").write_text("model.pth.tar-1\n")
    again = run(*few, out="stopped")
    assert not re.search(r"epoch \[1/2\]", again.log)
    assert_same_tensors(again.checkpoint(2), whole.checkpoint(2))
    assert again.accuracy == whole.accuracy


def test_each_step_draws_classes_of_its_own(digits_trainer, monkeypatch):
    """Those of the labels, then the first of a shuffle that follows from seed, epoch and batch."""
    trainer = digits_trainer("CoOp", *SAMPLED, "TRAINER.COOP.N_CTX", 1)
    drawn = []

    def noting(model, image_features, classes, original=sampled_softmax.logits_of_classes):
        drawn.append(classes.tolist())
        return original(model, image_features, classes)

    monkeypatch.setattr(sampled_softmax, "logits_of_classes", noting)
    steps = [(epoch, batch) for epoch in range(3) for batch in range(3)]
    expected = []
    for trainer.epoch, trainer.batch_idx in steps:
        inputs = torch.randn(3, 64), torch.tensor([7, 4, 7]), trainer.epoch, trainer.batch_idx
        _, output, places = trainer.sampled_softmax(trainer.model, *inputs)
        assert (output.shape, places.tolist()) == ((3, 5), [1, 0, 1])
        seed = derive_seed(1, trainer.epoch, trainer.batch_idx, "classes")
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
        expected.append([4, 7, *[number for number in order if number not in (4, 7)][:3]])
    assert drawn == expected
    assert len({tuple(classes) for classes in drawn}) == len(steps)


def test_a_sample_that_may_have_none_but_the_labels_is_refused(run):
    refused = run(*SHORT, "TRAINER.COOP.SAMPLED_CLASSES", 9)
    assert refused.code == 2
    assert "SAMPLED_CLASSES is 9; with DATALOADER.TRAIN_X.BATCH_SIZE 32 it must be more than 32" in refused.error
    assert run(*SHORT, "TRAINER.COOP.SAMPLED_CLASSES", -1, out="negative").code == 2


def test_a_sample_of_all_classes_is_the_run_without(run):
    plain, all_of_them = run(*SHORT), run(*SHORT, "TRAINER.COOP.SAMPLED_CLASSES", 10, out="all")
    assert "Sampled softmax" not in all_of_them.log
    assert "sampled_classes" not in all_of_them.record
    assert_same_tensors(plain.checkpoint(2), all_of_them.checkpoint(2))


def test_evaluation_in_blocks_gives_the_same(run):
    trained = run(*SHORT)
    more = ("DATASET.NUM_SHOTS", 1, "TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True)
    for trainer, model in (("CoOp", ["--model-dir", trained.folder]), ("ZeroshotCLIP", [])):
        key = ("TRAINER.COOP.N_CTX", 4)
        whole = run("--eval-only", *model, *more, *key, trainer=trainer, out=f"{trainer}_whole")
        blocks = run("--eval-only", *model, *more, *key, *TINY_BLOCKS, trainer=trainer, out=f"{trainer}_blocks")
        assert blocks.code == 0, blocks.error
        assert results(blocks) == results(whole)
        assert torch.equal(*(torch.load(r.folder / "cmat.pt", weights_only=True) for r in (blocks, whole)))


def test_cocoop_in_blocks_gives_the_same(run, monkeypatch):
    """Its class features are those of each image; they are bounded, too."""
    few = ("DATASET.NUM_SHOTS", 1, "TRAINER.COCOOP.N_CTX", 2, "OPTIM.MAX_EPOCH", 1)
    few = (*few, "TEST.PER_CLASS_RESULT", True)
    trained = run(*few, trainer="CoCoOp")
    sizes, real = [], TextEncoder.encode_each

    def noting(self, *given):
        features = real(self, *given)
        sizes.append(features.nbytes)
        return features

    monkeypatch.setattr(TextEncoder, "encode_each", noting)
    eval_only = ("--eval-only", "--model-dir", trained.folder, *few)
    for out, most in (("features", 1e6), ("logits", 1000.0)):
        sizes.clear()
        blocks = run(*eval_only, "TEST.LOGITS_GB", most / 1e9, trainer="CoCoOp", out=out)
        assert max(sizes) <= max(most, 10 * 64 * 4)  # of one image, at least
        assert results(blocks) == results(trained)


def test_class_features_are_kept_between_runs(run, small, monkeypatch, tmp_path):
    cache = ("FEATURES.CACHE_DIR", tmp_path / "cache")
    trained = run(*SHORT, *cache)
    with_none = run(*SHORT, "FEATURES.ENABLED", False, out="off")
    encodings, real = [], TextEncoder._encode
    monkeypatch.setattr(TextEncoder, "_encode", lambda *given: encodings.append(1) or real(*given))
    key = ("TRAINER.COOP.N_CTX", 4)
    evaluated = run("--eval-only", "--model-dir", trained.folder, *cache, *key, out="evaluated")
    assert not encodings
    assert evaluated.accuracy == trained.accuracy == with_none.accuracy
    first = run("--eval-only", *cache, trainer="ZeroshotCLIP", out="zero")
    assert len(encodings) == 3
    second = run("--eval-only", *cache, trainer="ZeroshotCLIP", out="zero_again")
    assert len(encodings) == 3
    off = run("--eval-only", "FEATURES.ENABLED", False, trainer="ZeroshotCLIP", out="zero_off")
    assert len(encodings) == 6
    assert first.accuracy == second.accuracy == off.accuracy


def test_imagenet_21k_folders_get_their_names(tmp_path, capsys):
    names = imagenet21k_names()
    assert len(names) == 21841
    for folder in ("n00005787", "n00004475", "other"):
        (tmp_path / "all" / "train" / folder).mkdir(parents=True)
    assert fix(["--root", str(tmp_path), "--folder", "all"]) == 0
    assert (tmp_path / "all/classnames.txt").read_text() == "n00004475 organism\nn00005787 benthos\n"
    assert "Not ImageNet's: other" in capsys.readouterr().out
