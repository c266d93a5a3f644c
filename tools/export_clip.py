"""Export the CLIP of a run of CLIPFineTune or CLIPLoRA, in the format of the library that the original comes from.

    python tools/export_clip.py output/pairs/lora                   # writes output/pairs/lora/clip.safetensors

    python train.py … MODEL.BACKBONE.WEIGHTS output/pairs/lora/clip.safetensors
    python predict.py IMAGE… --classes cup cat --weights output/pairs/lora/clip.safetensors

A CLIP of open_clip or transformers (such as Chinese-CLIP) becomes a folder, which this library, too, can load:

    python tools/export_clip.py output/pairs/chinese                # writes output/pairs/chinese/exported_clip

    python predict.py IMAGE… --classes 杯子 猫 --backbone hf:output/pairs/chinese/exported_clip

For OpenAI's architectures and tiny, the file has OpenAI's parameter names, in fp32; low-rank updates (LoRA) are merged
into the weights. Loading the file here rounds most weights to half precision, as OpenAI's constructor does. Before the
file is kept, features of random images and sample texts are compared with those of the run: by the weights in the file,
and by the weights as loaded. The printed fingerprint is also in the result.json of every run that uses the file. A
folder keeps single precision, and its features are compared, too. It has the run's INPUT.PIXEL_MEAN, PIXEL_STD and
RESIZE. A note names keys of INPUT that a file or folder cannot have. In a folder of transformers, the tokenizer is
missing if it is CLIP's own, which is the same for all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import command_line


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Write the fine-tuned CLIP of the run that the command line names to a safetensors file or a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="MODEL_DIR", help="folder of a run of train.py")
    text = "path of the new file (MODEL_DIR/clip.safetensors), or of the new folder (MODEL_DIR/exported_clip)"
    add("--out", type=Path, metavar="PATH", help=text)
    add("--load-epoch", type=int, metavar="N", help="epoch of the checkpoint (the best, else the newest)")
    args = parser.parse_args(argv)
    from inference.export import export_clip

    export_clip(args.run, args.out, args.load_epoch)


if __name__ == "__main__":
    sys.exit(main())
