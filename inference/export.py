"""Export of a run's trained model to files for other programs. Each file is compared with the run before it is kept."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data.features import StoredFeatures
from dassl.data.transforms import build_transform
from dassl.utils import (
    PIP_MIRROR_HINT,
    UserError,
    atomic_write,
    check_replaceable,
    mkdir_if_missing,
    write_error,
)
from vlm.clip.fingerprint import weights_fingerprint
from vlm.clip.load import THIRD_PARTY_MODULES, load_clip
from vlm.similarity import normalize
from vlm.text.encoder import build_text_encoder

from .classifier import get_clip, get_frozen_image_encoder
from .prompt_checkpoint import set_preprocessing
from .trained_run import CLIP_TRAINERS, load_classnames, load_run_cfg, load_trainer, suppress_stdout

WEIGHTS_NAME, ONNX_NAME = "class_weights", "classifier.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Texts whose features are compared: of several lengths, and none of them special to a data set.
SAMPLE_TEXTS = ("a photo of a cat.", "3", "an old map of the world", "two dogs that play on a beach in the evening")
FOLDER_PREFIXES = {"hf": "hf:", "open_clip": "open_clip:local-dir:"}  # by the library, what a folder's path follows
PLACEHOLDER_CLASSES = ("image", "picture")  # class names for a run on captions; its CLIP does not depend on them
# Largest tolerated differences, as shares of the largest expected value. Fp32 rounds sums to about 1e-6. Half-precision
# weights change features by 2e-4 (measured: a fine-tuned tiny) to 7e-4 (random ViT-B/32, RN50), or to infinity where a
# weight is beyond the range of half precision.
EXACT_TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2
PIXEL_KEYS = ("SIZE", "INTERPOLATION", "RESIZE", "PIXEL_MEAN", "PIXEL_STD")  # of INPUT: a test image as a tensor


def check_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str) -> str:
    """Return a sentence with the largest difference between ``actual`` and ``expected``.

    ``name`` is the noun for the values in messages, such as "logits". Raise ``UserError`` if the difference is
    NaN, or above ``tolerance`` times the largest absolute value in ``expected``.
    """
    difference, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= tolerance * largest:  # this form also refuses NaN
        raise UserError(
            f"{name} differ from those of the run by up to {difference:.2g}, of {largest:.3g}; not written, as more "
            f"than {tolerance:g} of the largest is not rounding"
        )
    return f"largest difference of {name} {difference:.1e}, of {largest:.3g}"


def random_images(size: int) -> torch.Tensor:
    """Return four images of normal noise (4, 3, size, size), the same in every call."""
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def check_linear_head(trainer) -> None:
    """Raise ``UserError`` if the trainer has no ``linear_head``, or only that of a method that it changes.

    A class that replaces ``build_model`` or ``model_inference`` has other logits than its parent.
    """
    name = trainer.cfg.TRAINER.NAME
    if not hasattr(trainer, "linear_head"):
        raise UserError(f"{name} has no class weights: its logits are not linear in image features")
    for class_ in type(trainer).__mro__:
        if "linear_head" in vars(class_):
            return
        if changed := {"build_model", "model_inference"} & vars(class_).keys():
            methods = " and ".join(sorted(changed))
            raise UserError(
                f"the class weights of {name} are not known: {class_.__name__} replaces {methods}, but inherits "
                "linear_head. Define linear_head in it, if the logits are linear in the image feature"
            )


class ImageClassifier(nn.Module):
    """An image encoder with a linear layer over its normalized features, as exported to ONNX."""

    def __init__(self, visual: nn.Module, weight: torch.Tensor, bias: torch.Tensor):
        """Store the image encoder ``visual``, ``weight`` (classes, embed_dim) and ``bias`` (classes,)."""
        super().__init__()
        self.visual = visual
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and probabilities, both (n, classes), of preprocessed images (n, 3, size, size)."""
        logits = normalize(self.visual(images)) @ self.weight.t() + self.bias
        return logits, logits.softmax(-1)


