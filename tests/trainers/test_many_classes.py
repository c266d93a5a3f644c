"""Methods for many classes, on the digits: sampled softmax, evaluation in blocks, cached class features, 21k names."""

import torch

from dassl.utils import derive_seed
from studies.tables.cells import build_cell
from studies.tables.runs import read_run
from tests.common import assert_same_tensors
from tools.fix_imagenet import load_imagenet21k_names
from tools.fix_imagenet import main as fix
from trainers import coop, prompts
from trainers.coop import PromptLearner
from vlm.text import class_features
from vlm.text.encoder import TextEncoder

SAMPLED = ("TRAINER.COOP.SAMPLED_CLASSES", 5, "DATALOADER.TRAIN_X.BATCH_SIZE", 3)
SHORT = ("DATASET.NUM_SHOTS", 1, "TRAINER.COOP.N_CTX", 4, "OPTIM.MAX_EPOCH", 1)
TINY_BLOCKS = ("TEST.LOGITS_GB", 3 * 4 * 500 / 1e9)  # 4 bytes for each of 500 images and 3 of the 10 classes


def select_results(run) -> dict:
    """Return the evaluation results in a run's record."""
    return {key: run.record[key] for key in ("accuracy", "error_rate", "macro_f1", "correct", "perclass_accuracy")}


def test_a_run_with_sampled_softmax_notes_the_approximation_in_log_record_and_table(run):
    result = run(*SHORT, *SAMPLED, "TRAINER.COOP.CSC", True)
    assert result.code == 0, result.error
    note = "Sampled softmax: 5 of 10 classes a step, an approximation (TRAINER.COOP.SAMPLED_CLASSES)"
    assert note in result.log
    assert result.record["sampled_classes"] == 5
    assert next(iter(build_cell([read_run(result.folder)]).shortcuts)).startswith("TRAINER.COOP.SAMPLED_CLASSES 5: ")


def test_each_step_samples_other_classes(digits_trainer, monkeypatch):
    """The sample has the classes of the labels, then the first of a permutation seeded by seed, epoch and batch."""
    trainer = digits_trainer("CoOp", *SAMPLED, "TRAINER.COOP.N_CTX", 1)
    samples = []
    select_classes = PromptLearner.select_classes

    def record_classes(learner, context, classes):
        samples.append(classes.tolist())
        return select_classes(learner, context, classes)

    monkeypatch.setattr(PromptLearner, "select_classes", record_classes)
    steps = [(epoch, batch) for epoch in range(3) for batch in range(3)]
    expected = []
    for trainer.epoch, trainer.batch_idx in steps:
        inputs = torch.randn(3, 64), torch.tensor([7, 4, 7]), trainer.epoch, trainer.batch_idx
        _, output, positions = trainer.sampled_softmax(trainer.model, *inputs)
        assert (output.shape, positions.tolist()) == ((3, 5), [1, 0, 1])
        seed = derive_seed(1, trainer.epoch, trainer.batch_idx, "classes")
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
        expected.append([4, 7, *[number for number in order if number not in (4, 7)][:3]])
    assert samples == expected
    assert len({tuple(classes) for classes in samples}) == len(steps)


def test_a_sample_no_larger_than_the_batch_is_refused(run):
    refused = run(*SHORT, "TRAINER.COOP.SAMPLED_CLASSES", 9)
    assert refused.code == 2
    assert "SAMPLED_CLASSES is 9; with DATALOADER.TRAIN_X.BATCH_SIZE 32 it must be more than 32" in refused.error
    assert run(*SHORT, "TRAINER.COOP.SAMPLED_CLASSES", -1, out="negative").code == 2


def test_a_sample_of_all_classes_trains_with_the_exact_softmax(run):
    exact, all_classes = run(*SHORT), run(*SHORT, "TRAINER.COOP.SAMPLED_CLASSES", 10, out="all")
    assert "Sampled softmax" not in all_classes.log
    assert "sampled_classes" not in all_classes.record
    assert_same_tensors(exact.checkpoint(1), all_classes.checkpoint(1))


def test_evaluation_in_blocks_of_classes_gives_the_same_results(run):
    options = (*SHORT, "TEST.PER_CLASS_RESULT", True, "TEST.COMPUTE_CMAT", True)
    unlimited = run(*options)
    blocks = run("--eval-only", "--model-dir", unlimited.folder, *options, *TINY_BLOCKS, out="blocks")
    assert blocks.code == 0, blocks.error
    assert select_results(blocks) == select_results(unlimited)
    assert torch.equal(*(torch.load(r.folder / "cmat.pt", weights_only=True) for r in (blocks, unlimited)))


def test_cocoop_in_blocks_of_images_gives_the_same_results_within_the_memory_limit(run, monkeypatch):
    """CoCoOp computes the class features of each image; LOGITS_GB limits them."""
    options = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.COCOOP.N_CTX", 1)
    options = (*options, "OPTIM.MAX_EPOCH", 1, "TEST.PER_CLASS_RESULT", True)
    trained = run(*options, trainer="CoCoOp")
    sizes, encode_contexts = [], TextEncoder.encode_contexts

    def record_size(self, *args):
        features = encode_contexts(self, *args)
        sizes.append(features.nbytes)
        return features

    monkeypatch.setattr(TextEncoder, "encode_contexts", record_size)
    eval_only = ("--eval-only", "--model-dir", trained.folder, *options)
    for out, limit in (("features", 3e5), ("logits", 1000.0)):
        sizes.clear()
        blocks = run(*eval_only, "TEST.LOGITS_GB", limit / 1e9, trainer="CoCoOp", out=out)
        assert max(sizes) <= max(limit, 5 * 64 * 4)  # at least the class features of one image
        assert select_results(blocks) == select_results(trained)


def test_a_second_run_takes_the_class_features_from_the_cache(run, monkeypatch, tmp_path):
    for module in (class_features, coop):
        monkeypatch.setattr(module, "BLOCK_CLASSES", 4)
    for module in (coop, prompts):
        monkeypatch.setattr(module, "MIN_CACHED_PROMPTS", 0)
    encodings, encode = [], TextEncoder._encode
    monkeypatch.setattr(TextEncoder, "_encode", lambda *args: encodings.append(1) or encode(*args))
    cache = (*SHORT, "FEATURES.CACHE_DIR", tmp_path / "cache")
    for trainer, model in (("CoOp", ("--model-dir", run(*cache).folder)), ("ZeroshotCLIP", ())):
        first = run("--eval-only", *model, *cache, trainer=trainer, out=f"{trainer} first")
        assert len(encodings) > 0
        encodings.clear()
        second = run("--eval-only", *model, *cache, trainer=trainer, out=f"{trainer} second")
        assert not encodings
        assert first.accuracy == second.accuracy


def test_folders_of_imagenet_21k_get_their_class_names(tmp_path, capsys):
    assert len(load_imagenet21k_names()) == 21841
    for folder in ("n00005787", "n00004475", "other"):
        (tmp_path / "all" / "train" / folder).mkdir(parents=True)
    assert fix(["--root", str(tmp_path), "--folder", "all"]) == 0
    assert (tmp_path / "all/classnames.txt").read_text() == "n00004475 organism\nn00005787 benthos\n"
    assert "Not ImageNet's: other" in capsys.readouterr().out
