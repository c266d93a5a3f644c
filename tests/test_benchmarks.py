"""The benchmarks count and compute what their tables say. Their times are not tested."""

import pytest
import torch

from benchmarks import feature_set, gpu, image_encoder, many_classes, study, text_encoder, train_step
from benchmarks.measure import measure_in_turns


@pytest.mark.parametrize("module", [text_encoder, image_encoder, study, many_classes, feature_set, train_step, gpu])
def test_help_of_a_benchmark_shows_its_command(module, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert f"python -m {module.__name__}" in capsys.readouterr().out


def test_the_study_has_the_images_and_steps_of_its_loaders():
    """200 epochs; 5, 2, 1, 1, 1 batches of at most 32 an epoch for 16, 8, 4, 2, 1 shots; two numbers of tokens."""
    counts = study.count_steps()
    assert counts["steps"] == 2 * 200 * (5 + 2 + 1 + 1 + 1)
    assert counts["different"] == 200 * (160 + 64 + 32 + 20 + 10)
    assert counts["drawn"] == 2 * counts["different"]
    assert counts["tested"] == 11 * 3925


def test_both_text_encoders_compute_the_same_features_and_gradients():
    ours, plain, tokens = text_encoder.build_steps(classes=2, n_ctx=4)
    for actual, expected in zip(ours(), plain(), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    assert tokens < 2 * 77


def test_our_training_step_and_the_plain_one_have_the_same_gradients():
    ours, plain = (train_step.build_step("ProGrad", 2, plain)() for plain in (False, True))
    assert len(ours) == 2
    for actual, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_the_first_turn_is_not_counted():
    calls = []
    times = measure_in_turns({"a": (lambda: calls.append("a"), lambda: calls.append("set"))}, turns=2)
    assert calls == ["set", "a"] * 3
    assert len(times["a"].wall) == len(times["a"].cpu) == 2
