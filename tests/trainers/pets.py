"""Training-free methods on the real CLIP features of ../shared, whose trainers get features in place of data."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import torch

from dassl.config import get_cfg_default
from tests.common import SHARED
from trainers import shots as shots_module
from trainers.tip_adapter import TipAdapter
from vlm.similarity import compute_logits, normalize


def measure_test_accuracy(method: type, shots: int, protocol: str, monkeypatch) -> float:
    """Return the test accuracy (%) of a method, fitted to the draw of the file and chosen on min(shots, 4) images."""
    with np.load(SHARED / "data/clip-vitb32-pets24.npz") as arrays:
        data = {key: torch.from_numpy(array) for key, array in arrays.items() if array.dtype.kind in "fi"}
    features = {name: normalize(data[f"{name}_features"].float()) for name in (f"train{shots}", "val", "test")}
    labels = {name: data[f"{name}_labels"].long() for name in features}
    classes = range(24)
    chosen = torch.cat([torch.where(labels["val"] == label)[0][: min(shots, 4)] for label in classes])
    validation = None if protocol == "none" else (features["val"][chosen], labels["val"][chosen])
    monkeypatch.setattr(shots_module, "collect_validation_features", lambda _: validation)
    train = features[f"train{shots}"], labels[f"train{shots}"]
    monkeypatch.setattr(f"{method.__module__}.collect_shots", lambda *_, **options: train)

    trainer = method.__new__(method)
    trainer.cfg = get_cfg_default()
    method.extend_cfg(trainer.cfg)
    trainer.cfg.TRAINER.NAME = method.__name__
    scale = torch.tensor(math.log(100))
    trainer.backbone = SimpleNamespace(
        clip=SimpleNamespace(logit_scale=scale), logits=lambda f, W: compute_logits(f, W, scale)
    )
    trainer.class_features, trainer.num_classes = data["text_features"], len(classes)
    trainer.lab2cname = {label: str(label) for label in classes}
    trainer.dm = SimpleNamespace(dataset=SimpleNamespace(classnames=[*trainer.lab2cname.values()]))
    trainer.model = SimpleNamespace(alpha=torch.zeros(()), beta=torch.zeros(()))
    if method is TipAdapter:
        trainer.model.keys, trainer.model.values = train[0].clone(), torch.zeros(len(train[0]), len(classes))
        trainer.fill_cache()
    trainer.run_epoch()
    predictions = trainer.model_inference(features["test"]).argmax(1)
    return 100 * (predictions == labels["test"]).double().mean().item()
