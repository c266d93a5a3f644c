"""Prompts of any class names: tokens and features equal those of the plain encoder, or the class is refused."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import predict
from tests.fuzz.cases import COUNTS, Refusal, outcome, texts
from trainers.coop import PromptLearner
from vlm import openai
from vlm.clip.load import load_clip
from vlm.text.encoder import TextEncoder
from vlm.text.plain import encode_prompts
from vlm.text.tokenizer import MAX_CHARACTERS, count_tokens, tokenize

END = 49407  # CLIP's end-of-text token
names = st.lists(texts.filter(lambda text: len(text) < MAX_CHARACTERS), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def clip():
    """The tiny CLIP, frozen."""
    return load_clip("tiny")[0].eval().requires_grad_(False)


def words(text: str) -> list[int]:
    """Return the tokens of a class name."""
    return openai.tokenizer.encode(text.replace("_", " "))


def fits(sentences: list[str]) -> bool:
    """Return whether each sentence fits into CLIP's 77 tokens and has no end-of-text token inside."""
    encoded = [openai.tokenizer.encode(sentence) for sentence in sentences]
    return all(len(tokens) <= 75 and END not in tokens for tokens in encoded)


@given(st.lists(texts, max_size=4))
def test_tokens_equal_those_of_openais_tokenizer(texts):
    tokens = outcome(tokenize, texts)
    if all(len(text) <= MAX_CHARACTERS for text in texts) and fits(texts):
        assert torch.equal(tokens, openai.tokenize(texts).long())
    else:
        assert isinstance(tokens, Refusal)
    short = [text for text in texts if len(text) <= MAX_CHARACTERS]
    assert torch.equal(outcome(tokenize, short, truncate=True), openai.tokenize(short, truncate=True).long())


@pytest.mark.parametrize("text", ["x" * 1_000_000, "ab" * 500_000, " " * 6000], ids=range(3))
def test_a_text_that_would_take_hours_to_tokenize_is_refused_at_once(text):
    assert "letters" in outcome(tokenize, [text])
    assert "letters" in outcome(count_tokens, text)
    assert outcome(tokenize, [text], truncate=True).shape == (1, 77)


@given(names, st.sampled_from([1, 4, 16, 80, 10**12]), st.booleans(), st.sampled_from(["end", "middle", "front"]))
@example(["cat", "Cat", "CAT"], 4, False, "end")
@example(["cat", "..............."], 4, False, "front")  # with a full stop appended, it has fewer tokens than without
@example(["cat", "<|endoftext|> dog"], 4, False, "end")
@example(["cat", "&lt;|endoftext|&gt;"], 4, False, "end")
@example(["cat", "very " * 80], 4, False, "end")
@example(["cat", "\0"], 4, False, "end")
@example(["\ud83d", "كلب أسود"], 16, True, "middle")
def test_features_of_learned_prompts_equal_those_of_the_plain_encoder(clip, classnames, n_ctx, csc, position):
    encoder = TextEncoder(clip)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        learner = outcome(PromptLearner, classnames, encoder, n_ctx, csc=csc, position=position)
    if n_ctx > 80:
        assert isinstance(learner, Refusal)
        return
    sentences = [" ".join(["X"] * n_ctx + [name.replace("_", " ")]) + "." for name in classnames]
    if not all(map(words, classnames)) or not fits(sentences) or not fits([n.replace("_", " ") for n in classnames]):
        assert isinstance(learner, Refusal)
        assert any(f"class {number}" in learner for number in range(len(classnames)))
        return
    ends = openai.tokenize(sentences).argmax(-1)
    assert torch.equal(learner.index.sort().values, learner.rows.sort().values)
    assert torch.equal(
        learner.index[range(len(ends)), ends], learner.rows[range(len(ends)), ends]
    )  # the end-of-text token stays
    table = learner()
    expected = encode_prompts(clip, table[learner.index], ends)
    torch.testing.assert_close(encoder(table, learner.layout), expected, atol=1e-5, rtol=1e-5)
    has_duplicates = len({tuple(words(name)) for name in classnames}) < len(classnames)
    assert ("the same name" in printed.getvalue()) == has_duplicates


@settings(max_examples=8)
@given(st.lists(texts, min_size=1, max_size=3))
@example(["cat", "_"])
@example(["cat", "c\u200bat", "CAT"])
@example(["a", "very " * 80])
def test_predict_prints_one_result_or_one_error(tmp_path_factory, capsys, classnames):
    image = tmp_path_factory.getbasetemp() / "image.png"
    Image.new("RGB", (8, 8), "red").save(image)
    assume(not any(name.startswith("-") for name in classnames))
    COUNTS["cases"] += 1
    code = predict.main([str(image), "--backbone", "tiny", "--json", "--classes", *classnames])
    output, error = capsys.readouterr()
    if code == 0:
        assert len({tuple(words(name)) for name in classnames}) == len(classnames)  # no two names have the same tokens
        (line,) = output.split("\n")[:-1]
        assert {entry["class"] for entry in json.loads(line)["predictions"]} == set(classnames)
    else:
        assert code == 2
        assert error.count("error: ") == 1
        assert not output
