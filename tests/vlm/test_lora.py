"""LoRA: no change at the start; afterwards, all readers of a weight read the updated one."""

import copy

import pytest
import torch
from torch import nn

from dassl.utils import UserError
from vlm import openai
from vlm.clip.load import load_clip
from vlm.clip.lora import add_lora
from vlm.text.encoder import TextEncoder

TEXTS = ["a cat", "two dogs on the grass", "rain"]


def build_small_vit():
    torch.manual_seed(0)
    return openai.CLIP(16, 32, 2, 64, 16, 77, 49408, 64, 1, 2).eval().requires_grad_(False)


@pytest.fixture(params=["tiny", "vit"])
def clip(request):
    return copy.deepcopy(load_clip("tiny")[0]) if request.param == "tiny" else build_small_vit()


def compute_features(clip):
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    encoder = TextEncoder(clip)
    return clip.encode_image(images), encoder.encode(encoder.tokenize(TEXTS))


def test_only_the_updates_of_both_encoders_are_trained(clip):
    before = compute_features(clip)
    parameters = add_lora(clip, 4, 8.0)
    assert all(map(torch.equal, before, compute_features(clip)))  # at the start
    assert {id(p) for p in clip.parameters() if p.requires_grad} == {id(p) for p in parameters}
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.1)
    after = compute_features(clip)
    for one, other in zip(before, after, strict=True):
        assert (one - other).abs().max() > 1e-3
    sum(features.square().sum() for features in after).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
    with torch.no_grad():  # the plain encoder reads the same weights
        plain = clip.encode_text(openai.tokenize(TEXTS))
    torch.testing.assert_close(after[1].detach(), plain, rtol=1e-4, atol=1e-5)


def test_queries_and_values_are_updated_but_keys_are_not():
    clip = build_small_vit()
    attention = clip.visual.transformer.resblocks[1].attn
    before = attention.in_proj_weight.clone()
    for parameter in add_lora(clip, 2, 1.0):
        nn.init.normal_(parameter)
    changed = (attention.in_proj_weight - before).chunk(3)
    assert [bool(block.any()) for block in changed] == [True, False, True]
    assert [int(torch.linalg.matrix_rank(changed[i], atol=1e-3)) for i in (0, 2)] == [2, 2]
    update = attention.parametrizations.in_proj_weight[0]
    torch.testing.assert_close(changed[0], update.up[0] @ update.down[0] / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names", ["q_proj k_proj v_proj out_proj", "query key value dense"])
def test_queries_and_values_of_other_libraries_are_updated(names):
    """The names of OpenAI's attention pool and of transformers' CLIP; those of BERT."""
    names = names.split()
    attention = nn.ModuleDict({name: nn.Linear(8, 8) for name in names})
    before = {name: layer.weight.clone() for name, layer in attention.items()}
    for parameter in add_lora(attention, 2, 4.0):
        nn.init.normal_(parameter)
    assert [not torch.equal(attention[name].weight, before[name]) for name in names] == [True, False, True, False]


def test_the_down_matrix_is_initialized_as_a_linear_layer_and_the_up_matrix_with_zeros():
    """The bound of the uniform distribution is 1 / sqrt(inputs) for any rank."""
    down, up = add_lora(nn.ModuleDict({"query": nn.Linear(64, 64)}), 16, 1.0)
    assert 0.12 < down.abs().max().item() <= 1 / 8
    assert not up.any()


def test_a_model_without_attention_layers_is_refused():
    with pytest.raises(UserError, match="attention"):
        add_lora(nn.Linear(3, 3), 4, 8.0)
