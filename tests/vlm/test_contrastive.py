"""CLIP's loss, through our encoders, is CLIP's; and chunks of a batch give the gradients of the whole."""

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
    """A random CLIP with a small vision transformer, all of which learns."""
    torch.manual_seed(0)
    model = openai.CLIP(16, 32, 2, 64, 16, 77, 49408, 64, 1, 2).eval()
    for block in model.transformer.resblocks:  # as a trained one: biases are not zero
        nn.init.normal_(block.attn.in_proj_bias, std=0.1)
        nn.init.normal_(block.mlp.c_fc.bias, std=0.1)
    return model


@pytest.fixture
def images():
    return torch.randn(COUNT, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def loss_of(clip, images, chunk=0):
    encoder = TextEncoder(clip)
    image_features = normalize(encode_in_chunks(clip.encode_image, images, chunk))
    text_features = normalize(encode_in_chunks(encoder.encode, encoder.tokenize(TEXTS), chunk))
    return contrastive_loss(compute_logits(image_features, text_features, clip.logit_scale), torch.arange(COUNT))


def assert_close(one, other, tolerance=1e-5):
    assert one.keys() == other.keys()
    for name in one:
        scale = other[name].abs().max()
        assert scale > 0, name
        assert (one[name] - other[name]).abs().max() <= tolerance * scale, name


def test_the_gradients_of_all_weights_are_those_of_clips_own_forward_in_chunks_too(clip, images):
    per_image, per_text = clip(images, openai.tokenize(TEXTS))
    target = torch.arange(COUNT)
    plain_loss = (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2
    plain = gradients(clip, plain_loss)
    for ours in (loss_of(clip, images), loss_of(clip, images, chunk=3)):
        torch.testing.assert_close(ours, plain_loss)
        assert_close(gradients(clip, ours), plain)
    assert {"token_embedding.weight", "positional_embedding", "text_projection", "logit_scale"} < plain.keys()


def test_the_second_pass_draws_what_the_first_drew():
    encode = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 4))
    inputs = torch.randn(8, 4)

    def gradients_of(features):
        return gradients(
            encode, compute_logits(normalize(features), normalize(inputs), torch.tensor(1.0)).logsumexp(1).sum()
        )

    torch.manual_seed(3)
    kept = gradients_of(torch.cat([encode(part) for part in inputs.split(3)]))
    torch.manual_seed(3)
    assert_close(gradients_of(encode_in_chunks(encode, inputs, 3)), kept, 1e-6)


def test_nothing_but_the_features_waits_for_the_backward_pass():
    seen, kept = [], []
    layer = nn.Linear(64, 64)

    def encode(part):
        seen.append(len(part))
        return layer(layer(layer(part).relu()).relu())

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encode_in_chunks(encode, inputs := torch.randn(8, 64), 3)
    assert seen == [3, 3, 2]
    assert sum(tensor.numel() for tensor in kept) <= inputs.numel()
    features.sum().backward()
    assert sorted(seen) == [2, 2, 3, 3, 3, 3]


def test_equal_captions_are_positives_of_each_other():
    scores, target = torch.randn(3, 3), torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
    expected = (F.cross_entropy(scores, target) + F.cross_entropy(scores.t(), target)) / 2
    torch.testing.assert_close(contrastive_loss(scores, torch.tensor([0, 0, 1])), expected)


def test_the_loss_of_a_batch_says_which_images_find_a_caption_of_theirs():
    texts = normalize(torch.eye(4)[[0, 1, 1, 2]])
    images = normalize(torch.eye(4)[[0, 1, 2, 3]] + 0.1)
    ids = torch.tensor([5, 7, 7, 9])
    loss, right = distributed_contrastive_loss(images, texts, ids, torch.tensor(1.0))
    assert torch.equal(loss, contrastive_loss(compute_logits(images, texts, torch.tensor(1.0)), ids))
    assert right.tolist() == [True, True, False, False]
