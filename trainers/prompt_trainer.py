"""What methods that learn prompts share: cross-entropy over CLIP's scores, through CLIP's frozen encoders."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, check_availability, load_pretrained_weights, world_size
from vlm.load import PRECISIONS
from vlm.openai import CLIP
from vlm.prompts import readable, token_count

from .clip_trainer import CLIPTrainer
from .step_graph import StepGraph


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
        self.graph = StepGraph(self.training_loss, learner.parameters()) if self._takes_graph() else None

    def varying_step(self) -> str:
        """Why the steps of a run are not all the same operations; empty: they are."""
        return "loss scaling (amp)" if self.scaler else "averaging over processes" if world_size() > 1 else ""

    def _takes_graph(self) -> bool:
        if not self.cfg.TRAIN.CUDA_GRAPH:
            return False
        obstacle = "no GPU" if self.device.type != "cuda" else self.varying_step()
        print(f"Note: TRAIN.CUDA_GRAPH does not go with {obstacle}" if obstacle else "Training by CUDA graph")
        return not obstacle

    def training_loss(self, image_features: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The loss, and the logits (batch, classes) and labels (batch,) that it is of."""
        output = self.model(image_features)
        return F.cross_entropy(output, label), output, label

    def forward_backward(self, batch: dict) -> dict[str, float]:
        image_features, label, _ = self.parse_batch_train(batch)
        if self.graph:
            loss, output, label = self.graph(image_features, label)
            self.detect_anomaly(loss)
            self.model_update()
        else:
            with torch.autocast(self.device.type, torch.float16, enabled=self.amp):
                loss, output, label = self.training_loss(image_features, label)
            self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
