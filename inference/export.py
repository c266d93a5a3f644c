"""What a run learned, as files for use elsewhere; each is compared with the run before it gets its name."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from dassl.utils import UserError, atomic_write, mkdir_if_missing
from vlm.clip.fingerprint import fingerprint
from vlm.clip.load import load_clip
from vlm.openai import CLIP
from vlm.similarity import normalize
from vlm.text.encoder import build_text_encoder

from .classifier import get_frozen_image_encoder
from .trained_run import load_classnames, load_run_cfg, load_trainer

WEIGHTS_NAME, ONNX_NAME = "class_weights", "classifier.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
SAMPLE_TEXTS = ("a photo of a cat.", "3", "an old map of the world", "two dogs that play on a beach in the evening")
PLACEHOLDER_CLASSES = ("image", "picture")  # a run on captions has no classes; nothing of its CLIP depends on them
# Shares of the largest number. Fp32 rounds sums to some 1e-6. Weights in half precision change features by 2e-4
# (measured: a fine-tuned tiny) to 7e-4 (random ViT-B/32, RN50); one that is too large for it becomes infinite.
EXACT_TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2


def check_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> str:
    """Return the largest difference in words; :class:`UserError` where it is more than rounding."""
    difference, largest = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= tolerance * largest:  # nor if not a number
        raise UserError(
            f"{what} differ from those of the run by up to {difference:.2g}, of {largest:.3g}; not written, as more "
            f"than {tolerance:g} of the largest is not rounding"
        )
    return f"largest difference of {what} {difference:.1e}, of {largest:.3g}"


def random_images(size: int) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


class ImageClassifier(nn.Module):
    """Images (n, 3, size, size) -> logits, probabilities (n, classes)."""

    def __init__(self, visual: nn.Module, weight: torch.Tensor, bias: torch.Tensor):
        super().__init__()
        self.visual = visual
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = normalize(self.visual(images)) @ self.weight.t() + self.bias
        return logits, logits.softmax(-1)


def export_classifier(run: Path, out: Path, epoch: int | None, classes: Sequence[str]) -> None:
    """Write the class weights of a run, and its image classifier as ONNX, to the folder ``out``.

    Raises:
        UserError: as :func:`inference.trained_run.load_trainer`; the method has no class weights; or, once the others are
            written, the packages for ONNX are not there.
    """
    trainer = load_trainer(run, classes, epoch, cuda=False)
    description = _build_metadata(trainer)
    if not hasattr(trainer, "linear_head"):
        raise UserError(f"{trainer.cfg.TRAINER.NAME} has no class weights: its logits are not linear in image features")
    weight, bias = (tensor.detach().float().contiguous() for tensor in trainer.linear_head())
    frozen = get_frozen_image_encoder(trainer)
    visual = frozen or trainer.model.clip.visual  # a method that trains the encoder takes images
    module = ImageClassifier(visual, weight, bias).eval()
    images = random_images(description["size"])
    with torch.no_grad():
        expected = trainer.model_inference(frozen(images) if frozen else images).float()
        told = check_close(module(images)[0], expected, EXACT_TOLERANCE, "logits by the class weights")
    mkdir_if_missing(out)
    (out / ONNX_NAME).unlink(missing_ok=True)  # an older one would not belong to these weights
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in description.items()}
    with atomic_write(out / f"{WEIGHTS_NAME}.safetensors", "wb") as file:
        file.write(save({"weight": weight, "bias": bias}, metadata))
    with atomic_write(out / f"{WEIGHTS_NAME}.npz", "wb") as file:  # text as arrays of characters: no pickles
        names = np.array(description["classnames"])
        np.savez(file, weight=weight, bias=bias, classnames=names, metadata=json.dumps(description))
    for suffix in ("safetensors", "npz"):
        _print_written(out / f"{WEIGHTS_NAME}.{suffix}", told)
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise UserError(f"{out / ONNX_NAME} is not written: it needs pip install {' '.join(missing)}")
    _print_written(out / ONNX_NAME, _write_onnx(out, module, images, expected, metadata))


def _build_metadata(trainer) -> dict:
    """Return what goes with the weights: class names, CLIP, preprocessing."""
    node = trainer.cfg.INPUT
    if "instance_norm" in node.TRANSFORMS:
        raise UserError("INPUT.TRANSFORMS of the run has instance_norm, which no mean and standard deviation tell")
    normalized, weights = "normalize" in node.TRANSFORMS, trainer.provenance["weights"]
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


def _write_onnx(out: Path, module: nn.Module, images: torch.Tensor, expected: torch.Tensor, metadata: dict) -> str:
    """Export, compare several images and one alone by ONNX Runtime, and only then give the file its name."""
    names = {"input_names": ["images"], "output_names": ["logits", "probabilities"]}
    # The exporter tells its steps, what it could not simplify, and what of PyTorch itself is deprecated.
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (images,), dynamo=True, dynamic_shapes=({0: "batch"},), **names)
    program.model.metadata_props.update(metadata)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{ONNX_NAME}.") as temporary:
        path = Path(temporary, ONNX_NAME)
        program.save(path, external_data=False)
        session = import_module("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
        logits, probabilities = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        alone = torch.from_numpy(session.run(["logits"], {"images": images[:1].numpy()})[0])
        check_close(alone, expected[:1], EXACT_TOLERANCE, f"logits of {ONNX_NAME} for one image")
        check_close(probabilities, expected.softmax(-1), EXACT_TOLERANCE, f"probabilities of {ONNX_NAME}")
        told = check_close(logits, expected, EXACT_TOLERANCE, f"logits of {ONNX_NAME}")
        os.replace(path, out / ONNX_NAME)
    return told


def _print_written(path: Path, told: str) -> None:
    print(f"{path} written: {path.stat().st_size:,} bytes, {told}")


def export_clip(run: Path, out: Path, epoch: int | None) -> None:
    """Write the CLIP of a run of CLIPFineTune as safetensors; if anything is wrong, what was there stays.

    Raises:
        UserError: as :func:`inference.trained_run.load_trainer`; the run is of another method, or its CLIP not of OpenAI's kind;
            the file, loaded as runs load it, gives other features.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: the name must end in .safetensors, by which the file is known when it is loaded")
    cfg = load_run_cfg(run)
    if cfg.TRAINER.NAME != "CLIPFineTune":
        raise UserError(f"{run}: {cfg.TRAINER.NAME} did not change CLIP: its backbone is what MODEL.BACKBONE names")
    clip = load_trainer(run, load_classnames(run) or PLACEHOLDER_CLASSES, epoch, cuda=False).model.clip
    if type(clip) is not CLIP:
        name = cfg.MODEL.BACKBONE.NAME
        raise UserError(f"{name} is not of OpenAI's architectures; only theirs, and tiny, can be exported")
    expected = _sample_features(clip)
    for module in [module for module in clip.modules() if is_parametrized(module)]:
        for name in list(module.parametrizations):  # low-rank updates become part of the weights
            remove_parametrizations(module, name, leave_parametrized=True)
    content = save({name: value.contiguous() for name, value in clip.state_dict().items()})
    mkdir_if_missing(out.parent)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            path = Path(temporary, out.name)
            path.write_bytes(content)
            loaded, weights = load_clip("", str(path))
            rounded = check_close(
                _sample_features(loaded), expected, HALF_TOLERANCE, "features as loaded, in half precision"
            )
            loaded.load_state_dict(weights)
            exact = check_close(_sample_features(loaded), expected, EXACT_TOLERANCE, "features as in the file")
            os.replace(path, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    print(f"{out} written: {len(content):,} bytes, fingerprint of its weights {fingerprint(weights)}")
    print(f"{exact}\n{rounded}")


@torch.no_grad()
def _sample_features(clip: nn.Module) -> torch.Tensor:
    """Return features (n, embed_dim) of random images and of some texts, of length 1."""
    encoder = build_text_encoder(clip)
    images = clip.visual(random_images(clip.visual.input_resolution))
    return normalize(torch.cat([images, encoder.encode(encoder.tokenize(list(SAMPLE_TEXTS)))]))
