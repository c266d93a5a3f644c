"""What methods that learn prompts share: cross-entropy over CLIP's scores, through CLIP's frozen encoders."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_availability, load_pretrained_weights
from vlm.load import PRECISIONS
from vlm.openai import CLIP
from vlm.prompts import readable, token_count

from .clip_trainer import CLIPTrainer


class PromptTrainer(CLIPTrainer):
    """Trains the ``prompt_learner`` of what ``custom_clip`` returns, which maps image features to logits."""

    frozen_image_encoder = True
    node = ""  # the method's node below TRAINER, with N_CTX, CTX_INIT and PREC

    def custom_clip(self, clip: CLIP) -> nn.Module:
        """A model with a ``prompt_learner`` in front of ``clip``."""
        raise NotImplementedError

    def check_cfg(self, cfg: CfgNode) -> None:
        node = cfg.TRAINER[self.node]
        check_availability(node.PREC, PRECISIONS, f"TRAINER.{self.node}.PREC")
        if not node.CTX_INIT and node.N_CTX < 1:
            raise UserError(f"TRAINER.{self.node}.N_CTX is {node.N_CTX}; there must be at least 1 context token")
        if node.CTX_INIT and not token_count(readable(node.CTX_INIT)):
            raise UserError(f'TRAINER.{self.node}.CTX_INIT "{node.CTX_INIT}" has no words to start from')

    def build_model(self) -> None:
        precision = self.cfg.TRAINER[self.node].PREC
        clip = self.load_clip(precision)
        print("Building custom CLIP")
        self.model = self.custom_clip(clip)
        print("Turning off gradients in both the image and the text encoder")
        learner = self.model.prompt_learner
        if self.cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(learner, self.cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, self.sched)
        self.amp = precision == "amp" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda") if self.amp else None
        self.report_parameters()

    def forward_backward(self, batch: dict) -> dict[str, float]:
        image_features, label, _ = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
            output = self.model(image_features)
            loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
