"""LP++: a linear probe whose class weights blend visual prototypes with the text features of the classes.

Huang et al., LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, CVPR 2024. The logits of a unit image feature
f_i are ``l_ik = f_i (w_k + alpha_k t_k)``, with visual prototypes w_k and multipliers alpha_k of unit text features t_k
(alpha takes the place of a temperature). Block majorize-minimize steps lower their cross-entropy over all N shots:
gradient steps of w, and after every tenth one of alpha. The steps are one over approximate Lipschitz constants of the
gradients and, as the start, follow from the shots, so there is no learning rate to search. The iteration that is best
on validation images is kept; with PROTOCOL none, the last one.

These are the paper's logits and steps. The authors' code adds a bias with a random start, momentum 0.9 of w, and, in
each step of alpha, the gradients of all iterations before it. Of equally accurate iterations, it keeps the last one;
here cross-entropy decides.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import check_at_least
from vlm.similarity import normalize

from . import shots

ALPHA_START = 250.0  # first alpha / mean cosine of shots and the texts of their classes; the authors' value
ALPHA_PERIOD = 10  # steps of w for one of alpha; the authors' value


def class_weights(w: torch.Tensor, alpha: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return ``w_k + alpha_k t_k`` for all classes k (classes, dim)."""
    return w + alpha[:, None] * t


def minimize(f: torch.Tensor, y: torch.Tensor, t: torch.Tensor, steps: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield w (classes, dim) and alpha (classes,) after each of ``steps`` steps of w.

    Args:
        f: unit features of the shots (N, dim).
        y: their one-hot labels (N, classes).
        t: unit text features (classes, dim).
    """
    n, s = len(f), f @ t.t()  # s_ik = f_i t_k
    w = y.t() @ f
    alpha = (ALPHA_START * (y * s).sum(0) / y.sum(0)).mean().expand(len(t))
    gamma_w = torch.linalg.eigvalsh(f.t() @ f)[-1] / (4 * n)  # Lipschitz constants, as in the authors' code
    gamma_alpha = 4 * s.square().sum(0).max() / n

    def logit_gradient() -> torch.Tensor:
        """Return the gradient of the loss by the logits (N, classes): predicted minus true probabilities, over N."""
        return ((f @ w.t() + alpha * s).softmax(1) - y) / n

    for step in range(1, steps + 1):
        w = w - logit_gradient().t() @ f / gamma_w
        if step % ALPHA_PERIOD == 0:
            alpha = alpha - (logit_gradient() * s).sum(0) / gamma_alpha
        yield w, alpha


@TRAINER_REGISTRY.register()
class LPPlusPlus(TrainerX):
    """Trains visual prototypes and multipliers, classes * (dim + 1) parameters, on one random view of each shot."""

    display_name = "LP++"
    group = "features"
    training_keys = ("ITERATIONS",)

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.LPPLUSPLUS, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.LPPLUSPLUS = CfgNode()
        cfg.TRAINER.LPPLUSPLUS.ITERATIONS = 300  # steps of w; the authors' value

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for INIT_WEIGHTS or ITERATIONS below 1."""
        shots.check_shots_cfg(self, cfg)
        check_at_least(cfg.TRAINER.LPPLUSPLUS.ITERATIONS, 1, "TRAINER.LPPLUSPLUS.ITERATIONS")

    def build_model(self) -> None:
        """Encode the prompts, and register w and alpha without an optimizer, in a single epoch of all iterations."""
        self.backbone, self.t = shots.load_zero_shot(self)
        zeros = {"w": torch.zeros_like(self.t), "alpha": torch.zeros(len(self.t))}
        shots.register_feature_model(self, self.backbone, "lp_plus_plus", nn.ParameterDict(zeros), optimize=False)

    @torch.no_grad()
    def run_epoch(self) -> None:
        """Set w and alpha to those after the step with the best score on validation images; without any, the last."""
        f, labels = shots.collect_shots(self, views=1)
        y, steps = F.one_hot(labels, self.num_classes).float(), self.cfg.TRAINER.LPPLUSPLUS.ITERATIONS
        validation = shots.collect_validation_features(self)

        def score(iterate: tuple[int, tuple[torch.Tensor, ...]]) -> tuple[float, float]:
            """Return the score of (step, (w, alpha)) on validation images, or without any the step."""
            step, (w, alpha) = iterate
            if validation is None:
                return step, 0.0
            logits = normalize(validation[0]) @ class_weights(w, alpha, self.t).t()
            return shots.score_candidates(logits[None], validation[1])[0]

        best = max(enumerate(minimize(f, y, self.t, steps), 1), key=score)
        step, (w, alpha) = best
        self.model.w.copy_(w)
        self.model.alpha.copy_(alpha)
        print(f"Iteration {step} of {steps}; alpha {alpha.min():.4g} to {alpha.max():.4g}")
        if validation:
            print(f"Chosen on {len(validation[1]):,} validation images: {score(best)[0]:.2f}% of them")

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits (images, classes) for image features (images, dim) of any length."""
        return normalize(input.float()) @ class_weights(self.model.w, self.model.alpha, self.t).t()

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, dim) and bias (classes,) that give the logits of unit image features."""
        return class_weights(self.model.w, self.model.alpha, self.t), torch.zeros_like(self.model.alpha)
