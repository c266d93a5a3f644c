"""The text encoder against openai-clip's own, which computes all 77 positions of every prompt."""

import pytest
import torch

from trainers.coop import PromptLearner
from vlm.openai import CLIP
from vlm.text.encoder import TextEncoder
from vlm.text.layout import Layout
from vlm.text.plain import encode_prompts
from vlm.text.tokenizer import tokenize

MANY_TOKENS = ["cat", "English springer", "container ship", "red-breasted merganser", "cat"]


@pytest.fixture(scope="module")
def wide():
    """Random weights, four heads, three layers."""
    torch.manual_seed(0)
    return CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 49408, 128, 4, 3).eval().requires_grad_(False)


def learner_of(clip, names, **values) -> PromptLearner:
    torch.manual_seed(1)
    return PromptLearner(names, TextEncoder(clip), **{"n_ctx": 4, **values})


def features_and_gradient(learner, encode) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the learner's prompts, and the gradient of a sum of them with different weights."""
    learner.ctx.grad = None
    features = encode(learner())
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach(), learner.ctx.grad


@pytest.mark.parametrize(("names", "n_ctx"), [(MANY_TOKENS, 5), (["cat"], 1)])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
def test_features_and_gradients_are_the_plain_encoders(wide, names, n_ctx, position, csc):
    learner = learner_of(wide, names, n_ctx=n_ctx, csc=csc, position=position)
    ends = tokenize([" ".join(["X"] * n_ctx + [name]) + "." for name in names]).argmax(-1)
    expected = features_and_gradient(learner, lambda table: encode_prompts(wide, table[learner.index], ends))
    for chunk in (1, 7, 1024):
        layout = Layout.of(learner.index, ends + 1, chunk)
        ours = features_and_gradient(learner, lambda table: TextEncoder(wide)(table, layout))  # noqa: B023
        torch.testing.assert_close(ours[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours[1], expected[1], atol=1e-5 * expected[1].abs().max().item(), rtol=1e-5)


def test_the_memory_budget_changes_no_bit(wide):
    learner = learner_of(wide, MANY_TOKENS, n_ctx=4)
    layout = Layout.of(
        learner.index, TextEncoder.lengths(tokenize([f"X X X X {name}." for name in MANY_TOKENS])), chunk=5
    )
    assert len(layout.chunks) > 3
    results = []
    for memory in (0, 200_000, 1 << 30):
        encoder = TextEncoder(wide, memory)
        results.append(features_and_gradient(learner, lambda table: encoder(table, layout)))  # noqa: B023
    for features, gradient in results[1:]:
        assert torch.equal(features, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("names", [MANY_TOKENS, MANY_TOKENS * 20], ids=["together", "one by one"])
def test_several_contexts_in_bounded_memory(wide, names):
    """Features and gradients are those of one context after another, whatever is kept."""
    learner = learner_of(wide, names)
    shifts = torch.linspace(-0.1, 0.1, 3)[:, None, None]

    def results(encode) -> tuple[torch.Tensor, torch.Tensor]:
        learner.ctx.grad = None
        features = encode(learner.ctx + shifts)
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        return features.detach(), learner.ctx.grad

    def one_by_one(contexts) -> torch.Tensor:
        encoder = TextEncoder(wide)
        return torch.stack([encoder(learner.table(context), learner.layout) for context in contexts])

    expected = results(one_by_one)
    for memory in (0, 1 << 30):
        encoder = TextEncoder(wide, memory)
        ours = results(lambda contexts: encoder.encode_contexts(contexts, learner.fixed, learner.layout))  # noqa: B023
        for mine, theirs in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)


def kept(compute) -> int:
    """How many numbers the backward pass will need, as autograd tells it."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        compute()
    return sum(sizes)


def test_beyond_the_budget_nothing_is_kept(wide):
    names = MANY_TOKENS * 20
    learner, few = learner_of(wide, names, n_ctx=1), learner_of(wide, MANY_TOKENS * 2)
    layout = Layout.of(learner.index, TextEncoder.lengths(tokenize([f"X {n}." for n in names])), chunk=20)
    contexts = few.ctx.expand(200, -1, -1)
    for encode in (
        lambda encoder: encoder(learner(), layout),
        lambda encoder: encoder.encode_contexts(
            contexts, few.fixed, few.layout
        ),  # of many contexts, only the first ones
    ):
        assert kept(lambda: encode(TextEncoder(wide, 0))) < kept(lambda: encode(TextEncoder(wide, 1 << 40))) / 5  # noqa: B023


def layout_of(texts: list[str]) -> Layout:
    tokens = tokenize(texts)
    return Layout.of(tokens, TextEncoder.lengths(tokens))


def test_the_common_beginning_of_prompts_is_found(wide):
    layout = layout_of(["a photo of a cat.", "a photo of a container ship.", "a photo of a cat"])
    assert layout.prefix == 5  # start, a, photo, of, a
    assert len(layout_of(["a photo of a cat.", "a photo of a container ship."] * 20).index) == 5 + 20 * (3 + 4)
    assert layout_of(["cat", "dog"]).prefix == 1
    words = {"names": ["cat", "dog"], "ctx_init": "a photo of a"}
    for values, prefix in (({}, 5), ({"csc": True}, 1), ({"position": "middle"}, 3), ({"position": "front"}, 1)):
        assert learner_of(wide, **words, **values).layout.prefix == prefix
