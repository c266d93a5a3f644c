"""APE: Tip-Adapter's cache, on the channels that tell the classes apart, with soft values.

Zhu et al., Not All Features Matter: Enhancing Few-shot CLIP with Adaptive Prior Refinement, ICCV 2023, section 3, the
training-free APE. It keeps the Q channels with the smallest ``J = lambda S - (1 - lambda) V``: S is a channel's mean
product over samples of two classes, V its variance over the text features W. On them, f', F' and W' are the features of
image, shots and texts. The logits are ``R_fW + alpha R_f'F' diag(R_F'W') L`` with the one-hot labels L,
``R_fW = scale * f W^T``, ``R_f'F' = exp(-beta (1 - f' F'^T))``, and ``R_F'W' = exp(gamma KL(F' W'^T | L))``.

As in the authors' code, the samples of a class are its text and its shots, the logarithm is binary, and the cosines
F' W'^T enter the softmax unscaled. Settings and grids are those of its config for ImageNet, but for a tenth of its 200
values of beta, as a few validation images cannot tell finer steps apart. Cross-entropy breaks ties. The authors search
gamma, too, which scales the cache as alpha does: on up to 4 images a class, the search of both took extremes, and was
worse on OpenAI's features (docs/methods.md). Their texts are templates and GPT-3's sentences (DATASET.DESCRIPTIONS).
"""

from __future__ import annotations

import torch
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import UserError
from vlm.similarity import normalize

from .shots import check_shots_cfg, collect_shots, load_zero_shot, register_fitted, search_settings
from .tip_adapter import affinity

ALPHAS = BETAS = [0.1 + 6.9 * step / 20 for step in range(20)]  # up to 7, which the authors' steps leave out, too
EPS = 1e-6  # the authors' value; it keeps the divergence finite


def select_channels(W: torch.Tensor, F: torch.Tensor, y: torch.Tensor, Q: int, lambda_: float) -> torch.Tensor:
    """Return a mask (dim,) of Q channels, given unit features W of the classes and F of shots with labels y."""
    sums, n = W.index_add(0, y, F), 1 + y.bincount(minlength=len(W))  # of the samples of each class
    # The sum over all pairs of samples, less those within a class.
    S = (sums.sum(0).square() - sums.square().sum(0)) / (n.sum().square() - n.square().sum())
    J = lambda_ * S - (1 - lambda_) * W.var(0)
    return torch.zeros_like(J).scatter_(0, J.topk(Q, largest=False).indices, 1)


def compute_divergence(F_refined: torch.Tensor, W_refined: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return KL(F' W'^T | L) (shots, 1): how far, in bits, the texts' prediction of a shot is from its label."""
    p = (F_refined @ W_refined.t()).softmax(1).gather(1, y[:, None])
    return torch.log2((1 + EPS) / (p + EPS))


@TRAINER_REGISTRY.register()
class APE(TrainerX):
    """Selects channels, fills the cache with the shots, and searches alpha and beta; nothing is trained."""

    display_name = "APE"
    group = "training-free"
    training_keys = ("ALPHA", "BETA", "GAMMA", "LAMBDA", "CHANNELS", "AUGMENT_EPOCH")  # the checkpoint holds the result

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.APE, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.APE = CfgNode()
        cfg.TRAINER.APE.ALPHA = 2.0  # initial weight of the cache's logits
        cfg.TRAINER.APE.BETA = 1.0  # initial sharpness of the weights of the shots
        cfg.TRAINER.APE.GAMMA = 0.1  # weight of the divergence
        cfg.TRAINER.APE.LAMBDA = 0.7  # weight of similarity against variance in J, from 0 to 1
        cfg.TRAINER.APE.CHANNELS = 500 / 1024  # Q / D, the share of the channels to keep; RN50 has 1,024
        cfg.TRAINER.APE.AUGMENT_EPOCH = 10  # random views of a shot, whose mean feature is its key

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` as ``check_shots_cfg`` does, and for CHANNELS or LAMBDA outside 0 to 1."""
        check_shots_cfg(self, cfg)
        for key in ("CHANNELS", "LAMBDA"):
            if not 0 <= (share := cfg.TRAINER.APE[key]) <= 1:
                raise UserError(f"TRAINER.APE.{key} is {share}; it must be from 0 to 1")

    def build_model(self) -> None:
        """Encode the prompts, and register an empty cache."""
        self.backbone, self.class_features = load_zero_shot(self)
        classes, dim = self.class_features.shape
        register_fitted(self, "ape", channels=(dim,), keys=(0, dim), values=(0, classes), alpha=(), beta=())

    @torch.no_grad()
    def run_epoch(self) -> None:
        """Select the channels, fill the cache, and search alpha and beta, in the only epoch."""
        model, node, W = self.model, self.cfg.TRAINER.APE, self.class_features
        F, y = collect_shots(self, node.AUGMENT_EPOCH)
        model.channels = select_channels(W, F, y, max(1, round(node.CHANNELS * W.shape[1])), node.LAMBDA)
        model.keys, L = self.refine(F), torch.eye(len(W)).to(W)[y]
        model.values = L * torch.exp(node.GAMMA * compute_divergence(model.keys, self.refine(W), y))  # diag(R_F'W') L
        initial = {"alpha": node.ALPHA, "beta": node.BETA}
        alpha, beta = search_settings(
            self, initial, [ALPHAS, BETAS], lambda f, alpha, beta: alpha * self.cache(f, beta)
        )
        model.alpha.fill_(alpha)
        model.beta.fill_(beta)

    def refine(self, features: torch.Tensor) -> torch.Tensor:
        """Return unit features (n, dim) on the kept channels; the others are zero."""
        return normalize(features * self.model.channels)

    def cache(self, f: torch.Tensor, beta: float | torch.Tensor) -> torch.Tensor:
        """Return R_f'F' diag(R_F'W') L (images, classes) for image features (images, dim) of any length."""
        return affinity(self.refine(f), self.model.keys, beta) @ self.model.values

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits (images, classes) for image features (images, dim) of any length."""
        f, model = input.float(), self.model
        return self.backbone.logits(f, self.class_features) + model.alpha * self.cache(f, model.beta)