def export_classifier(trainer, out_folder: Path) -> None:
    """Write a run's class weights as safetensors and npz, and its image classifier as ONNX, to ``out_folder``.

    ``trainer`` is that of ``inference.trained_run.load_trainer``, on a CPU. A run on the data set Features has no
    image encoder, and gets no ONNX file.

    Raises:
        UserError: the method's logits are not linear in image features; exported logits differ from the run's; or,
            after the class weights are written, a package for ONNX is missing.
    """
    description = _build_metadata(trainer)
    check_linear_head(trainer)
    weight, bias = (tensor.detach().float().contiguous() for tensor in trainer.linear_head())
    if is_stored := isinstance(trainer.feature_extractor, StoredFeatures):
        features = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0))
        frozen, images = nn.Identity(), features
    else:
        frozen, images = get_frozen_image_encoder(trainer), random_images(description["size"])
    visual = frozen or getattr(trainer.model, "image_encoder", None) or trainer.model.clip.visual  # the trained one
    module = ImageClassifier(visual, weight, bias).eval()
    with torch.no_grad():
        expected = trainer.model_inference(frozen(images) if frozen else images).float()
        difference = check_close(module(images)[0], expected, EXACT_TOLERANCE, "logits by the class weights")
    mkdir_if_missing(out_folder)
    onnx_path = out_folder / ONNX_NAME
    check_replaceable(onnx_path, *(out_folder / f"{WEIGHTS_NAME}.{suffix}" for suffix in ("safetensors", "npz")))
    onnx_path.unlink(missing_ok=True)  # the file of an earlier export would not belong to the new weights
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in description.items()}
    with atomic_write(out_folder / f"{WEIGHTS_NAME}.safetensors", "wb") as file:
        file.write(save({"weight": weight, "bias": bias}, metadata))
    with atomic_write(out_folder / f"{WEIGHTS_NAME}.npz", "wb") as file:  # text as arrays of characters: no pickles
        names = np.array(description["classnames"])
        np.savez(file, weight=weight, bias=bias, classnames=names, metadata=json.dumps(description))
    for suffix in ("safetensors", "npz"):
        _print_written(out_folder / f"{WEIGHTS_NAME}.{suffix}", difference)
    if is_stored:
        print(f"{onnx_path} is not written: a run on the data set Features has no image encoder")
        return
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise UserError(f"{onnx_path} is not written: it needs pip install {' '.join(missing)} ({PIP_MIRROR_HINT})")
    _print_written(onnx_path, _write_onnx(onnx_path, module, images, expected, metadata))


def _build_metadata(trainer) -> dict:
    """Return the metadata of exported class weights: class names, CLIP, and, if there are images, their preprocessing.

    Raise ``UserError`` for instance normalization, which a mean and a standard deviation cannot describe.
    """
    node = trainer.cfg.INPUT
    if "instance_norm" in node.TRANSFORMS:
        raise UserError("INPUT.TRANSFORMS of the run has instance_norm: no mean and standard deviation describe it")
    mean, std = _get_normalization(node)
    weights = trainer.provenance["weights"]
    metadata = {
        "trainer": trainer.cfg.TRAINER.NAME,
        "classnames": list(trainer.dm.dataset.classnames),
        "backbone": weights["backbone"],
        "weights_sha256": weights["sha256"],
        "logit_scale": round(get_clip(trainer).logit_scale.exp().item(), 6),
    }
    if isinstance(trainer.feature_extractor, StoredFeatures):
        return metadata
    return metadata | {
        "orientation": node.ORIENTATION,  # of the images that the run was trained on, as white_level
        "white_level": node.WHITE_LEVEL,
        "size": node.SIZE[0],
        "interpolation": node.INTERPOLATION,
        "resize": node.RESIZE,
        "mean": mean,
        "std": std,
    }


def _get_normalization(node: CfgNode) -> tuple[list[float], list[float]]:
    """Return the mean and the standard deviation that normalize images, of the INPUT node of a run."""
    return ([*node.PIXEL_MEAN], [*node.PIXEL_STD]) if "normalize" in node.TRANSFORMS else ([0.0] * 3, [1.0] * 3)


