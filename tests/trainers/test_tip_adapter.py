"""Tip-Adapter: the cache and its logits, the search on validation images, runs with and without training."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.common import REPOSITORY, assert_same_tensors, load_tensors
from trainers import shots, tip_adapter
from trainers.tip_adapter import ALPHAS, BETAS, TipAdapterF, affinity
from vlm.similarity import normalize


def tiny_config(method):
    """Return the arguments that name a method's config for the tiny CLIP."""
    return "--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml"


def checkpoint_path(result, epoch):
    """Return the path of a run's checkpoint after ``epoch`` epochs."""
    return result.folder / f"tip_adapter/model.pth.tar-{epoch}"


@pytest.fixture
def search(monkeypatch):
    """Return a function that searches alpha and beta for two images that equal the keys of the two classes."""

    def call(zero_shot, values, initial):
        monkeypatch.setattr(shots, "collect_validation_features", lambda _: (torch.eye(2), torch.tensor([0, 1])))
        trainer = SimpleNamespace(backbone=SimpleNamespace(logits=lambda *_: zero_shot), class_features=None)
        names = dict(zip(("alpha", "beta"), initial, strict=True))
        added = lambda f, alpha, beta: alpha * affinity(f, torch.eye(2), beta) @ values  # noqa: E731
        return shots.search_settings(trainer, names, [ALPHAS, BETAS], added)

    return call


def test_the_search_finds_an_alpha_that_lets_a_right_cache_outweigh_wrong_zero_shot_logits(search, capsys):
    """The zero-shot logits of the wrong class are higher by 1.5."""
    alpha, beta = search(1.5 * (1 - torch.eye(2)), torch.eye(2), (1.0, 5.5))
    assert "\nalpha 3, beta 7\n" in capsys.readouterr().out
    assert alpha * (1 - np.exp(-beta)) > 1.5
    assert (alpha, beta) == (ALPHAS[-1], BETAS[-1])  # of equally accurate pairs, the one of the lowest cross-entropy


def test_the_search_keeps_the_initial_alpha_and_beta_if_no_pair_beats_them(search):
    """With values of zero, the cache changes no logits, so all pairs have the same score."""
    assert search(torch.eye(2), torch.zeros(2, 2), (1.25, 5.5)) == (1.25, 5.5)


@pytest.mark.parametrize(("method", "epochs", "parameters"), [("TipAdapter", 1, 0), ("TipAdapterF", 2, 20 * 64)])
def test_a_run_fills_the_cache_and_its_checkpoint_evaluates_without_the_shots(run, method, epochs, parameters):
    trained = run(*tiny_config(method), "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", epochs, trainer=method)
    assert trained.code == 0, trained.error
    assert trained.record["trainable_parameters"] == parameters
    assert "Shots: 20 features of 64 numbers, 1 view each" in trained.log
    assert len(re.findall(r"^Searched on 20 validation images: \d+\.\d\d% of them$", trained.log, re.MULTILINE)) == 1
    cache = load_tensors(checkpoint_path(trained, epochs))
    assert cache["values"].sum(0).tolist() == [2.0] * 10  # each shot once
    assert cache["alpha"] in torch.tensor([1.0, *ALPHAS])
    assert cache["beta"] in torch.tensor([5.5, *BETAS])
    # The cache comes from the checkpoint, though the config has another number of shots.
    evaluation = ("--eval-only", "--model-dir", trained.folder, "DATASET.NUM_SHOTS", 1)
    loaded = run(*tiny_config(method), *evaluation, trainer=method, out="eval")
    assert loaded.accuracy == trained.accuracy
    assert "Cache:" not in loaded.log
    assert "Searched" not in loaded.log


def test_a_key_is_the_direction_of_the_mean_of_its_views(digits_trainer, monkeypatch):
    """It is not the mean of their directions, so a view with a longer feature has more weight."""
    crops = ("INPUT.TRANSFORMS", "['random_resized_crop','normalize']", "TRAINER.TIPADAPTER.AUGMENT_EPOCH", 2)
    trainer = digits_trainer("TipAdapter", *crops)
    views, labels = torch.zeros(2, 10, 64), torch.arange(10)
    views[0, :, 0], views[1, :, 1] = 3, 1
    next_view = iter(views)
    monkeypatch.setattr(shots, "collect_features", lambda *_: (next(next_view), labels))
    trainer.fill_cache()
    expected = torch.zeros(10, 64)
    expected[:, 0], expected[:, 1] = 3 / 10**0.5, 1 / 10**0.5
    torch.testing.assert_close(trainer.model.keys.data, expected)
    assert torch.equal(trainer.model.values, torch.eye(10))


def test_logits_are_those_of_the_formula(digits_trainer):
    trainer = digits_trainer("TipAdapter")
    trainer.model.alpha.fill_(2.0)
    trainer.model.beta.fill_(3.0)
    keys, features = (normalize(torch.randn(10, 64)).numpy(), torch.randn(5, 64))
    values = torch.eye(10)[[3, 3, 0, 1, 2, 9, 8, 7, 6, 6]]
    trainer.model.keys.data, trainer.model.values = torch.from_numpy(keys), values
    f = features.numpy() / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.exp(trainer.backbone.clip.logit_scale.item()) * f @ trainer.class_features.numpy().T
    expected += 2 * np.exp(-3 * (1 - f @ keys.T)) @ values.numpy()
    torch.testing.assert_close(trainer.model_inference(features), torch.from_numpy(expected).float())


