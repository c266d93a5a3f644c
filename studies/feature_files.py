"""Making files of features (:mod:`datasets.feature_file`): from a data set of images, from caches of Tip-Adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import train
from dassl import engine
from dassl.utils import UserError, error_reason, read_text
from dassl.utils.safe_load import safe_torch_load
from datasets.feature_file import FeatureFile, write_feature_file
from inference.prompt_checkpoint import set_preprocessing
from trainers.shots import build_shots_loader, collect_features
from vlm.clip.load import load_cached_clip


def export_features(arguments: Sequence[str], path: Path) -> FeatureFile:
    """Write the features of a data set, and text features of its template, to ``path``; return the file's content.

    Args:
        arguments: those of train.py, which name the data set and the backbone. INPUT is that of the backbone's test
            images. With NUM_SHOTS, the training features are a draw of SEED; else they are all.

    Raises :class:`UserError` as ZeroshotCLIP, or if ``path`` has another suffix.
    """
    cfg = train.setup_cfg(train.parse_args(["--trainer", "ZeroshotCLIP", *arguments]))
    cfg.defrost()
    with torch.random.fork_rng(devices=[]):
        clip, _ = load_cached_clip(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WEIGHTS, "fp32", "cpu")
    set_preprocessing(cfg, clip.visual)
    trainer, shots = engine.build_trainer(cfg), cfg.DATASET.NUM_SHOTS
    loaders = {f"train{shots if shots >= 1 else ''}": build_shots_loader(trainer, augmented=False)}
    loaders |= {"val": trainer.val_loader, "test": trainer.test_loader}
    arrays: dict[str, Any] = {
        "text_features": trainer.class_features.float().cpu(),
        "backbone": cfg.MODEL.BACKBONE.NAME,
    }
    arrays |= {
        "class_names": trainer.dm.dataset.classnames,
        "logit_scale": trainer.backbone.clip.logit_scale.exp().item(),
    }
    for split, loader in loaders.items():
        if loader is not None:
            arrays[f"{split}_features"], arrays[f"{split}_labels"] = (
                t.cpu() for t in collect_features(trainer, loader)
            )
    return write_feature_file(path, arrays)


def import_cache(
    folder: Path, path: Path, classes: Sequence[str] = (), text: Path | None = None, backbone: str = ""
) -> FeatureFile:
    """Write a folder of Tip-Adapter's caches as a file of features to ``path``; return the file's content.

    The caches (utils.py of Tip-Adapter, APE) are ``keys_<N>shots.pt`` (dim, n) or (n, dim), ``values_<N>shots.pt``
    (n, classes), one-hot, and ``{val,test}_{f,l}.pt``.

    Args:
        classes: class names, or the name of a text file with one a line; empty for "class 0", ….
        text: file of text features (dim, classes), or (classes, dim); None: the folder's ``text_weights*.pt``, if any.

    Raises :class:`UserError` if a file is missing, damaged, or not of that form. Nothing is unpickled.
    """
    arrays: dict[str, Any] = {"backbone": backbone}
    for split in ("test", "val") if (folder / "val_f.pt").is_file() else ("test",):
        arrays[f"{split}_features"] = _load_tensor(folder / f"{split}_f.pt").float()
        arrays[f"{split}_labels"] = _load_tensor(folder / f"{split}_l.pt")
    dim = arrays["test_features"].shape[-1]
    for file in folder.glob("keys_*shots.pt"):
        shots, keys = file.stem[len("keys_") : -len("shots")], _load_tensor(file).float()
        arrays[f"train{shots}_features"] = keys.t() if len(keys) == dim else keys  # Tip-Adapter's are transposed
        arrays[f"train{shots}_labels"] = _load_tensor(folder / f"values_{shots}shots.pt").float().argmax(-1)
    texts = [text] if text else sorted(folder.glob("text_weights*.pt"))
    if len(texts) > 1:
        raise UserError(
            f"{folder} has several files of text features: name one of {', '.join(map(str, texts))} (--text)"
        )
    for file in texts:
        weights = _load_tensor(file).float()
        arrays["text_features"] = weights.t() if len(weights) == dim else weights
    if len(classes) == 1 and (listing := Path(classes[0])).is_file():
        classes = [line.strip() for line in read_text(listing).splitlines() if line.strip()]
    return write_feature_file(path, arrays | ({"class_names": list(classes)} if classes else {}))


def _load_tensor(file: Path) -> torch.Tensor:
    """Return the tensor in a file of torch.save, on the CPU; UserError if it holds anything else."""
    try:
        content = safe_torch_load(file)
    except UserError:
        raise
    except Exception as error:  # torch.load has no class of its own for a damaged file
        raise UserError(f"cannot read {file} as a file of torch.save: {error_reason(error)}") from error
    if not isinstance(content, torch.Tensor):
        raise UserError(f"{file} holds a {type(content).__name__}, and must hold one tensor")
    return content
