"""KgCoOp: CoOp whose class features stay near those of the hand-written prompts.

Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023, section 3.2. The loss
is ``L_ce + lambda * L_kg``: CoOp's cross-entropy, and the mean distance of the class features w_i of the learned
prompts from w_i^clip of the hand-written ones. The paper writes ``||w_i - w_i^clip||^2``. Here, as in the authors'
code, it is ``1 - cos(w_i, w_i^clip)``, for unit vectors half of that; W, their key for lambda, is 8 for this form.
The hand-written prompts are DATASET.TEMPLATE, of which there may be several, or DATASET.DESCRIPTIONS; the authors have
one template for each data set. The authors' branch for amp fails; here it has both losses.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from vlm.similarity import compute_logits, normalize

from .coop import CoOp
from .shots import end_step


@TRAINER_REGISTRY.register()
class KgCoOp(CoOp):
    """Trains the context as CoOp does, with a penalty on the distance to the hand-written prompts."""

    display_name = "KgCoOp"
    group = "prompts"
    training_keys = (*CoOp.training_keys, "W")
    uses_handwritten_prompts = True  # build_model sets handwritten_features (classes, embed_dim)

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.KGCOOP to ``cfg``, in place; the keys of the prompt are those of TRAINER.COOP."""
        cfg.TRAINER.KGCOOP = CfgNode({"W": 8.0})  # lambda, the weight of L_kg; the authors' value

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """Train on a batch by L_ce + lambda * L_kg; return ``loss``, ``kg`` (L_kg) and ``acc`` (%)."""
        features, label, _ = self.parse_batch_train(batch)
        learner, w_clip, lambda_ = self.model.prompt_learner, self.handwritten_features, self.cfg.TRAINER.KGCOOP.W
        with torch.autocast(self.device.type, torch.float16, enabled=self.scaler is not None):
            w = normalize(self.model.text_encoder(learner(), learner.layout))
            output = compute_logits(features, w, self.model.logit_scale)
            loss_kg = 1 - F.cosine_similarity(w.float(), w_clip.float()).mean()
            loss = F.cross_entropy(output, label) + lambda_ * loss_kg
        self.model_backward_and_update(loss)
        return end_step(self, output, label, loss=loss, kg=loss_kg)