def test_alpha_and_beta_are_searched_on_normalised_validation_features(digits_trainer, monkeypatch):
    trainer, candidates = digits_trainer("TipAdapter"), []
    trainer.fill_cache()
    features, labels = 7 * torch.randn(6, 64), torch.tensor([0, 1, 2, 3, 4, 5])
    trainer.model.alpha.fill_(trainer.cfg.TRAINER.TIPADAPTER.ALPHA)
    trainer.model.beta.fill_(trainer.cfg.TRAINER.TIPADAPTER.BETA)
    initial_logits = trainer.model_inference(features)
    monkeypatch.setattr(shots, "collect_validation_features", lambda _: (features, labels))

    def prefer_the_last(logits, image_labels):
        assert image_labels is labels
        candidates.extend(logits)
        return [(len(candidates), 0.0)] * len(logits)

    monkeypatch.setattr(shots, "score_candidates", prefer_the_last)
    trainer.run_epoch()
    torch.testing.assert_close(candidates[0], initial_logits)
    assert len(candidates) == 1 + len(ALPHAS) * len(BETAS)
    assert (trainer.model.alpha, trainer.model.beta) == (pytest.approx(ALPHAS[0]), BETAS[-1])


def test_adamw_has_the_epsilon_of_the_authors_code(digits_trainer):
    assert digits_trainer("TipAdapterF")._optims["tip_adapter"].param_groups[0]["eps"] == 1e-4


@pytest.mark.parametrize("final", ["best_val", "last_step"])
def test_every_epoch_trains_with_the_initial_alpha_and_beta(run, monkeypatch, final):
    """The values that a search after the previous epoch set are reset."""
    in_training, searches = [], iter([(2.5, 3.5), (0.5, 1.5), (1.5, 2.5)])

    def record_values(self, batch, original=TipAdapterF.forward_backward):
        in_training.append((self.model.alpha.item(), self.model.beta.item()))
        return original(self, batch)

    monkeypatch.setattr(TipAdapterF, "forward_backward", record_values)
    monkeypatch.setattr(tip_adapter, "search_settings", lambda *_: next(searches))
    options = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 3, "TEST.FINAL_MODEL", final)
    result = run(*tiny_config("TipAdapterF"), *options, trainer="TipAdapterF")
    assert result.code == 0, result.error
    assert in_training == [(1.0, 5.5)] * 3
    last = load_tensors(checkpoint_path(result, 3))
    expected = (1.5, 2.5) if final == "best_val" else (2.5, 3.5)  # the third search, or the only one
    assert (last["alpha"], last["beta"]) == expected
    assert (result.folder / "tip_adapter/model-best.pth.tar").is_file() == (final == "best_val")


def test_a_resumed_run_continues_with_its_cache_whose_keys_alone_are_trained(run):
    options = (*tiny_config("TipAdapterF"), "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1)
    uninterrupted = run(*options, trainer="TipAdapterF")
    before, after = (load_tensors(checkpoint_path(uninterrupted, epoch)) for epoch in (1, 2))
    assert torch.equal(before["values"], after["values"])
    assert 0 < (before["keys"] - after["keys"]).abs().max() < 0.01  # a step of at most 1e-3
    expected = checkpoint_path(uninterrupted, 2).rename(uninterrupted.folder / "uninterrupted.pth")
    (uninterrupted.folder / "tip_adapter/checkpoint").write_text("model.pth.tar-1\n")
    resumed = run(*options, trainer="TipAdapterF")
    assert "Cache:" not in resumed.log
    assert_same_tensors(checkpoint_path(resumed, 2), expected)


def test_alpha_and_beta_are_not_searched_on_test_images(run):
    options = ("DATASET.NUM_SHOTS", 1, "DATASET.VAL_IS_TEST", True)
    result = run(*tiny_config("TipAdapter"), *options, trainer="TipAdapter")
    assert result.code == 0, result.error
    assert "they are test images (DATASET.VAL_IS_TEST)\nalpha 1, beta 5.5\n" in result.log


def test_keys_are_means_of_augmented_views_and_the_cache_has_each_shot_once(digits_trainer):
    """So have shots that a training epoch would drop with its last batch."""
    options = ("INPUT.TRANSFORMS", "['random_resized_crop','normalize']", "DATASET.NUM_SHOTS", 2)
    options += ("DATALOADER.TRAIN_X.BATCH_SIZE", 16, "DATALOADER.TEST.BATCH_SIZE", 7)
    keys = []
    for views in (10, 1):
        trainer = digits_trainer("TipAdapter", *options, "TRAINER.TIPADAPTER.AUGMENT_EPOCH", views)
        trainer.fill_cache()
        assert trainer.model.values.sum(0).tolist() == [2.0] * 10
        keys.append(trainer.model.keys)
    similarity = (keys[0] * keys[1]).sum(1)
    assert (similarity < 0.999).any()  # the views differ
    assert similarity.mean() > 0.6  # but show the same images


def test_an_unusable_option_is_refused(run):
    for options, message in (
        (("TRAINER.TIPADAPTER.AUGMENT_EPOCH", 0), "TRAINER.TIPADAPTER.AUGMENT_EPOCH is 0"),
        (("MODEL.INIT_WEIGHTS", "a.pth"), "TipAdapter starts from the training images, not from MODEL.INIT_WEIGHTS"),
    ):
        refused = run(*tiny_config("TipAdapter"), *options, trainer="TipAdapter")
        assert refused.code == 2
        assert message in refused.error
