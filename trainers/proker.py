"""ProKeR: kernel ridge regression of what zero-shot CLIP lacks on the shots, in closed form.

Bendou et al., ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models, CVPR 2025. Of the
functions of a kernel k that fit the one-hot labels Y of the shots S, it takes one close to zero-shot CLIP,
``f_clip(x) = x W^T`` with the text features W: ``f(x) = f_clip(x) + k(x, S) a``, ``a = (K / lambda + I)^-1 (Y -
f_clip(S))``, ``K = k(S, S)``, ``k(x, z) = exp(-beta (1 - x z^T))``. All features have length 1.

The equations are those of the authors' code (trainers/proker.py). Its a is lambda times that of ridge regression,
``(K + lambda I)^-1 (Y - f_clip(S))``, as cosines of CLIP differ far less than labels. Here Y, f_clip and f are times
CLIP's logit scale, which changes no prediction for given lambda and beta. A row of S is the mean of a shot's views; the
authors have a row for each view, which FIXED was chosen for, on ImageNet, where they validate on test images. They have
a grid for each data set; here one serves all, and cross-entropy breaks ties.
"""

from __future__ import annotations

import torch
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from vlm.similarity import normalize

from .shots import check_shots_cfg, collect_shots, load_zero_shot, register_fitted, search_settings
from .tip_adapter import affinity as kernel  # k(x, z) of unit features x (n, dim) and z (m, dim), and of beta

# Lambda and beta to try: the authors' grid for SUN397 with RN50, the widest but for the small lambdas of Food101.
GRIDS = [torch.linspace(0.01, 10, 10).tolist(), torch.linspace(0.1, 10, 20).tolist()]
# Lambda and beta for a number of shots, which the authors' code takes from ImageNet to other data sets.
FIXED = {1: (0.05, 3.0), 2: (0.05, 2.6), 4: (0.05, 1.5), 8: (0.07, 1.66), 16: (0.1, 1.7)}


def fit_proker(S: torch.Tensor, residual: torch.Tensor, lambda_: float | torch.Tensor, beta: float) -> torch.Tensor:
    """Return a (shots, classes), from residual Y - f_clip(S); (n, shots, classes) for n values (n, 1, 1) of lambda."""
    e, U = torch.linalg.eigh(kernel(S, S, beta))  # K = U diag(e) U^T: one decomposition serves all values of lambda
    return U @ ((U.t() @ residual) / (e.clamp(min=0)[:, None] / lambda_ + 1))  # rounding makes some e negative


@TRAINER_REGISTRY.register()
class ProKeR(TrainerX):
    """Searches lambda and beta, and solves the regression on the shots; nothing is trained."""

    display_name = "ProKeR"
    group = "training-free"
    training_keys = ("BETA", "LAMBDA", "AUGMENT_EPOCH")  # the checkpoint holds beta and a

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.PROKER, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.PROKER = CfgNode()
        cfg.TRAINER.PROKER.BETA = 0.0  # initial sharpness of the kernel; 0: from FIXED, for the number of shots
        cfg.TRAINER.PROKER.LAMBDA = 0.0  # initial distance from zero-shot CLIP; 0: from FIXED
        cfg.TRAINER.PROKER.AUGMENT_EPOCH = 10  # random views of a shot, whose mean feature is its row of S

    check_cfg = check_shots_cfg

    def build_model(self) -> None:
        """Encode the prompts, and register a regression without shots."""
        self.backbone, self.class_features = load_zero_shot(self)
        classes, dim = self.class_features.shape
        register_fitted(self, "proker", S=(0, dim), a=(0, classes), beta=())

    def run_epoch(self) -> None:
        """Search lambda and beta, and fit the regression with them, in the only epoch."""
        model, node = self.model, self.cfg.TRAINER.PROKER
        S, y = collect_shots(self, node.AUGMENT_EPOCH)
        Y = self.backbone.clip.logit_scale.exp() * torch.eye(self.num_classes).to(S)[y]
        residual = (Y - self.backbone.logits(S, self.class_features)).detach()
        shots = max(count for count in FIXED if count <= max(1, len(S) // self.num_classes))
        initial = {"lambda": node.LAMBDA or FIXED[shots][0], "beta": node.BETA or FIXED[shots][1]}
        lambda_, beta = search_settings(
            self, initial, GRIDS, lambda x, lambda_, beta: kernel(x, S, beta) @ fit_proker(S, residual, lambda_, beta)
        )
        model.S, model.a = S, fit_proker(S, residual, lambda_, beta)
        model.beta.fill_(beta)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits (images, classes) for image features (images, dim) of any length."""
        x, model = normalize(input.float()), self.model
        return self.backbone.logits(x, self.class_features) + kernel(x, model.S, model.beta) @ model.a
