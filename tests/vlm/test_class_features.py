"""Text features of many classes: blocks and the feature cache; prompts of selected classes, checkpoints, sampling."""

import pytest
import torch

from trainers import class_tokens, coop
from trainers.coop import PromptLearner
from trainers.sampled_softmax import draw_classes
from vlm.clip.load import load_clip
from vlm.images.feature_store import FeatureStore
from vlm.text import class_features as module
from vlm.text.class_features import block_keys, describe_text_encoder
from vlm.text.encoder import TextEncoder
from vlm.text.zero_shot import build_zero_shot_classifier

NAMES = ["cat", "English springer", "container_ship", "dog", "zero", "grey wolf", "bee", "sea lion", "ox"]
TEMPLATES = ["a photo of a {}.", "a drawing of the {} there."]


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny")[0]


@pytest.fixture(scope="module")
def encoder(clip):
    return TextEncoder(clip)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    for user in (module, coop):
        monkeypatch.setattr(user, "BLOCK_CLASSES", 4)


@pytest.fixture
def store(tmp_path, encoder):
    return FeatureStore(tmp_path, describe_text_encoder(encoder, "abc"), 1)


@pytest.fixture
def encoded(monkeypatch):
    """The number of prompts of each call of the encoder."""
    counts, encode = [], TextEncoder.encode

    def counting(self, tokens):
        counts.append(len(tokens))
        return encode(self, tokens)

    monkeypatch.setattr(TextEncoder, "encode", counting)
    return counts


# ---- class features ----


def test_cached_features_are_bit_for_bit_the_computed_ones(encoder, store, encoded, tmp_path):
    plain = build_zero_shot_classifier(encoder, NAMES, TEMPLATES)
    assert encoded == [4, 4, 1] * 2
    first, again = (build_zero_shot_classifier(encoder, NAMES, TEMPLATES, store) for _ in range(2))
    other_run = FeatureStore(tmp_path, describe_text_encoder(encoder, "abc"), 1)
    assert encoded == [4, 4, 1] * 4
    for features in (first, again, build_zero_shot_classifier(encoder, NAMES, TEMPLATES, other_run)):
        assert torch.equal(features, plain)
    assert encoded == [4, 4, 1] * 4
    # Another class changes the last block only; another template changes all blocks.
    build_zero_shot_classifier(encoder, [*NAMES, "owl"], TEMPLATES[:1], store)
    assert encoded[12:] == [2]
    build_zero_shot_classifier(encoder, NAMES, ["the {}"], store)
    assert encoded[13:] == [4, 4, 1]


def test_features_in_blocks_equal_those_of_all_classes_at_once(encoder, monkeypatch):
    in_blocks = build_zero_shot_classifier(encoder, NAMES, TEMPLATES)
    monkeypatch.setattr(module, "BLOCK_CLASSES", 100)
    torch.testing.assert_close(in_blocks, build_zero_shot_classifier(encoder, NAMES, TEMPLATES))


def test_the_description_and_the_keys_cover_all_that_features_depend_on(encoder, monkeypatch):
    description = describe_text_encoder(encoder, "abc")
    assert describe_text_encoder(encoder, "abd") != description
    monkeypatch.setattr(module, "describe_cpu_sums", lambda: "MKL AUTO, 77 threads")
    assert describe_text_encoder(encoder, "abc") != description
    a, b = torch.arange(6).view(2, 3), torch.ones(2)
    keys = block_keys([a, b], 2)
    assert len({*keys}) == 2
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = block_keys([a, b], 2)
    other_keys = [
        block_keys([a.view(3, 2), b], 2),
        block_keys([a, b + 1e-7], 2),
        block_keys([a.int(), b], 2),
        under_autocast,
    ]
    assert all(not {*keys} & {*other} for other in other_keys)


# ---- prompts of selected classes ----


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
def test_selected_classes_have_the_features_and_gradients_they_have_among_all(encoder, position, csc):
    torch.manual_seed(0)
    learner = PromptLearner(NAMES, encoder, 3, csc=csc, position=position)
    classes = torch.tensor([5, 0, 7])
    table, index, lengths = learner.select_classes(learner.ctx, classes)
    assert torch.equal(table[index], learner()[learner.index[classes]])
    weights = torch.linspace(-1, 1, 3 * encoder.embed_dim).view(3, -1)
    features = encoder(table, encoder.build_layout(index, lengths))
    (gradient,) = torch.autograd.grad((features * weights).sum(), learner.ctx)
    expected_features = encoder(learner(), learner.layout)[classes]
    torch.testing.assert_close(features, expected_features)
    (expected,) = torch.autograd.grad((expected_features * weights).sum(), learner.ctx)
    torch.testing.assert_close(gradient, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("csc", [False, True])
def test_features_of_learned_prompts_are_cached_by_the_values_of_the_context(clip, store, csc):
    node = coop.CfgNode({"N_CTX": 2, "CTX_INIT": "", "CSC": csc, "CLASS_TOKEN_POSITION": "end"})
    model = coop.CustomCLIP(NAMES, clip, node)
    with torch.no_grad():
        plain = model.class_features()
        assert torch.equal(model.class_features(store), plain)
        files = {*store.folder.glob("*.safetensors")}
        assert len(files) == 3
        assert torch.equal(model.class_features(store), plain)
        assert {*store.folder.glob("*.safetensors")} == files
        ctx = model.prompt_learner.ctx
        ctx.view(-1)[-1] += 1e-3  # with class-specific contexts, only the last class changes
        assert not torch.equal(model.class_features(store), plain)
        assert len({*store.folder.glob("*.safetensors")}) == (4 if csc else 6)
    torch.testing.assert_close(model.class_features()[:-1], model.class_features(store)[:-1])


# ---- checkpoints ----


def test_checkpoints_of_very_many_classes_have_a_checksum_of_the_class_tokens(encoder, monkeypatch):
    monkeypatch.setattr(class_tokens, "MAX_CLASS_TOKEN_BYTES", 0)
    source = PromptLearner(NAMES, encoder, 4, csc=True)
    state = source.state_dict()
    assert set(state) == {"ctx", "class_tokens_blake2b"}
    same = PromptLearner(NAMES, encoder, 4, csc=True)
    same.load_state_dict(state)
    assert torch.equal(same.ctx, source.ctx)
    with pytest.raises(RuntimeError, match="class-specific"):
        PromptLearner([*NAMES[1:], "owl"], encoder, 4, csc=True).load_state_dict(state)
    generic = PromptLearner(NAMES, encoder, 4).state_dict()
    PromptLearner(["owl"], encoder, 4).load_state_dict(generic)  # fits any classes


# ---- sampled softmax ----


def test_sampled_softmax_estimates_the_denominator_without_bias():
    labels, size, classes = torch.tensor([0, 1, 1]), 8, 30
    values = torch.randn(3, classes, generator=torch.Generator().manual_seed(0))
    sums = []
    for seed in range(4000):
        sample, _, correction = draw_classes(labels, size, classes, seed)
        sums.append((values[:, sample] + correction).exp().sum(1))
    mean, error = torch.stack(sums).mean(0), torch.stack(sums).std(0) / len(sums) ** 0.5
    assert ((mean - values.exp().sum(1)).abs() < 4 * error).all()
