"""Functions for small models on frozen image features: shots, validation features, training steps, class binding."""

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
    """Raise :class:`UserError` if MODEL.INIT_WEIGHTS is set, as the method computes its weights from the shots."""
    if cfg.MODEL.INIT_WEIGHTS:
        problem = f"{cfg.TRAINER.NAME} starts from the training images, not from MODEL.INIT_WEIGHTS"
        raise UserError(f"{problem}; to evaluate a finished run, use --eval-only --model-dir")


def collect_features(trainer: TrainerX, loader: Iterable[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the fp32 features (images, embed_dim), not normalised, and labels (images,) of a loader of features."""
    batches = [trainer.parse_batch_train(batch)[:2] for batch in loader]
    features, labels = (torch.cat(tensors) for tensors in zip(*batches, strict=True))
    return features.float(), labels


def build_shots_loader(trainer: TrainerX, augmented: bool) -> DataLoader:
    """Return a loader of the features of all training images, in their order.

    If ``augmented``, each pass has new random views by the training transforms; else the test transforms apply.
    """
    cfg, images = trainer.cfg, trainer.train_loader_x.dataset.dataset
    threads, batch_size = trainer.train_loader_x.dataset.threads, cfg.DATALOADER.TEST.BATCH_SIZE
    loader: DataLoader
    if augmented:
        loader = TrainLoader(images, batch_size=batch_size, num_workers=threads)
    else:
        source, transform = trainer.dm.dataset.train_x, trainer.test_loader.dataset.transform
        loader = build_data_loader(cfg, data_source=source, batch_size=batch_size, tfm=transform, is_train=False)
    assert trainer.feature_extractor is not None  # build_model of these methods sets it
    return build_feature_loader(loader, trainer.feature_extractor, "train")


def collect_validation_features(trainer: TrainerX) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the features (images, embed_dim), not normalised, and labels (images,) of the validation images.

    If there are none, or if some are test images (DATASET.VAL_IS_TEST), it prints a note and returns None.
    """
    if trainer.val_loader is None:
        print("There are no validation images to choose on")
        return None
    test = {item.impath for item in trainer.dm.dataset.test}
    if any(item.impath in test for item in trainer.dm.dataset.val):
        print("Nothing is chosen on the validation images: they are test images (DATASET.VAL_IS_TEST)")
        return None
    return collect_features(trainer, trainer.val_loader)


def cross_entropy_step(trainer: TrainerX, batch: dict) -> dict[str, float]:
    """Train on ``batch`` by the cross-entropy of ``model_inference``; return ``loss`` and ``acc`` (%).

    A trainer sets it as its ``forward_backward``.
    """
    image_features, label, _ = trainer.parse_batch_train(batch)
    output = trainer.model_inference(image_features)
    loss = F.cross_entropy(output, label)
    trainer.model_backward_and_update(loss)
    if trainer.batch_idx + 1 == trainer.num_batches:
        trainer.update_lr()
    return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}


def bind_classnames(model: nn.Module, classnames: Sequence[str], device: torch.device) -> None:
    """Add checksums of the class names to ``model``, which then refuses checkpoints of other names or another order."""
    model.register_buffer("classes", torch.tensor([derive_seed(name) for name in classnames], device=device))
    model.register_load_state_dict_pre_hook(_check_classnames)


def _check_classnames(model: nn.Module, state_dict: dict, prefix: str, *hook_args) -> None:
    """Add a load error if the class checksums in ``state_dict`` differ from ``model``'s (load-state-dict pre-hook)."""
    expected = model.get_buffer("classes")
    if not torch.equal(state_dict.setdefault(f"{prefix}classes", expected).to(expected), expected):
        error_messages = hook_args[-1]
        error_messages.append(
            "it learned other classes than these, or these in another order, and has weights for those alone"
        )
        state_dict |= {prefix + key: value for key, value in model.state_dict().items()}  # no errors of shapes as well


def score_candidates(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, float]]:
    """Return the score of each candidate model: accuracy (%), then the negative cross-entropy, which breaks ties.

    Ties are common: a few validation images give many candidates the same accuracy.

    Args:
        logits: (candidates, images, classes).
        labels: (images,).
    """
    accuracy = 100 * (logits.argmax(-1) == labels).double().mean(-1)
    loss = F.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none").mean(-1)
    return list(zip(accuracy.tolist(), (-loss).tolist(), strict=True))
