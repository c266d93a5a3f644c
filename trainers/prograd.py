"""ProGrad: CoOp with gradients that do not contradict the zero-shot prediction.

Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023, section 3.2. G_d is the gradient of the cross-entropy
L_ce, G_g that of L_kl, the divergence of the prediction from the one by hand-written prompts. Where their angle is
obtuse, the step follows ``G_d - lambda * (G_d . G_g) / ||G_g||^2 * G_g`` (equation 4), else G_d. T is the temperature
of both predictions in L_kl. The authors' code multiplies L_kl by T^2 and leaves out the entropy of the zero-shot
prediction; neither changes the step.
The hand-written prompts are DATASET.TEMPLATE, of which there may be several, or DATASET.DESCRIPTIONS; the authors have
one template for each data set. With CTX_INIT, the authors put zeros before the words of the data set's template, up to
16 tokens; here, as in CoOp, the words CTX_INIT alone are the context. The authors' keys LOSS.T and LOSS.LAMBDA are
TRAINER.PROGRAD.T and LAMBDA.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import UserError

from .coop import CoOp
from .shots import end_step


@TRAINER_REGISTRY.register()
class ProGrad(CoOp):
    """Trains the context as CoOp does, without the part of a gradient that goes against the zero-shot prediction."""

    display_name = "ProGrad"
    group = "prompts"
    training_keys = (*CoOp.training_keys, "T", "LAMBDA")
    uses_handwritten_prompts = True  # build_model sets handwritten_features (classes, embed_dim)

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.PROGRAD to ``cfg``, in place; the keys of the prompt are those of TRAINER.COOP."""
        cfg.TRAINER.PROGRAD = CfgNode({"T": 1.0, "LAMBDA": 1.0})  # the authors' values

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` as CoOp does, and for a T that is not above 0."""
        super().check_cfg(cfg)
        if not cfg.TRAINER.PROGRAD.T > 0:
            raise UserError(f"TRAINER.PROGRAD.T is {cfg.TRAINER.PROGRAD.T}; it must be above 0")

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Train on a batch by the projected gradient of L_ce; return ``loss`` (L_ce), ``kl`` and ``acc`` (%)."""
        features, label, _ = self.parse_batch_train(batch)
        T, lambda_ = self.cfg.TRAINER.PROGRAD.T, self.cfg.TRAINER.PROGRAD.LAMBDA
        with torch.autocast(self.device.type, torch.float16, enabled=self.scaler is not None):
            output = self.model(features)
            p_zs = F.log_softmax(self.backbone.logits(features, self.handwritten_features).float() / T, dim=1)
            p = F.log_softmax(output.float() / T, dim=1)
            loss_ce = F.cross_entropy(output, label)
            loss_kl = F.kl_div(p, p_zs, reduction="batchmean", log_target=True)
        self.prograd_backward_and_update(loss_ce, loss_kl, lambda_)
        return end_step(self, output, label, loss=loss_ce, kl=loss_kl)
