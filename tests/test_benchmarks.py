"""The benchmarks measure what they say; their figures are no matter of tests."""

import pytest
import torch

from benchmarks import feature_set, image_encoder, many_classes, study, text_encoder
from benchmarks.measure import in_turns


@pytest.mark.parametrize("module", [text_encoder, image_encoder, study, many_classes, feature_set])
def test_they_explain_themselves(module, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit, match="0"):
        module.main()
    assert f"python -m {module.__name__}" in capsys.readouterr().out


def test_the_study_is_counted_as_its_loaders_do():
    """200 epochs; 5, 2, 1, 1, 1 batches of at most 32 an epoch for 16, 8, 4, 2, 1 shots; two numbers of tokens."""
    counts = study.counts()
    assert counts["steps"] == 2 * 200 * (5 + 2 + 1 + 1 + 1)
    assert counts["different"] == 200 * (160 + 64 + 32 + 20 + 10)
    assert counts["drawn"] == 2 * counts["different"]
    assert counts["tested"] == 11 * 3925


def test_both_text_encoders_compute_the_same():
    ours, plain, tokens = text_encoder.steps(classes=2, n_ctx=4, of="imagenette")
    for mine, theirs in zip(ours(), plain(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
    assert tokens < 2 * 77


def test_a_first_turn_does_not_count():
    calls = []
    times = in_turns({"a": (lambda: calls.append("a"), lambda: calls.append("set"))}, turns=2)
    assert calls == ["set", "a"] * 3
    assert len(times["a"].wall) == len(times["a"].cpu) == 2
