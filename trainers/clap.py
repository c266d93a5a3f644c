"""CLAP: a linear probe that starts at the zero-shot weights and, class by class, is held near them.

Silva-Rodriguez et al., A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models, CVPR 2024. ZS-LP, a
linear probe with CLIP's logits, starts the class weights w at the text features t. CLAP adds to the cross-entropy the
mean over classes c of ``lambda_c ||w_c - t_c||^2``. The multiplier lambda_c, computed once before training, is the mean
zero-shot probability of c for its own shots: where CLIP is right already, w_c stays. Nothing is chosen on validation
images. TRAINER.CLAP.PENALTY False is ZS-LP.

As in the authors' code, w and t have about the length of CLIP's text features, not 1 (TEXT_NORM in shots.py), which
the learning rate and the penalty suit. There, lambda comes from random views of the shots; here from the test view.
There, a batch of 256 is drawn from 20 views of all shots; here it has one new view of each of up to 256 shots.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from vlm.similarity import build_linear_head, normalize

from . import shots


@TRAINER_REGISTRY.register()
class CLAP(TrainerX):
    """Trains the class weights, classes * dim parameters, by cross-entropy with the class-adaptive penalty."""

    display_name = "CLAP"
    group = "features"
    training_keys = ("PENALTY",)
    has_cosine_logits = True  # model_inference returns cosines of image and class features, times the logit scale

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.CLAP, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.CLAP = CfgNode()
        cfg.TRAINER.CLAP.PENALTY = True  # False: ZS-LP

    def build_model(self) -> None:
        """Encode the prompts, and register class weights that equal the text features."""
        self.backbone, t = shots.load_zero_shot(self)
        self.t = shots.TEXT_NORM * t
        model = nn.ParameterDict({"w": self.t.clone()})
        model.register_buffer("lambda_", torch.zeros(len(t)))  # zero for ZS-LP
        shots.register_feature_model(self, self.backbone, "clap", model)

    def before_train(self) -> None:
        """Prepare training; set the multipliers in a new run, as a resumed one has them from the checkpoint."""
        super().before_train()
        if not self.start_epoch:
            self.model.lambda_.zero_()  # MODEL.INIT_WEIGHTS may have those of other shots
            if self.cfg.TRAINER.CLAP.PENALTY:
                self.set_multipliers()

    @torch.no_grad()
    def set_multipliers(self) -> None:
        """Set lambda_c to the mean zero-shot probability of class c over the shots of class c, and print the range."""
        f, labels = shots.collect_shots(self)
        p, y = self.backbone.logits(f, normalize(self.t)).softmax(1), F.one_hot(labels, self.num_classes)
        lambda_ = self.model.lambda_.copy_((y * p).sum(0) / y.sum(0))
        print(f"Multipliers of the penalty: {lambda_.min():.3f} to {lambda_.max():.3f}, mean {lambda_.mean():.3f}")

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Train on ``batch`` by cross-entropy and penalty; return their sum as ``loss``, and ``acc`` (%)."""
        f, label, _ = self.parse_batch_train(batch)
        w, output = self.model.w, self.model_inference(f)
        loss = F.cross_entropy(output, label) + (self.model.lambda_ * (w - self.t).square().sum(1)).mean()
        self.model_backward_and_update(loss)
        return shots.end_step(self, output, label, loss=loss)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return scaled logits (images, classes) for image features (images, dim) of any length."""
        return self.backbone.logits(input, normalize(self.model.w))

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, dim) and bias (classes,) that give the logits of unit image features."""
        return build_linear_head(normalize(self.model.w), self.backbone.clip.logit_scale)
