"""Making files of features (``datasets.feature_file``): from a data set of images, from caches of Tip-Adapter."""

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

    Raises ``UserError`` as ZeroshotCLIP, or if ``path`` has another suffix.
    """
    cfg = train.setup_cfg(train.parse_args(["--trainer", "ZeroshotCLIP", *arguments]))
    cfg.defrost()
    with torch.random.fork_rng(devices=[]):
        clip, _ = load_cached_clip(cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.WEIGHTS, "fp32", "cpu")
    set_preprocessing(cfg, clip.visual)
    trainer, shots = engine.build_trainer(cfg), cfg.DATASET.NUM_SHOTS
    arrays: dict[str, Any] = {
        "class_names": trainer.dm.dataset.classnames,
        "text_features": trainer.class_features.float().cpu(),
        "logit_scale": trainer.backbone.clip.logit_scale.exp().item(),
        "backbone": cfg.MODEL.BACKBONE.NAME,
    }
    loaders = {f"train{shots if shots >= 1 else ''}": build_shots_loader(trainer, augmented=False)}
    loaders |= {"val": trainer.val_loader, "test": trainer.test_loader}
    for split, loader in loaders.items():
        if loader is not None:
            features, labels = collect_features(trainer, loader)
            arrays |= {f"{split}_features": features.cpu(), f"{split}_labels": labels.cpu()}
    return write_feature_file(path, arrays)


def import_cache(
    folder: Path, path: Path, classes: Path | None = None, text: Path | None = None, backbone: str = ""
) -> FeatureFile:
    """Write a folder of Tip-Adapter's caches as a file of features to ``path``; return the file's content.

    The caches (utils.py of Tip-Adapter, APE) are ``keys_<N>shots.pt`` (dim, n) or (n, dim), ``values_<N>shots.pt``
    (n, classes), one-hot, and ``{val,test}_{f,l}.pt``.

    Args:
        classes: text file with a class name a line; None: "class 0", ….
        text: file of text features (dim, classes), as in ``text_weights*.pt``, or (classes, dim).

    Raises ``UserError`` if a file is missing, damaged, or not of that form. Nothing is unpickled.
    """
    arrays: dict[str, Any] = {"backbone": backbone}
    for split in ("test", "val") if (folder / "val_f.pt").is_file() else ("test",):
        arrays[f"{split}_features"] = _load_tensor(folder / f"{split}_f.pt").float()
        arrays[f"{split}_labels"] = _load_tensor(folder / f"{split}_l.pt")
    dim = arrays["test_features"].shape[-1]

    def load_rows(file: Path) -> torch.Tensor:
        """Return features as rows (n, dim); Tip-Adapter stores them as columns."""
        features = _load_tensor(file).float()
        return features.t() if len(features) == dim else features

    for file in folder.glob("keys_*shots.pt"):
        shots = file.stem[len("keys_") : -len("shots")]
        arrays[f"train{shots}_features"] = load_rows(file)
        arrays[f"train{shots}_labels"] = _load_tensor(folder / f"values_{shots}shots.pt").float().argmax(-1)
    if text:
        arrays["text_features"] = load_rows(text)
    if classes:
        arrays["class_names"] = [name for line in read_text(classes).splitlines() if (name := line.strip())]
    return write_feature_file(path, arrays)


def _load_tensor(file: Path) -> torch.Tensor:
    """Return the tensor in a file of torch.save, on the CPU; UserError if it holds anything else."""
    try:
        return torch.as_tensor(safe_torch_load(file))
    except Exception as error:  # torch.load has no class of its own for a damaged file
        raise UserError(f"cannot read {file} as one tensor in a file of torch.save: {error_reason(error)}") from error
