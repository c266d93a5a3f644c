"""The text encoder equals openai-clip's, which computes all 77 positions of every prompt."""

import pytest
import torch

from tests import plain_prompts
from trainers.coop import PromptLearner
from vlm.openai import CLIP
from vlm.text.encoder import TextEncoder
from vlm.text.layout import Layout
from vlm.text.plain import encode_prompts
from vlm.text.tokenizer import tokenize

NAMES = ["cat", "English springer", "container ship", "red-breasted merganser", "cat"]


@pytest.fixture(scope="module")
def clip():
    """A CLIP with random weights; its text encoder has four heads and three layers."""
    torch.manual_seed(0)
    return CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 49408, 128, 4, 3).eval().requires_grad_(False)


def build_learner(clip, names, **values) -> PromptLearner:
    torch.manual_seed(1)
    return PromptLearner(names, TextEncoder(clip), **{"n_ctx": 4, **values})


def features_and_gradient(learner, encode) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features of the learner's prompts, and the context's gradient of a weighted sum of them."""
    learner.ctx.grad = None
    features = encode(learner())
    (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
    return features.detach(), learner.ctx.grad


@pytest.mark.parametrize(("names", "n_ctx"), [(NAMES, 5), (["cat"], 1)])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
def test_features_and_gradients_equal_those_of_the_plain_encoder(clip, names, n_ctx, position, csc):
    learner = build_learner(clip, names, n_ctx=n_ctx, csc=csc, position=position)
    eot_positions = tokenize([" ".join(["X"] * n_ctx + [name]) + "." for name in names]).argmax(-1)
    expected = features_and_gradient(learner, lambda table: encode_prompts(clip, table[learner.index], eot_positions))
    for chunk in (1, 7, 1024):
        layout = Layout.build(learner.index, eot_positions + 1, chunk)
        ours = features_and_gradient(learner, lambda table: TextEncoder(clip)(table, layout))  # noqa: B023
        torch.testing.assert_close(ours[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours[1], expected[1], atol=1e-5 * expected[1].abs().max().item(), rtol=1e-5)


def test_the_memory_for_activations_changes_no_bit(clip):
    learner = build_learner(clip, NAMES, n_ctx=4)
    layout = Layout.build(
        learner.index, TextEncoder.lengths(tokenize([f"X X X X {name}." for name in NAMES])), chunk_tokens=5
    )
    assert len(layout.chunks) > 3
    results = []
    for memory in (0, 200_000, 1 << 30):
        encoder = TextEncoder(clip, memory)
        results.append(features_and_gradient(learner, lambda table: encoder(table, layout)))  # noqa: B023
    for features, gradient in results[1:]:
        assert torch.equal(features, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("names", [NAMES, NAMES * 20], ids=["together", "one by one"])
def test_several_contexts_together_equal_one_after_another(clip, names):
    """For any memory: features and gradients."""
    learner = build_learner(clip, names)
    shifts = torch.linspace(-0.1, 0.1, 3)[:, None, None]

    def results(encode) -> tuple[torch.Tensor, torch.Tensor]:
        learner.ctx.grad = None
        features = encode(learner.ctx + shifts)
        (features * torch.linspace(-1, 1, features.numel()).view_as(features)).sum().backward()
        return features.detach(), learner.ctx.grad

    def one_by_one(contexts) -> torch.Tensor:
        encoder = TextEncoder(clip)
        return torch.stack([encoder(learner.table(context), learner.layout) for context in contexts])

    expected = results(one_by_one)
    for memory in (0, 1 << 30):
        encoder = TextEncoder(clip, memory)
        ours = results(lambda contexts: encoder.encode_contexts(contexts, learner.fixed_embeddings, learner.layout))  # noqa: B023
        for actual, plain in zip(ours, expected, strict=True):
            torch.testing.assert_close(actual, plain, atol=1e-5 * plain.abs().max().item(), rtol=0)


def count_saved_numbers(compute) -> int:
    """Return how many numbers autograd saves for the backward pass of ``compute()``."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        compute()
    return sum(sizes)


def test_activations_beyond_the_memory_are_not_saved(clip):
    names = NAMES * 20
    learner, short = build_learner(clip, names, n_ctx=1), build_learner(clip, NAMES * 2)
    layout = Layout.build(learner.index, TextEncoder.lengths(tokenize([f"X {n}." for n in names])), chunk_tokens=20)
    contexts = short.ctx.expand(200, -1, -1)
    for encode in (
        lambda encoder: encoder(learner(), layout),
        lambda encoder: encoder.encode_contexts(contexts, short.fixed_embeddings, short.layout),
    ):
        counts = [count_saved_numbers(lambda: encode(TextEncoder(clip, memory))) for memory in (0, 1 << 40)]  # noqa: B023
        assert counts[0] < counts[1] / 5


def build_layout(texts: list[str]) -> Layout:
    tokens = tokenize(texts)
    return Layout.build(tokens, TextEncoder.lengths(tokens))


def test_the_common_prefix_of_prompts_is_computed_once(clip):
    layout = build_layout(["a photo of a cat.", "a photo of a container ship.", "a photo of a cat"])
    assert layout.prefix_length == 5  # start, a, photo, of, a
    assert len(build_layout(["a photo of a cat.", "a photo of a container ship."] * 20).index) == 5 + 20 * (3 + 4)
    assert build_layout(["cat", "dog"]).prefix_length == 1
    words = {"names": ["cat", "dog"], "ctx_init": "a photo of a"}
    for values, prefix in (({}, 5), ({"csc": True}, 1), ({"position": "middle"}, 3), ({"position": "front"}, 1)):
        assert build_learner(clip, **words, **values).layout.prefix_length == prefix


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("names", [[*NAMES, "a long name of " + "many words " * 20], ["cat"]], ids=["six", "one"])
def test_deep_prompts_equal_those_of_the_plain_encoder(clip, names, depth):
    """Features, and the gradients of the context and of each layer's prompts: in any chunks, with any memory."""
    learner = build_learner(clip, names, n_ctx=3)
    deep = [torch.nn.Parameter(torch.randn(3, 128)) for _ in range(depth - 1)]
    eot_positions = learner.lengths - 1

    def results(encode):
        for each in deep:
            each.grad = None
        return *features_and_gradient(learner, encode), *(each.grad for each in deep)

    expected = results(lambda table: plain_prompts.encode_texts(clip, table[learner.index], eot_positions, deep))
    plain = results(lambda table: plain_prompts.encode_texts(clip, table[learner.index], eot_positions))
    assert not torch.allclose(plain[0], expected[0], atol=1e-2)
    for chunk, memory in ((1, 0), (7, 0), (7, 1 << 30), (1024, 0)):
        layout = Layout.build(learner.index, learner.lengths, chunk)
        encoder = TextEncoder(clip, memory)
        for ours, theirs in zip(results(lambda table: encoder(table, layout, deep)), expected, strict=True):  # noqa: B023
            torch.testing.assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=1e-5)


def test_deep_prompts_outside_the_common_prefix_are_refused(clip):
    learner = build_learner(clip, NAMES, n_ctx=4, position="front")
    with pytest.raises(AssertionError):
        TextEncoder(clip)(learner(), learner.layout, [torch.zeros(4, 128)])
