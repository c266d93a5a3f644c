"""What a run learned, for use without this repository: its class weights, and an image classifier for ONNX.

    python tools/export_classifier.py output/imagenet/CoOp/rn50_16shots

writes to RUN/classifier (--out):

    class_weights.safetensors, class_weights.npz    weight (classes, embed_dim), bias (classes,)
    classifier.onnx                                 images (n, 3, size, size) -> logits, probabilities (n, classes)

An image's logits are weight @ feature + bias, its feature brought to length 1; their softmax are the probabilities.
The metadata of each file have, as JSON: the class names; the CLIP (name, checksum of its weights, scale of its logits,
which is in weight already); how images come about: RGB, resized to `size` at the smaller edge and cropped to the centre
(where `resize` is squash: resized to it at both edges), scaled to [0, 1], minus `mean`, divided by `std`. Everything is
checked against PyTorch before it gets its name.

The ONNX file needs `pip install onnx onnxscript onnxruntime`; without these the others are written, and the exit code
is 2. A method whose logits are not linear in the image's feature, such as CoCoOp, is refused.
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
    add("--out", type=Path, help="folder for the files (MODEL_DIR/classifier)")
    add("--load-epoch", type=int, metavar="N", help="of the run; without it the best, else the newest")
    add("--classes", nargs="+", default=[], metavar="NAME", help="other classes for the same context")
    args = parser.parse_args(argv)
    from inference.export import export_classifier

    export_classifier(args.run, args.out or args.run / "classifier", args.load_epoch, args.classes)


if __name__ == "__main__":
    sys.exit(main())
