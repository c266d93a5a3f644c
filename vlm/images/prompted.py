"""OpenAI's image encoders, frozen and unchanged, with visual prompts: learned tokens beside those of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vlm.openai import ModifiedResNet


def get_width_and_depth(visual: Any) -> tuple[int, int]:
    """Return the width of the tokens of ``visual``, and how many of its layers have tokens; one in a ResNet."""
    if isinstance(visual, ModifiedResNet):
        return visual.attnpool.positional_embedding.shape[1], 1
    return visual.positional_embedding.shape[1], len(visual.transformer.resblocks)


class PromptedImageEncoder(nn.Module):
    """OpenAI's ``visual`` with prompts: ``build_prompts()`` returns those of layers 0, 1, …, each (n_ctx, width)."""

    def __init__(self, visual: Any, build_prompts: Callable[[], Sequence[torch.Tensor]]):
        super().__init__()
        self.visual, self.build_prompts = visual, build_prompts

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features (n, embed_dim), not normalised, of preprocessed images (n, 3, height, width)."""
        images = images.to(self.visual.conv1.weight.dtype)
        prompts = [each.to(images.dtype)[:, None].expand(-1, len(images), -1) for each in self.build_prompts()]
        encode = _encode_by_resnet if isinstance(self.visual, ModifiedResNet) else _encode_by_transformer
        return encode(self.visual, images, prompts)


def _encode_by_transformer(visual: Any, x: torch.Tensor, prompts: list[torch.Tensor]) -> torch.Tensor:
    """Return features (n, embed_dim) of images ``x`` by a VisionTransformer; prompts are (n_ctx, n, width).

    Those of layer 0 stand behind the class token and the patches, without positions; later ones replace their states.
    """
    x = visual.conv1(x).flatten(2).permute(2, 0, 1)  # (patches, n, width)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(1, x.shape[1], -1), x])
    x = x + visual.positional_embedding.to(x.dtype)[:, None]
    x = visual.ln_pre(torch.cat([x, prompts[0]]))
    for number, block in enumerate(visual.transformer.resblocks):
        if 1 <= number < len(prompts):
            x = torch.cat([x[: -len(prompts[0])], prompts[number]])
        x = block(x)
    return visual.ln_post(x[0]) @ visual.proj


def _encode_by_resnet(visual: Any, x: torch.Tensor, prompts: list[torch.Tensor]) -> torch.Tensor:
    """Return features (n, embed_dim) of images ``x`` by a ModifiedResNet; its prompts are (n_ctx, n, width).

    They are further keys and values of the attention pool, without positions. The convolutions need no gradients.
    """
    pool = visual.attnpool
    with torch.no_grad():
        for conv, bn in ((visual.conv1, visual.bn1), (visual.conv2, visual.bn2), (visual.conv3, visual.bn3)):
            x = F.relu(bn(conv(x)))
        for layer in (visual.avgpool, visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        x = x.flatten(2).permute(2, 0, 1)  # (cells, n, width)
        x = torch.cat([x.mean(0, keepdim=True), x]) + pool.positional_embedding.to(x.dtype)[:, None]
    tokens = torch.cat([x, *prompts])
    projected = (pool.q_proj(x[:1]), pool.k_proj(tokens), pool.v_proj(tokens))  # the query is the mean of the image
    heads = (each.unflatten(2, (pool.num_heads, -1)).permute(1, 2, 0, 3) for each in projected)
    return pool.c_proj(F.scaled_dot_product_attention(*heads).flatten(1))
