"""Export a run's class weights, and its image classifier as ONNX, for use without this repository.

    python tools/export_classifier.py output/imagenet/CoOp/rn50_16shots

writes to RUN/classifier (--out):

    class_weights.safetensors, class_weights.npz    weight (classes, embed_dim), bias (classes,)
    classifier.onnx                                 images (n, 3, size, size) -> logits, probabilities (n, classes)

An image's logits are weight @ feature + bias, with its feature normalized to length 1; their softmax gives the
probabilities. The metadata of each file, as JSON, are: the class names; the CLIP (name, checksum of its weights, logit
scale, which weight includes); the preprocessing (RGB; smaller edge resized to `size`, then a centre crop; or both edges
resized to `size` if `resize` is squash; scaled to [0, 1], minus `mean`, divided by `std`; all after INPUT.WHITE_LEVEL,
`white_level`, and INPUT.ORIENTATION, `orientation`). Each file is compared with PyTorch before it is kept.

The ONNX file needs `pip install onnx onnxscript onnxruntime`; without these packages only the class weights are
written, and the exit code is 2. Methods whose logits are not linear in the image feature, such as CoCoOp, are refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import command_line


@command_line()
def main(argv: list[str] | None = None) -> None:
    """Write the class weights (safetensors, npz) and the ONNX classifier of the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="MODEL_DIR", help="run of train.py; or a learned prompt alone, a folder or file")
    add("--out", type=Path, help="folder for the files (MODEL_DIR/classifier)")
    add("--load-epoch", type=int, metavar="N", help="epoch of the checkpoint (the best, else the newest)")
    add("--classes", nargs="+", default=[], metavar="NAME", help="class names that replace those of the run")
    add("--backbone", default="", help="for a learned prompt alone: its CLIP, such as RN50")
    add("--weights", default="", metavar="FILE", help="CLIP weights that replace those of the backbone")
    add("--template", default="", help="prompt with {} for the class name; for a run of CLIPFineTune or CLIPLoRA")
    args = parser.parse_args(argv)
    from inference.export import export_classifier
    from inference.trained_run import load_trainer
    from vlm.text.templates import check_template

    if args.template:
        check_template(args.template, "--template")

    folder = args.out or (args.run.parent if args.run.is_file() else args.run) / "classifier"
    templates = [args.template] if args.template else []
    model = args.load_epoch, args.weights, args.backbone
    export_classifier(load_trainer(args.run, args.classes, *model, templates, cuda=False), folder)


if __name__ == "__main__":
    sys.exit(main())
