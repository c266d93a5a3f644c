"""Runs with the means for many classes, on the digits: each has the result it has without, or says that it has not."""

import torch

from dassl.utils import derive_seed
from studies.tables.cells import read_cell
from tests.common import assert_same_tensors
from tools.fix_imagenet import load_imagenet21k_names
from tools.fix_imagenet import main as fix
from trainers import coop, sampled_softmax, zsclip
from vlm.text import class_features
from vlm.text.encoder import TextEncoder

SAMPLED = ("TRAINER.COOP.SAMPLED_CLASSES", 5, "DATALOADER.TRAIN_X.BATCH_SIZE", 3)
SHORT = ("DATASET.NUM_SHOTS", 1, "TRAINER.COOP.N_CTX", 4, "OPTIM.MAX_EPOCH", 1)
TINY_BLOCKS = ("TEST.LOGITS_GB", 3 * 4 * 500 / 1e9)  # three classes of the ten at a time


def results(run) -> dict:
    return {key: run.record[key] for key in ("accuracy", "error_rate", "macro_f1", "correct", "perclass_accuracy")}


def test_a_run_that_samples_classes_says_so(run):
    whole = run(*SHORT, *SAMPLED, "TRAINER.COOP.CSC", True)
    assert whole.code == 0, whole.error
    said = "Sampled softmax: 5 of 10 classes a step, an approximation (TRAINER.COOP.SAMPLED_CLASSES)"
    assert said in whole.log
    assert whole.record["sampled_classes"] == 5
    assert next(iter(read_cell([whole.folder], {}, True).shortcuts)).startswith("TRAINER.COOP.SAMPLED_CLASSES 5: ")


def test_each_step_draws_classes_of_its_own(digits_trainer, monkeypatch):
    """Those of the labels, then the first of a shuffle that follows from seed, epoch and batch."""
    trainer = digits_trainer("CoOp", *SAMPLED, "TRAINER.COOP.N_CTX", 1)
    drawn = []

    def noting(model, image_features, classes, original=sampled_softmax.class_logits):
        drawn.append(classes.tolist())
        return original(model, image_features, classes)

    monkeypatch.setattr(sampled_softmax, "class_logits", noting)
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
    assert_same_tensors(plain.checkpoint(1), all_of_them.checkpoint(1))


def test_evaluation_in_blocks_gives_the_same(run):
    settings = (*SHORT, "TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True)
    whole = run(*settings)
    blocks = run("--eval-only", "--model-dir", whole.folder, *settings, *TINY_BLOCKS, out="blocks")
    assert blocks.code == 0, blocks.error
    assert results(blocks) == results(whole)
    assert torch.equal(*(torch.load(r.folder / "cmat.pt", weights_only=True) for r in (blocks, whole)))


def test_cocoop_in_blocks_gives_the_same(run, monkeypatch):
    """Its class features are those of each image; they are bounded, too."""
    few = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.COCOOP.N_CTX", 1)
    few = (*few, "OPTIM.MAX_EPOCH", 1, "TEST.PER_CLASS_RESULT", True)
    trained = run(*few, trainer="CoCoOp")
    sizes, real = [], TextEncoder.encode_contexts

    def noting(self, *given):
        features = real(self, *given)
        sizes.append(features.nbytes)
        return features

    monkeypatch.setattr(TextEncoder, "encode_contexts", noting)
    eval_only = ("--eval-only", "--model-dir", trained.folder, *few)
    for out, most in (("features", 3e5), ("logits", 1000.0)):
        sizes.clear()
        blocks = run(*eval_only, "TEST.LOGITS_GB", most / 1e9, trainer="CoCoOp", out=out)
        assert max(sizes) <= max(most, 5 * 64 * 4)  # of one image, at least
        assert results(blocks) == results(trained)


def test_class_features_are_kept_between_runs(run, monkeypatch, tmp_path):
    for place in (class_features, coop):
        monkeypatch.setattr(place, "BLOCK_CLASSES", 4)
    for place in (coop, zsclip):
        monkeypatch.setattr(place, "MIN_CACHED_PROMPTS", 0)
    encodings, real = [], TextEncoder._encode
    monkeypatch.setattr(TextEncoder, "_encode", lambda *given: encodings.append(1) or real(*given))
    cache = (*SHORT, "FEATURES.CACHE_DIR", tmp_path / "cache")
    for trainer, model in (("CoOp", ("--model-dir", run(*cache).folder)), ("ZeroshotCLIP", ())):
        first = run("--eval-only", *model, *cache, trainer=trainer, out=f"{trainer} first")
        assert len(encodings) > 0
        encodings.clear()
        second = run("--eval-only", *model, *cache, trainer=trainer, out=f"{trainer} second")
        assert not encodings
        assert first.accuracy == second.accuracy


def test_imagenet_21k_folders_get_their_names(tmp_path, capsys):
    assert len(load_imagenet21k_names()) == 21841
    for folder in ("n00005787", "n00004475", "other"):
        (tmp_path / "all" / "train" / folder).mkdir(parents=True)
    assert fix(["--root", str(tmp_path), "--folder", "all"]) == 0
    assert (tmp_path / "all/classnames.txt").read_text() == "n00004475 organism\nn00005787 benthos\n"
    assert "Not ImageNet's: other" in capsys.readouterr().out
