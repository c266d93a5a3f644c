"""What small models on top of frozen image features share: the features of the shots and of validation images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from dassl.data.data_manager import TrainLoader, build_data_loader
from dassl.data.features import build_feature_loader
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.utils import UserError, derive_seed


def check_no_init_weights(cfg: CfgNode) -> None:
    """Raise :class:`UserError` for MODEL.INIT_WEIGHTS, where a method starts from the shots."""
    if cfg.MODEL.INIT_WEIGHTS:
        begins = f"{cfg.TRAINER.NAME} starts from the training images, not from MODEL.INIT_WEIGHTS"
        raise UserError(f"{begins}; to evaluate a finished run, use --eval-only --model-dir")


def collect_features(trainer: TrainerX, loader: Iterable[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (images, embed_dim), in fp32, and labels (images,) of a loader's images."""
    batches = [trainer.parse_batch_train(batch)[:2] for batch in loader]
    features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return features.float(), labels


def build_shots_loader(trainer: TrainerX, augmented: bool) -> DataLoader:
    """Return a loader of features of the training images, in their order; of new random views in each pass, or as test
    images are."""
    cfg, images = trainer.cfg, trainer.train_loader_x.dataset.dataset
    threads, batch_size = trainer.train_loader_x.dataset.threads, cfg.DATALOADER.TEST.BATCH_SIZE
    if augmented:
        loader = TrainLoader(images, batch_size=batch_size, num_workers=threads)
    else:
        source, transform = trainer.dm.dataset.train_x, trainer.test_loader.dataset.transform
        loader = build_data_loader(cfg, data_source=source, batch_size=batch_size, tfm=transform, is_train=False)
    return build_feature_loader(loader, trainer.feature_extractor, "train")


def collect_validation_features(trainer: TrainerX) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return features and labels of the validation images; None where there are none to choose on."""
    if trainer.val_loader is None:
        print("There are no validation images to choose on")
        return None
    test = {item.impath for item in trainer.dm.dataset.test}
    if any(item.impath in test for item in trainer.dm.dataset.val):
        print("Nothing is chosen on the validation images: they are test images (DATASET.VAL_IS_TEST)")
        return None
    return collect_features(trainer, trainer.val_loader)


def cross_entropy_step(trainer: TrainerX, batch: dict) -> dict[str, float]:
    """Step by the cross-entropy of a trainer's logits: its ``forward_backward``."""
    image_features, label, _ = trainer.parse_batch_train(batch)
    output = trainer.model_inference(image_features)
    loss = F.cross_entropy(output, label)
    trainer.model_backward_and_update(loss)
    if trainer.batch_idx + 1 == trainer.num_batches:
        trainer.update_lr()
    return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}


def bind_classnames(model: nn.Module, classnames: Sequence[str], device: torch.device) -> None:
    """Let checkpoints of ``model`` go with these classes alone, in this order: they hold a number of each name."""
    model.register_buffer("classes", torch.tensor([derive_seed(name) for name in classnames], device=device))
    model.register_load_state_dict_pre_hook(_check_classnames)


def _check_classnames(model: nn.Module, state_dict: dict, prefix: str, *others) -> None:
    if not torch.equal(state_dict.setdefault(f"{prefix}classes", model.classes).to(model.classes), model.classes):
        others[-1].append("it learned other classes than these, or these in another order")


def score_candidates(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, float]]:
    """Return what candidates are compared by: accuracy (%), then minus the cross-entropy.

    A few validation images give many candidates the same accuracy.

    Args:
        logits: (candidates, images, classes).
        labels: (images,).
    """
    accuracy = 100 * (logits.argmax(-1) == labels).double().mean(-1)
    loss = F.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none").mean(-1)
    return list(zip(accuracy.tolist(), (-loss).tolist(), strict=True))
