"""GDA: Gaussian discriminant analysis of the image features, whose logits are added to those of zero-shot CLIP.

Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024, section 3. The features of a
class are Gaussian, with its mean mu and a covariance Sigma that all classes share. With equal priors pi, Bayes' rule
gives a linear classifier, ``W = mu Sigma^-1`` and ``b = log pi - mu Sigma^-1 mu^T / 2``. As there are fewer images than
dimensions d, the inverse is shrunk: ``Sigma^-1 = d ((N - 1) Sigma + tr(Sigma) I)^-1``. The logits are
``scale * f T^T + alpha (f W^T + b)`` with the text features T.

As in the authors' code, each view of an image counts in N, and alpha is a power of ten. Of equally accurate ones, they
keep the smallest; here cross-entropy decides, and 0.1 is the value without validation images, as the paper has no fixed
one. Where all features of a class are equal (one image in one view), Sigma is zero: refused.
"""

from __future__ import annotations

import math

import torch
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import UserError
from vlm.similarity import build_linear_head, normalize

from .shots import check_shots_cfg, collect_shots, load_zero_shot, register_fitted, search_settings

ALPHAS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)  # the grid of the authors' code


def fit_gda(f: torch.Tensor, y: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return W (classes, d) and b (classes,) for unit features f (N, d) with labels y of all classes."""
    N, d = f.shape
    f = f.double()  # single precision would lose digits of the inverse
    mu = f.new_zeros(classes, d).index_add_(0, y, f) / y.bincount(minlength=classes)[:, None]
    Sigma = (f - mu[y]).t().cov()
    if Sigma.trace() < 1e-6:  # more than rounding, also of fp16, makes of equal unit features; two images have more
        raise UserError("GDA needs a covariance, and one view of one image a class has none; use ProKeR or 2 shots")
    W = d * mu @ torch.linalg.inv((N - 1) * Sigma + Sigma.trace() * torch.eye(d).to(Sigma))  # mu Sigma^-1
    b = -math.log(classes) - (W * mu).sum(1) / 2
    return W.float(), b.float()


@TRAINER_REGISTRY.register()
class GDA(TrainerX):
    """Estimates class means and a shared covariance from the shots, and chooses alpha; nothing is trained."""

    display_name = "GDA"
    group = "training-free"
    training_keys = ("ALPHA", "AUGMENT_EPOCH")  # the checkpoint holds alpha

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.GDA, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.GDA = CfgNode()
        cfg.TRAINER.GDA.ALPHA = 0.1  # initial weight of the discriminant's logits; the paper has no fixed one
        cfg.TRAINER.GDA.AUGMENT_EPOCH = 10  # random views of a shot

    check_cfg = check_shots_cfg

    def build_model(self) -> None:
        """Encode the prompts, and register a discriminant of zeros."""
        self.backbone, self.class_features = load_zero_shot(self)
        register_fitted(self, "gda", W=self.class_features.shape, b=(self.num_classes,), alpha=())

    def run_epoch(self) -> None:
        """Fit W and b to the shots, and search alpha, in the only epoch."""
        model, node = self.model, self.cfg.TRAINER.GDA
        f, y = collect_shots(self, node.AUGMENT_EPOCH, average=False)
        W, b = model.W, model.b = fit_gda(f, y, self.num_classes)
        (alpha,) = search_settings(self, {"alpha": node.ALPHA}, [ALPHAS], lambda f, alpha: alpha * (f @ W.t() + b))
        model.alpha.fill_(alpha)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits (images, classes) for image features (images, d) of any length."""
        weight, bias = self.linear_head()
        return normalize(input.float()) @ weight.t() + bias

    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, d) and bias (classes,) that give the logits of unit image features."""
        weight, bias = build_linear_head(self.class_features, self.backbone.clip.logit_scale)
        return weight + self.model.alpha * self.model.W, bias + self.model.alpha * self.model.b
