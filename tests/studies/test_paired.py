"""The paired comparison of two methods over seeds and test images."""

import numpy as np
import pytest

from studies.tables.paired import Comparison, compare_cells, compare_differences
from studies.tables.study import read_studies
from tests.studies.records import SHA, write_predictions, write_run
from tools.results_table import main

SEEDS, IMAGES = 3, 400


def test_the_interval_is_that_of_crossed_random_effects():
    """The components of the variance come from another formula: from the covariances of seeds and of images."""
    rng = np.random.default_rng(0)
    d = 0.1 + 0.2 * rng.normal(size=(5, 1)) + 0.5 * rng.normal(size=(1, 40)) + 0.3 * rng.normal(size=(5, 40))
    by_seed, by_image = np.cov(d), np.cov(d.T)  # off the diagonal: the variance of images, and that of seeds
    images = by_seed[~np.eye(5, dtype=bool)].mean()
    seeds = by_image[~np.eye(40, dtype=bool)].mean()
    residual = np.diag(by_seed).mean() - images
    variance = seeds / 5 + images / 40 + residual / 200
    result = compare_differences(d)
    assert result.difference == pytest.approx(100 * d.mean())
    assert result.half_width == pytest.approx(100 * 2.7764 * variance**0.5, rel=1e-4)  # Student's t for five seeds
    assert (result.seeds, result.images) == (5, 40)


def test_the_variance_is_at_least_the_residuals_part():
    d = np.array([[1.0, 0, 1, 0], [0, 1, 0, 1]])  # seeds and images have equal means
    assert compare_differences(d).half_width == pytest.approx(100 * 12.7062 * (2 / 3 / 8) ** 0.5, rel=1e-4)


@pytest.mark.parametrize(("low", "is_shown"), [(0.5, True), (-0.5, False), (-2.0, False)])
def test_a_difference_is_shown_if_the_interval_does_not_hold_zero(low, is_shown):
    assert Comparison(low + 1, 1, SEEDS, IMAGES).is_shown is is_shown
    assert Comparison(-low - 1, 1, SEEDS, IMAGES).is_shown is is_shown


@pytest.fixture
def compare(tmp_path):
    """A function that writes CoOp's two settings with these shares of correct images; it returns the page's verdict."""

    def call(standard, efficient, seeds=SEEDS, images=IMAGES, predictions=True, shots=(1, 16), **entries):
        for setting, (n_ctx, share) in enumerate(((16, standard), (4, efficient))):
            for seed in range(1, seeds + 1):
                for number in shots:
                    rng = np.random.default_rng([setting, seed, number])
                    correct = rng.random(images) < share
                    count, config = int(correct.sum()), {"TRAINER.COOP.N_CTX": n_ctx}
                    record = {"correct": count, "total": images, **(entries if n_ctx == 4 else {})}
                    folder = tmp_path / f"study/{n_ctx}/{number}/{seed}"
                    write_run(folder, 100 * count / images, seed=seed, shots=number, config=config, **record)
                    if predictions:
                        write_predictions(folder, correct)
        assert main([str(tmp_path / "study")]) == 0
        lines = (tmp_path / "study/results.md").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("CoOp (Efficient) learns")).partition("parameters. ")[2]

    return call


def test_a_difference_that_can_be_shown_is_stated_with_its_interval(compare):
    assert compare(0.9, 0.5).startswith("The accuracy of CoOp (Efficient) is lower than that of CoOp (Standard): -")
    text = compare(0.5, 0.9)
    assert text.startswith("The accuracy of CoOp (Efficient) is higher than that of CoOp (Standard): +")
    assert "points (95% interval, paired over 3 seeds and 400 test images). By shots: 1 shot +" in text


def test_a_difference_that_cannot_be_shown_is_not_stated(compare):
    assert compare(0.7, 0.7).startswith("No difference in accuracy between CoOp (Efficient) and CoOp (Standard) can be")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"seeds": 1}, "it takes two seeds or more that all these runs share"),
        ({"images": 99}, "99 test images are too few; it takes 100"),
        ({"predictions": False}, "has no predictions.csv"),
        ({"splits": {"test": {"sha256": SHA["b"]}}}, "their test images differ"),
        ({"weights": {"sha256": SHA["b"]}}, "their weights differ"),
        ({"correct": 7}, "does not have the results of the record beside it"),
    ],
)
def test_what_cannot_be_told_is_not_told(compare, options, reason):
    text = compare(0.9, 0.5, **options)
    assert text.startswith("Whether CoOp (Efficient) or CoOp (Standard) is more accurate cannot be told: ")
    assert reason in text
    assert "By shots: 1 shot -" in text


def test_the_differences_by_shots_are_those_of_the_seeds_that_both_have(tmp_path):
    for n_ctx, accuracies in ((16, {1: 60, 2: 60}), (4, {1: 61, 2: 62, 3: 90})):
        for seed, accuracy in accuracies.items():
            config = {"TRAINER.COOP.N_CTX": n_ctx}
            write_run(tmp_path / f"{n_ctx}/1/{seed}", accuracy, seed=seed, shots=1, config=config)
            write_run(tmp_path / f"{n_ctx}/2/{seed}", accuracy, seed=seed + n_ctx, shots=2, config=config)
    assert main([str(tmp_path)]) == 0
    assert "By shots: 1 shot +1.50.\n" in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_predictions_for_other_images_are_not_compared(compare, tmp_path):
    compare(0.9, 0.5)
    path = tmp_path / "study/16/1/2/predictions.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("digits/7.png", "digits/other.png"), encoding="utf-8")
    assert main([str(tmp_path / "study")]) == 0
    assert "are for other images" in (tmp_path / "study/results.md").read_text(encoding="utf-8")


def test_a_method_that_trains_nothing_stands_for_each_seed_and_number_of_shots(tmp_path):
    """Its one run is compared as if each seed and number of shots had a copy of it."""
    rng = np.random.default_rng(0)
    zero = rng.random(IMAGES) < 0.5
    trained = {(shots, seed): rng.random(IMAGES) < 0.8 for shots in (1, 4) for seed in (1, 2, 3)}
    runs = {(0, 1): zero, **trained}
    for (shots, seed), correct in runs.items():
        trainer = "CoOp" if shots else "ZeroshotCLIP"
        count = int(correct.sum())
        folder, record = tmp_path / f"{shots}/{seed}", {"correct": count, "total": IMAGES}
        write_run(folder, 100 * count / IMAGES, trainer=trainer, seed=seed, shots=shots, **record)
        write_predictions(folder, correct)
    table = read_studies(tmp_path)[0].table
    coop, clip = table["CoOp (Standard)"], table["Zero-shot CLIP"]
    for columns in ((1,), (4,), (1, 4)):
        expected = compare_differences(
            np.array([np.mean([trained[c, seed].astype(float) - zero for c in columns], axis=0) for seed in (1, 2, 3)])
        )
        cells = {column: coop[column] for column in columns}
        assert compare_cells(cells, clip) == expected
        assert compare_cells(clip, cells).difference == pytest.approx(-expected.difference)
    assert compare_cells(clip, clip) == "it takes two seeds or more that all these runs share"
