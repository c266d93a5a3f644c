"""Write random weights for a published CLIP architecture: for trials and speed measurements without a download.

    python tools/random_weights.py RN50 /tmp/rn50_random.safetensors --seed 0

Its accuracies are at chance level. Use the file with MODEL.BACKBONE.WEIGHTS.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import atomic_write, command_line

# Published sizes as arguments of OpenAI's CLIP class: embed_dim, image_resolution, vision_layers, vision_width,
# vision_patch_size, context_length, vocab_size, transformer_width, transformer_heads, transformer_layers
ARCHITECTURES = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12),
    "RN101": (512, 224, (3, 4, 23, 3), 64, None, 77, 49408, 512, 8, 12),
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
}


def build_random_clip(name: str, seed: int) -> dict:
    """Return the state dict of CLIP ``name``, a key of ARCHITECTURES, with half-precision random weights from ``seed``.

    The weights of ``bn3``, which start at zero, become 0.5, so that every residual branch contributes.
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
    """Write random weights of the architecture that the command line names to a safetensors file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=ARCHITECTURES, help="a CLIP architecture")
    parser.add_argument("file", type=Path, help="path of the new .safetensors file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (0)")
    args = parser.parse_args(argv)
    from safetensors.torch import save

    with atomic_write(args.file, "wb") as file:
        file.write(save(build_random_clip(args.name, args.seed)))
    print(f"{args.file} written: {args.file.stat().st_size:,} bytes, random weights, seed {args.seed}")


if __name__ == "__main__":
    sys.exit(main())
