"""Tip-Adapter: a key-value cache of the shots' features, whose logits are added to those of zero-shot CLIP.

Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022, section 3. For each
training image, the cache has a key, the image feature, and a value, the one-hot label (3.1). The logits are
``scale * f W^T + alpha * exp(-beta (1 - f K^T)) V``. Tip-Adapter trains nothing; Tip-Adapter-F
trains the keys (3.2), with alpha and beta at their initial values. Both then search alpha and beta (4.1) on validation
images, never on test images. Without validation images, alpha and beta stay at their initial values.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from vlm.similarity import normalize

from .shots import (
    check_shots_cfg,
    collect_shots,
    cross_entropy_step,
    load_zero_shot,
    register_feature_model,
    resize_to_checkpoint,
    search_settings,
)

# The search grid of the authors' config for ImageNet.
ALPHAS = torch.linspace(0.1, 3, 20).tolist()
BETAS = torch.linspace(0.1, 7, 200).tolist()
ADAM_EPS = 1e-4  # epsilon of AdamW in the authors' code (PyTorch: 1e-8); OPTIM has no key for it


def cache_logits(
    features: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, beta: float | torch.Tensor
) -> torch.Tensor:
    """Return the logits (images, classes) of the cache, not yet multiplied by alpha.

    Args:
        features: unit image features (images, dim).
        keys: features of the shots (shots, dim), of length 1 until they are trained.
        values: one-hot labels of the shots (shots, classes).
        beta: sharpness of the weights ``exp(-beta (1 - cosine))`` of the shots.
    """
    return torch.exp(-beta * (1 - features @ keys.t())) @ values


class CacheModel(nn.Module):
    """A cache of ``shots`` images, zeros until ``fill_cache``, with ALPHA and BETA of ``node`` (TRAINER.TIPADAPTER)."""

    values: torch.Tensor
    alpha: torch.Tensor
    beta: torch.Tensor

    def __init__(self, shots: int, dim: int, classes: int, node: CfgNode, trains_keys: bool):
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(shots, dim), requires_grad=trains_keys)
        self.register_buffer("values", torch.zeros(shots, classes))
        self.register_buffer("alpha", torch.tensor(float(node.ALPHA)))
        self.register_buffer("beta", torch.tensor(float(node.BETA)))
        self.register_load_state_dict_pre_hook(resize_to_checkpoint)


@TRAINER_REGISTRY.register()
class TipAdapter(TrainerX):
    """Fills the cache with the shots and searches alpha and beta; nothing is trained."""

    display_name = "Tip-Adapter"
    group = "training-free"
    trains_keys = False
    training_keys = ("ALPHA", "BETA", "AUGMENT_EPOCH")  # the checkpoint holds alpha and beta

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.TIPADAPTER, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.TIPADAPTER = CfgNode()
        cfg.TRAINER.TIPADAPTER.ALPHA = 1.0  # initial weight of the cache's logits
        cfg.TRAINER.TIPADAPTER.BETA = 5.5  # initial sharpness of the weights of the shots
        cfg.TRAINER.TIPADAPTER.AUGMENT_EPOCH = 10  # random views of a shot, whose mean feature is its key

    check_cfg = check_shots_cfg

    def build_model(self) -> None:
        """Encode the prompts, and register a cache of zeros."""
        data, node = self.dm.dataset, self.cfg.TRAINER.TIPADAPTER
        self.backbone, self.class_features = load_zero_shot(self)
        shots = len(getattr(data, "train_x", ()))  # 0 in prediction without data; then those of the checkpoint
        classes, dim = self.class_features.shape
        cache = CacheModel(shots, dim, classes, node, self.trains_keys)
        register_feature_model(self, self.backbone, "tip_adapter", cache, eps=ADAM_EPS)

    def before_train(self) -> None:
        """Prepare training; fill the cache in a new run, as a resumed one has it from the checkpoint."""
        super().before_train()
        if not self.start_epoch:
            self.fill_cache()

    @torch.no_grad()
    def fill_cache(self) -> None:
        """Set keys to the normalised mean feature of each shot's AUGMENT_EPOCH views, and values to one-hot labels."""
        keys, labels = collect_shots(self, self.cfg.TRAINER.TIPADAPTER.AUGMENT_EPOCH)
        self.model.keys.copy_(keys)
        self.model.values.zero_().scatter_(1, labels[:, None], 1)

    def run_epoch(self) -> None:
        """Search alpha and beta (:meth:`search_alpha_and_beta`), the only step of the only epoch."""
        self.search_alpha_and_beta()

    def search_alpha_and_beta(self) -> None:
        """Set alpha and beta to the best values on the validation images, if there are any, and print them."""
        model, node = self.model, self.cfg.TRAINER.TIPADAPTER
        initial = {"alpha": node.ALPHA, "beta": node.BETA}
        alpha, beta = search_settings(
            self,
            initial,
            [ALPHAS, BETAS],
            lambda f, alpha, beta: alpha * cache_logits(f, model.keys, model.values, beta),
        )
        model.alpha.fill_(alpha)
        model.beta.fill_(beta)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return zero-shot plus cache logits (images, classes) for image features (images, dim) of any length."""
        features, model = normalize(input.float()), self.model
        cache = cache_logits(features, model.keys, model.values, model.beta)
        return self.backbone.logits(features, self.class_features) + model.alpha * cache


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: trains the keys by cross-entropy, then searches alpha and beta.

    It searches after the last epoch, or with TEST.FINAL_MODEL best_val after each epoch.
    """

    display_name = "Tip-Adapter-F"
    group = "features"
    trains_keys = True

    def run_epoch(self) -> None:
        """Train the keys with the initial alpha and beta; then search both in the last epoch, or in any (best_val)."""
        node = self.cfg.TRAINER.TIPADAPTER
        self.model.alpha.fill_(node.ALPHA)
        self.model.beta.fill_(node.BETA)
        TrainerX.run_epoch(self)
        if self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val":
            self.search_alpha_and_beta()

    forward_backward = cross_entropy_step
