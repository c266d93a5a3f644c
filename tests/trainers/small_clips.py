"""Small CLIPs of OpenAI's two architectures with random weights, as weights files."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from vlm import openai

# Arguments of OpenAI's CLIP: two text layers; a ResNet, and a vision transformer of two layers and five tokens.
ARCHITECTURES = {
    "resnet": (64, 32, (1, 1, 1, 1), 16, None, 77, 49408, 64, 1, 2),
    "vit": (64, 32, 2, 64, 16, 77, 49408, 64, 1, 2),
}


def write_small_clip(path: Path, name: str) -> Path:
    """Write the weights of ``name``, a key of ARCHITECTURES, as a safetensors file to ``path``; return it.

    Token embeddings have about the norm of a trained CLIP's, so that prompts of different words differ.
    """
    torch.manual_seed(0)
    clip = openai.CLIP(*ARCHITECTURES[name])
    with torch.no_grad():
        clip.token_embedding.weight.mul_(10)
        for key, parameter in clip.named_parameters():
            if key.endswith("bn3.weight"):  # starts at zero, so that a residual branch would contribute nothing
                parameter.fill_(0.5)
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, path)
    return path