def _write_onnx(path: Path, module: nn.Module, images: torch.Tensor, expected: torch.Tensor, metadata: dict) -> str:
    """Write ``module`` as an ONNX file with ``metadata``; return a sentence with the largest difference of its logits.

    Raise ``UserError``, and leave no file, if ONNX Runtime gives other logits than ``expected`` (n, classes), or
    other probabilities, for ``images`` (n, 3, size, size), or other logits for the first image alone.
    """
    names = {"input_names": ["images"], "output_names": ["logits", "probabilities"]}
    # The exporter logs its steps, missed simplifications and PyTorch's deprecations: nothing that a user can act on.
    for name in ("onnxscript", "onnx_ir", "torch.onnx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (images,), dynamo=True, dynamic_shapes=({0: "batch"},), **names)
    program.model.metadata_props.update(metadata)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{ONNX_NAME}.") as temporary:
        temporary_path = Path(temporary, ONNX_NAME)
        program.save(temporary_path, external_data=False)
        session = import_module("onnxruntime").InferenceSession(temporary_path, providers=["CPUExecutionProvider"])
        logits, probabilities = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        single = torch.from_numpy(session.run(["logits"], {"images": images[:1].numpy()})[0])
        check_close(single, expected[:1], EXACT_TOLERANCE, f"logits of {ONNX_NAME} for one image")
        check_close(probabilities, expected.softmax(-1), EXACT_TOLERANCE, f"probabilities of {ONNX_NAME}")
        difference = check_close(logits, expected, EXACT_TOLERANCE, f"logits of {ONNX_NAME}")
        os.replace(temporary_path, path)
    return difference


def _print_written(path: Path, difference: str) -> None:
    """Print that the file at ``path`` is written, its size, and the sentence ``difference``."""
    print(f"{path} written: {path.stat().st_size:,} bytes, {difference}")


def export_clip(run_folder: Path, out_path: Path | None, epoch: int | None) -> None:
    """Write the CLIP of a run of CLIP_TRAINERS: as a safetensors file, or if it is of another library, as its folder.

    A folder has the preprocessing of the run. A note names settings of the run that the file or folder cannot have.

    Args:
        out_path: path of the file, RUN/clip.safetensors if it is None; after an error, an older file there stays. Or
            path of the new folder, RUN/exported_clip if it is None.
        epoch: that of ``inference.trained_run.load_trainer``.

    Raises:
        UserError: as ``load_trainer``; the run is of another method; the features of what is written differ from the
            run's; or ``out_path`` has the suffix of the other kind, is a folder that exists, or cannot be written.
    """
    cfg = load_run_cfg(run_folder)
    node, (library, _, identifier) = cfg.MODEL.BACKBONE, cfg.MODEL.BACKBONE.NAME.partition(":")
    is_folder = library in THIRD_PARTY_MODULES and identifier != ""
    out_path = out_path or run_folder / ("exported_clip" if is_folder else "clip.safetensors")
    _check_out_path(out_path, library if is_folder else "")
    if cfg.TRAINER.NAME not in CLIP_TRAINERS:
        raise UserError(f"{run_folder}: {cfg.TRAINER.NAME} did not change CLIP: use the run's MODEL.BACKBONE instead")
    trainer = load_trainer(run_folder, load_classnames(run_folder) or PLACEHOLDER_CLASSES, epoch, cuda=False)
    clip = trainer.model.clip
    expected = _sample_features(clip)
    for module in [module for module in clip.modules() if is_parametrized(module)]:
        for name in list(module.parametrizations):  # low-rank updates (LoRA) become part of the weights
            remove_parametrizations(module, name, leave_parametrized=True)
    mkdir_if_missing(out_path.parent)
    try:
        with tempfile.TemporaryDirectory(dir=out_path.parent, prefix=f".{out_path.name}.") as temporary:
            path = Path(temporary, out_path.name)
            if is_folder:
                clip.visual.mean, clip.visual.std = map(tuple, _get_normalization(trainer.cfg.INPUT))
                clip.visual.resize = trainer.cfg.INPUT.RESIZE
                library_module = import_module(f"vlm.clip.{THIRD_PARTY_MODULES[library]}")
                library_module.save(clip, path, identifier, node.WEIGHTS)
                lines = _without_frames(_check_exported, path, FOLDER_PREFIXES[library], expected, trainer.cfg)
                lines = [f"{out_path} written; the backbone is {FOLDER_PREFIXES[library]}{out_path}", *lines]
            else:
                path.write_bytes(save({name: value.contiguous() for name, value in clip.state_dict().items()}))
                lines = _without_frames(_check_exported, path, "", expected, trainer.cfg)
                lines = [f"{out_path} written: {path.stat().st_size:,} bytes, {lines[0]}", *lines[1:]]
            os.replace(path, out_path)
    except OSError as error:
        raise write_error(out_path, error) from error
    print("\n".join(lines))


def _check_out_path(path: Path, library: str) -> None:
    """Raise ``UserError`` if ``path`` cannot be a new folder of ``library``'s CLIP; for "", a safetensors file."""
    is_file_name = path.suffix == ".safetensors"
    if library and path.exists():
        raise UserError(f"{path} is there already: remove it, or name another folder with --out")
    if library and is_file_name:
        raise UserError(f"--out {path} names a file; a CLIP of {library} becomes a folder: leave out the suffix")
    if not library and not is_file_name:
        raise UserError(f"--out {path} has an unknown suffix: the name must end in .safetensors to be loadable")


def _without_frames(check: Callable[..., list[str]], *arguments: object) -> list[str]:
    """Return ``check(*arguments)``; raise its UserError anew, without the frames of ``check``.

    The tensors in these frames are views of the file, which Windows could not remove while they exist.
    """
    try:
        return check(*arguments)
    except UserError as error:
        problem = str(error)
    raise UserError(problem)


def _check_exported(path: Path, prefix: str, expected: torch.Tensor, cfg: CfgNode) -> list[str]:
    """Return lines for the log on an exported CLIP; UserError if its features are not ``expected``.

    ``prefix`` is that of a folder (FOLDER_PREFIXES); "": OpenAI's CLIP in a weights file. ``cfg`` is that of the run.
    """
    loaded, weights = load_clip(f"{prefix}{path}") if prefix else load_clip("", str(path))
    features, notes = _sample_features(loaded), _compare_preprocessing(cfg, loaded.visual)
    if prefix:
        return [check_close(features, expected, EXACT_TOLERANCE, "features as in the folder"), *notes]
    rounded = check_close(features, expected, HALF_TOLERANCE, "features as loaded, in half precision")
    loaded.load_state_dict(weights)
    exact = check_close(_sample_features(loaded), expected, EXACT_TOLERANCE, "features as in the file")
    return [f"fingerprint of its weights {weights_fingerprint(weights)}", exact, rounded, *notes]


def _compare_preprocessing(cfg: CfgNode, visual: nn.Module) -> list[str]:
    """Return a note if predict.py prepares images for an exported CLIP otherwise than the run of ``cfg``; [] if not.

    ``visual`` is the image encoder as loaded. An image of noise shows differences in the tensors.
    """
    loaded = get_cfg_default()
    set_preprocessing(loaded, visual)
    loaded.INPUT.WHITE_LEVEL, loaded.INPUT.ORIENTATION = 0, "exif"  # the defaults of predict.py
    noise = np.random.default_rng(0).integers(0, 256, (3 * visual.input_resolution, 2 * visual.input_resolution, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    with suppress_stdout():
        tensors = [build_transform(each, is_train=False)(image) for each in (cfg, loaded)]
    pixel_keys = [key for key in PIXEL_KEYS if cfg.INPUT[key] != loaded.INPUT[key]] or ["TRANSFORMS"]
    keys = [key for key in ("WHITE_LEVEL", "ORIENTATION") if cfg.INPUT[key] != loaded.INPUT[key]]
    keys += [] if torch.equal(*tensors) else pixel_keys
    settings = "; ".join(f"INPUT.{key} is {loaded.INPUT[key]}, in the run {cfg.INPUT[key]}" for key in keys)
    return [f"Note: predict.py prepares images for it otherwise than the run: {settings}"] if keys else []


@torch.no_grad()
def _sample_features(clip: nn.Module) -> torch.Tensor:
    """Return normalized features (8, embed_dim) of ``random_images``, the same each time, then ``SAMPLE_TEXTS``."""
    encoder = build_text_encoder(clip)
    images = clip.visual(random_images(clip.visual.input_resolution))
    return normalize(torch.cat([images, encoder.encode(encoder.tokenize(list(SAMPLE_TEXTS)))]))
