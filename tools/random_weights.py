"""Write a CLIP of a published architecture with random weights: for trying things out and measuring speed offline.

    python tools/random_weights.py RN50 /tmp/rn50_random.safetensors --seed 0

Its accuracies are chance level and mean nothing. Use it with MODEL.BACKBONE.WEIGHTS.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import atomic_write, command_line

# (embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, context_length, vocab_size,
#  transformer_width, transformer_heads, transformer_layers)
ARCHITECTURES = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12),
    "RN101": (512, 224, (3, 4, 23, 3), 64, None, 77, 49408, 512, 8, 12),
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
}


def build_random_clip(name: str, seed: int):
    """The state dict of a CLIP as its constructor leaves it, in half precision, as OpenAI publishes weights.

    Residual branches that start at zero (``bn3``) are given weights, so that every layer takes part.
    """
    import torch

    from vlm import openai

    torch.manual_seed(seed)
    model = openai.CLIP(*ARCHITECTURES[name])
    for key, parameter in model.named_parameters():
        if key.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.5)
    openai.convert_weights(model)
    return model.state_dict()


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ARCHITECTURES)
    parser.add_argument("file", type=Path, help="a .safetensors file to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    from safetensors.torch import save

    with atomic_write(args.file, "wb") as file:
        file.write(save(build_random_clip(args.name, args.seed)))
    print(f"{args.file} written: {args.file.stat().st_size:,} bytes, random weights, seed {args.seed}")


if __name__ == "__main__":
    sys.exit(main())
