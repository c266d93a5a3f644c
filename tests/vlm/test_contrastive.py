"""The contrastive loss equals CLIP's, and chunked encoding gives the gradients of the whole batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vlm import openai
from vlm.contrastive import contrastive_loss, distributed_contrastive_loss, encode_in_chunks
from vlm.similarity import compute_logits, normalize
from vlm.text.encoder import TextEncoder

TEXTS = ["a cat", "two dogs on the grass", "a red envelope", "rain", "the number four", "a cup of tea", "snow", "a map"]
COUNT = len(TEXTS)


@pytest.fixture
def clip():
    """A random CLIP with a small vision transformer, all trainable."""
    torch.manual_seed(0)
    model = openai.CLIP(16, 32, 2, 64, 16, 77, 49408, 64, 1, 2).eval()
    for block in model.transformer.resblocks:  # as in a trained CLIP, biases are not zero
        nn.init.normal_(block.attn.in_proj_bias, std=0.1)
        nn.init.normal_(block.mlp.c_fc.bias, std=0.1)
    return model


@pytest.fixture
def images():
    return torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def compute_gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def compute_loss(clip, images, chunk=0):
    encoder = TextEncoder(clip)
    image_features = normalize(encode_in_chunks(clip.encode_image, images, chunk))
    text_features = normalize(encode_in_chunks(encoder.encode, encoder.tokenize(TEXTS), chunk))
    return contrastive_loss(compute_logits(image_features, text_features, clip.logit_scale), torch.arange(COUNT))


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for name in actual:
        scale = expected[name].abs().max()
        assert scale > 0, name
        assert (actual[name] - expected[name]).abs().max() <= tolerance * scale, name


def test_the_gradients_of_all_weights_equal_those_of_openais_forward_also_in_chunks(clip, images):
    per_image, per_text = clip(images, openai.tokenize(TEXTS))
    target = torch.arange(COUNT)
    plain_loss = (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2
    plain = compute_gradients(clip, plain_loss)
    for loss in (compute_loss(clip, images), compute_loss(clip, images, chunk=3)):
        torch.testing.assert_close(loss, plain_loss)
        assert_close(compute_gradients(clip, loss), plain)
    assert {"token_embedding.weight", "positional_embedding", "text_projection", "logit_scale"} < plain.keys()


def test_recomputation_repeats_the_random_draws():
    encode = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 4))
    inputs = torch.randn(8, 4)

    def compute_encoder_gradients(features):
        return compute_gradients(
            encode, compute_logits(normalize(features), normalize(inputs), torch.tensor(1.0)).logsumexp(1).sum()
        )

    torch.manual_seed(3)
    expected = compute_encoder_gradients(torch.cat([encode(chunk) for chunk in inputs.split(3)]))
    torch.manual_seed(3)
    assert_close(compute_encoder_gradients(encode_in_chunks(encode, inputs, 3)), expected, 1e-6)


def test_only_the_inputs_are_saved_for_the_backward_pass():
    sizes, saved = [], []
    layer = nn.Linear(64, 64)

    def encode(chunk):
        sizes.append(len(chunk))
        return layer(layer(layer(chunk).relu()).relu())

    def save(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        features = encode_in_chunks(encode, inputs := torch.randn(8, 64), 3)
    assert sizes == [3, 3, 2]
    assert sum(tensor.numel() for tensor in saved) <= inputs.numel()
    features.sum().backward()
    assert sorted(sizes) == [2, 2, 3, 3, 3, 3]


def test_equal_captions_are_positives_of_each_other():
    scores, target = torch.randn(3, 3), torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    expected = (F.cross_entropy(scores, target) + F.cross_entropy(scores.t(), target)) / 2
    torch.testing.assert_close(contrastive_loss(scores, torch.tensor([0, 0, 1])), expected)


def test_the_distributed_loss_returns_which_images_score_highest_with_one_of_their_captions():
    texts = normalize(torch.eye(4)[[0, 1, 1, 2]])
    images = normalize(torch.eye(4)[[0, 1, 2, 3]] + 0.1)
    ids = torch.tensor([5, 7, 7, 9])
    loss, is_correct = distributed_contrastive_loss(images, texts, ids, torch.tensor(1.0))
    assert torch.equal(loss, contrastive_loss(compute_logits(images, texts, torch.tensor(1.0)), ids))
    assert is_correct.tolist() == [True, True, False, False]
