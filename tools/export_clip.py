"""The whole CLIP that a run of CLIPFineTune learned, as one file that takes the place of the one it began with.

    python tools/export_clip.py output/pairs/lora                   # writes output/pairs/lora/clip.safetensors

    python train.py … MODEL.BACKBONE.WEIGHTS output/pairs/lora/clip.safetensors
    python predict.py IMAGE… --classes cup cat --weights output/pairs/lora/clip.safetensors

The file has OpenAI's names, in fp32; low-rank updates (LoRA) are part of the weights. Whoever loads it here gets most
of them rounded to half precision, as OpenAI's constructor does. Before the file gets its name, it is loaded, and its
features of random images and some texts are compared with those of the run: with the weights as they are in the file,
which must give the same, and rounded. The fingerprint is the one that the runs with the file have in result.json.

CLIPs of OpenAI's architectures, and tiny, alone: open_clip and transformers have files of their own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import command_line


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="MODEL_DIR", help="folder of a run of train.py")
    add("--out", type=Path, metavar="FILE", help="where to write it (MODEL_DIR/clip.safetensors)")
    add("--load-epoch", type=int, metavar="N", help="of the run; without it the best, else the newest")
    args = parser.parse_args(argv)
    from inference.export import export_clip

    export_clip(args.run, args.out or args.run / "clip.safetensors", args.load_epoch)


if __name__ == "__main__":
    sys.exit(main())
