"""What small models on top of frozen image features share: the features of the shots, and validation images to choose
on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.data.data_manager import TrainLoader, build_data_loader
from dassl.data.feature_loader import FeatureLoader
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, derive_seed, load_pretrained_weights
from vlm.openai import CLIP

from .clip_trainer import CLIPTrainer

PRECISION = "fp16"  # of CLIP, as in CoOp, so that they share its image features; what is trained is fp32


class FeatureTrainer(CLIPTrainer):
    """Trains what ``head`` returns: step by step, or at once, which counts as one epoch."""

    frozen_image_encoder = True
    head_name = ""  # that it is registered under
    by_steps = True  # False: there is no optimizer, and run_epoch does it all
    own_classes = False  # True: what is learned goes with the classes of training alone
    takes_weights = False  # True: training can start from MODEL.INIT_WEIGHTS

    def head(self, clip: CLIP) -> nn.Module:
        """The model on top of the features; ``model_inference`` uses it."""
        raise NotImplementedError

    def check_cfg(self, cfg: CfgNode) -> None:
        if cfg.MODEL.INIT_WEIGHTS and not self.takes_weights:
            raise UserError(
                f"{cfg.TRAINER.NAME} starts from the training images, not from MODEL.INIT_WEIGHTS; to evaluate a "
                "finished run, use --eval-only --model-dir"
            )

    def build_model(self) -> None:
        self.model = self.head(self.load_clip(PRECISION)).to(self.device)
        if self.own_classes:
            bind_classes(self.model, self.dm.dataset.classnames)
        if self.cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, self.cfg.MODEL.INIT_WEIGHTS)
        self.optim = self.sched = None
        if self.by_steps:
            self.optim = build_optimizer(self.model, self.cfg.OPTIM)
            self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        else:
            self.max_epoch = 1
        self.register_model(self.head_name, self.model, self.optim, self.sched)
        self.report_parameters()

    def forward_backward(self, batch: dict) -> dict[str, float]:
        image_features, label, _ = self.parse_batch_train(batch)
        output = self.model_inference(image_features)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}

    # ---- features of whole splits ----

    def features_of(self, loader: Iterable[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (images, embed_dim), in fp32, and labels (images,) of a loader's images that can be read."""
        batches = [self.parse_batch_train(batch)[:2] for batch in loader]
        features, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return features.float(), labels

    def shots(self, augmented: bool) -> FeatureLoader:
        """Each training image once, in their order: ``augmented`` with the draws of a new epoch in each pass, as the
        training loader has them, or else as test images are."""
        training, node = self.train_loader_x, self.cfg.DATALOADER.TEST
        if augmented:
            loader = TrainLoader(training.dataset, batch_size=node.BATCH_SIZE, num_workers=training.loader.num_workers)
        else:
            loader = build_data_loader(
                self.cfg,
                data_source=self.dm.dataset.train_x,
                batch_size=node.BATCH_SIZE,
                tfm=self.test_loader.dataset.transform,
                is_train=False,
            )
        return self.bad_images.left_out_of("train_x", FeatureLoader(loader, training.source, "train"))

    def validation(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Features and labels of the validation images; None where there are none to choose on, which the log says."""
        if self.val_loader is None:
            print("There are no validation images to choose on")
            return None
        test = {item.impath for item in self.dm.dataset.test}
        if any(item.impath in test for item in self.dm.dataset.val):
            print("Nothing is chosen on the validation images: they are test images (DATASET.VAL_IS_TEST)")
            return None
        return self.features_of(self.bad_images.left_out_of("val", self.val_loader))


def bind_classes(model: nn.Module, classnames: Sequence[str]) -> None:
    """Let checkpoints of ``model`` go with these classes alone, in this order: they hold a number of each name."""
    numbers = torch.tensor([derive_seed(name) for name in classnames], device=next(model.parameters()).device)
    model.register_buffer("classes", numbers)
    model.register_load_state_dict_pre_hook(_check_classes)


def _check_classes(model: nn.Module, state_dict: dict, prefix: str, *others) -> None:
    if not torch.equal(state_dict.setdefault(f"{prefix}classes", model.classes).to(model.classes), model.classes):
        others[-1].append("it learned other classes than these, or these in another order")


def scores(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[float, float]]:
    """What candidates are compared by: accuracy (%), then minus the cross-entropy, since a few validation images give
    many of them the same accuracy.

    Args:
        logits: (candidates, images, classes).
        labels: (images,).
    """
    accuracy = 100 * (logits.argmax(-1) == labels).double().mean(-1)
    loss = F.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none").mean(-1)
    return list(zip(accuracy.tolist(), (-loss).tolist(), strict=True))
