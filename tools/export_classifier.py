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
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dassl.utils import UserError, atomic_write, command_line, mkdir_if_missing
from inference.runs import trainer_of

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHTS, ONNX = "class_weights", "classifier.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Of the largest logit. In fp32, rounding adds up to some 1e-6 of it; an operation gone wrong to 1e-2 and more.
TOLERANCE = 1e-4
IMAGES = 4  # random ones to check with


def describe(trainer) -> dict:
    """What goes with the weights: class names, CLIP, preprocessing."""
    node = trainer.cfg.INPUT
    if "instance_norm" in node.TRANSFORMS:
        raise UserError(
            "the run has instance_norm in INPUT.TRANSFORMS, which a mean and a standard deviation do not tell"
        )
    normalized = "normalize" in node.TRANSFORMS
    weights = trainer.provenance["weights"]
    clip = getattr(getattr(trainer, "model", None), "clip", trainer.backbone.clip)  # the former was fine-tuned
    return {
        "trainer": trainer.cfg.TRAINER.NAME,
        "classnames": list(trainer.dm.dataset.classnames),
        "backbone": weights["backbone"],
        "weights_sha256": weights["sha256"],
        "logit_scale": round(clip.logit_scale.exp().item(), 6),
        "size": node.SIZE[0],
        "interpolation": node.INTERPOLATION,
        "resize": node.RESIZE,
        "mean": list(node.PIXEL_MEAN) if normalized else [0.0] * 3,
        "std": list(node.PIXEL_STD) if normalized else [1.0] * 3,
    }


def build_module(visual: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> nn.Module:
    """Images (n, 3, size, size) -> logits, probabilities (n, classes)."""
    from torch import nn

    from vlm.similarity import normalize

    class ImageClassifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = visual
            self.register_buffer("weight", weight)
            self.register_buffer("bias", bias)

        def forward(self, images):
            logits = normalize(self.visual(images)) @ self.weight.t() + self.bias
            return logits, logits.softmax(-1)

    return ImageClassifier().eval()


def compare(found: torch.Tensor, expected: torch.Tensor, what: str) -> str:
    """The largest difference, in words.

    Raises:
        UserError: it is more than ``TOLERANCE`` of the largest number.
    """
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise UserError(
            f"{what} differ from those of the run by up to {difference:.2g}, of {largest:.3g}; not written, as "
            f"more than {TOLERANCE:g} of the largest is not rounding"
        )
    return f"largest difference of logits {difference:.1e}, of {largest:.3g}"


def write_weights(out: Path, weight: torch.Tensor, bias: torch.Tensor, description: dict) -> None:
    import numpy as np
    from safetensors.torch import save

    tensors = {"weight": weight.contiguous(), "bias": bias.contiguous()}
    with atomic_write(out / f"{WEIGHTS}.safetensors", "wb") as file:
        file.write(save(tensors, as_json(description)))
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    with atomic_write(out / f"{WEIGHTS}.npz", "wb") as file:
        # Text as arrays of characters: no pickles.
        np.savez(file, **arrays, classnames=np.array(description["classnames"]), metadata=json.dumps(description))


def as_json(description: dict) -> dict[str, str]:
    return {key: json.dumps(value, ensure_ascii=False) for key, value in description.items()}


def write_onnx(out: Path, module: nn.Module, images: torch.Tensor, expected: torch.Tensor, description: dict) -> str:
    """Export, check with ONNX Runtime, and only then give the file its name; returns the result of the check."""
    import torch

    names = {"input_names": ["images"], "output_names": ["logits", "probabilities"]}
    # The exporter tells its steps, what it could not simplify, and what of PyTorch itself is deprecated.
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (images,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False, **names
        )
    program.model.metadata_props.update(as_json(description))
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{ONNX}.") as temporary:
        path = Path(temporary, ONNX)
        program.save(path, external_data=False)
        told = check_onnx(path, images, expected)
        os.replace(path, out / ONNX)
    return told


def check_onnx(path: Path, images: torch.Tensor, expected: torch.Tensor) -> str:
    """Compare the file's logits and probabilities of several images, and of one alone, with the ``expected`` logits."""
    import torch

    session = import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, probabilities = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
    alone = torch.from_numpy(session.run(["logits"], {"images": images[:1].numpy()})[0])
    compare(alone, expected[:1], f"the logits of {ONNX} for one image")
    compare(probabilities, expected.softmax(-1), f"the probabilities of {ONNX}")
    return compare(logits, expected, f"the logits of {ONNX}")


def export(run: Path, out: Path, epoch: int | None, classes: Sequence[str]) -> None:
    """Write the files.

    Raises:
        UserError: as :func:`inference.runs.trainer_of`; the method has no class weights; or, once the others are
            written, the packages for ONNX are not there.
    """
    import torch

    from inference.classifier import visual_of

    trainer = trainer_of(run, classes, epoch, cuda=False)
    description = describe(trainer)
    if not hasattr(trainer, "linear_head"):
        name = trainer.cfg.TRAINER.NAME
        raise UserError(f"{name} has no class weights: its logits are not linear in the image's feature")
    weight, bias = (tensor.detach().float() for tensor in trainer.linear_head())
    frozen = visual_of(trainer)
    visual = frozen or trainer.model.clip.visual  # one that was trained takes images itself
    module = build_module(visual, weight, bias)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, description["size"], description["size"], generator=generator)
    with torch.no_grad():
        expected = trainer.model_inference(frozen(images) if frozen else images).float()
        told = compare(module(images)[0], expected, "the logits by the class weights")
    mkdir_if_missing(out)
    (out / ONNX).unlink(missing_ok=True)  # an older one would not belong to these weights
    write_weights(out, weight, bias, description)
    for suffix in ("safetensors", "npz"):
        report(out / f"{WEIGHTS}.{suffix}", told)
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UserError(f"{out / ONNX} is not written: it needs pip install {' '.join(missing)}")
    report(out / ONNX, write_onnx(out, module, images, expected, description))


def report(path: Path, told: str) -> None:
    print(f"{path} written: {path.stat().st_size:,} bytes, {told}")


@command_line()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("run", type=Path, metavar="MODEL_DIR", help="folder of a run of train.py")
    add("--out", type=Path, help="folder for the files (MODEL_DIR/classifier)")
    add("--load-epoch", type=int, metavar="N", help="of the run; without it the best, else the newest")
    add("--classes", nargs="+", default=[], metavar="NAME", help="other classes for the same context")
    args = parser.parse_args(argv)
    export(args.run, args.out or args.run / "classifier", args.load_epoch, args.classes)


if __name__ == "__main__":
    sys.exit(main())
