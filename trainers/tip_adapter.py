"""Tip-Adapter: the shots' features are kept, and a test image asks those that it resembles.

Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022, section 3. The cache
has a key for each training image, its feature, and a value, its label (3.1). Its answer is added to zero-shot CLIP's:
``scale * f W^T + alpha * exp(-beta (1 - f K^T)) V``. Tip-Adapter trains nothing; Tip-Adapter-F
trains the keys (3.2), with alpha and beta at their initial values. Both then search alpha and beta (4.1) on validation
images, never on test images; without validation images they stay at their initial values.
"""

from __future__ import annotations

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import check_at_least
from vlm.similarity import normalize
from vlm.text.templates import check_template
from vlm.text.zero_shot import build_zero_shot_classifier

from .backbone import load_backbone
from .shots import (
    bind_classnames,
    build_shots_loader,
    check_no_init_weights,
    collect_features,
    collect_validation_features,
    cross_entropy_step,
    score_candidates,
)

# What is searched, as in the authors' settings for ImageNet.
ALPHAS = torch.linspace(0.1, 3, 20).tolist()
BETAS = torch.linspace(0.1, 7, 200).tolist()
ADAM_EPS = 1e-4  # AdamW's, which the authors raise from 1e-8; OPTIM has no key for it


def cache_logits(features: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, beta: float) -> torch.Tensor:
    """The cache's answer (images, classes), without alpha.

    Args:
        features: (images, dim), of length 1.
        keys: (shots, dim), of length 1 unless they were trained.
        values: (shots, classes), one-hot.
    """
    return torch.exp(-beta * (1 - features @ keys.t())) @ values


@torch.no_grad()
def search_hyperparameters(
    zero_shot: torch.Tensor, cached: tuple[torch.Tensor, ...], labels: torch.Tensor, start: tuple[float, float]
) -> tuple[float, float, float]:
    """The alpha and the beta that do best on validation images, and their accuracy (%).

    Args:
        zero_shot: logits (images, classes) of zero-shot CLIP.
        cached: features, keys and values, as for :func:`cache_logits`.
        labels: (images,).
        start: alpha and beta that others must beat.
    """
    found = []
    for beta in [start[1], *BETAS]:
        alphas = torch.tensor(ALPHAS if found else start[:1]).to(zero_shot)
        worth = score_candidates(zero_shot + alphas[:, None, None] * cache_logits(*cached, beta), labels)
        found += zip(worth, alphas.tolist(), [beta] * len(alphas), strict=True)
    (accuracy, _), alpha, beta = max(found, key=lambda candidate: candidate[0])
    return alpha, beta, accuracy


class CacheModel(nn.Module):
    """Keys and values of the shots, alpha and beta; ``forward`` gives what is added to the logits."""

    def __init__(self, shots: int, dim: int, classes: int, node: CfgNode, trained: bool):
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(shots, dim), requires_grad=trained)
        self.register_buffer("values", torch.zeros(shots, classes))
        self.register_buffer("alpha", torch.tensor(float(node.ALPHA)))
        self.register_buffer("beta", torch.tensor(float(node.BETA)))
        self.register_load_state_dict_pre_hook(_resize_cache)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(images, classes) for features (images, dim) of length 1."""
        return self.alpha * cache_logits(features, self.keys, self.values, self.beta)


def _resize_cache(module: CacheModel, state_dict: dict, prefix: str, *_) -> None:
    """There may be more shots, or fewer, in a checkpoint than in this configuration."""
    shots = len(state_dict.get(f"{prefix}keys", module.keys))
    if shots != len(module.keys):
        module.keys.data = module.keys.new_zeros(shots, module.keys.shape[1])
        module.values = module.values.new_zeros(shots, module.values.shape[1])


@TRAINER_REGISTRY.register()
class TipAdapter(TrainerX):
    """Without training."""

    trains_keys = False

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.TIPADAPTER = CfgNode()
        cfg.TRAINER.TIPADAPTER.ALPHA = 1.0  # weight of the cache's answer, before the search
        cfg.TRAINER.TIPADAPTER.BETA = 5.5  # how much near keys count over far ones, before the search
        cfg.TRAINER.TIPADAPTER.AUGMENT_EPOCH = 10  # random views of a shot that its key is the mean of

    def check_cfg(self, cfg: CfgNode) -> None:
        check_no_init_weights(cfg)
        check_template(cfg.DATASET.TEMPLATE, "DATASET.TEMPLATE")
        check_at_least(cfg.TRAINER.TIPADAPTER.AUGMENT_EPOCH, 1, "TRAINER.TIPADAPTER.AUGMENT_EPOCH")

    def build_model(self) -> None:
        data, node = self.dm.dataset, self.cfg.TRAINER.TIPADAPTER
        self.backbone = load_backbone(self)
        text = build_zero_shot_classifier(self.backbone.text_encoder(), data.classnames, [self.cfg.DATASET.TEMPLATE])
        self.class_features = text.float()
        shots = len(getattr(data, "train_x", ()))  # none where there is only a checkpoint, which brings its own
        self.model = CacheModel(shots, text.shape[1], len(text), node, self.trains_keys).to(self.device)
        bind_classnames(self.model, data.classnames, self.device)
        self.register()
        self.feature_extractor = self.backbone.feature_extractor()
        self.provenance = self.backbone.report(self)

    def register(self) -> None:
        self.register_model("tip_adapter", self.model)
        self.max_epoch = 1  # there is nothing to repeat

    def before_train(self) -> None:
        super().before_train()
        if not self.start_epoch:
            self.fill_cache()

    @torch.no_grad()
    def fill_cache(self) -> None:
        """Keys are the mean features of the shots, brought to length 1; one view where there is nothing random."""
        loader = build_shots_loader(self, augmented=True)
        is_random = getattr(loader.dataset.transform, "is_random", True)
        views = self.cfg.TRAINER.TIPADAPTER.AUGMENT_EPOCH if is_random else 1
        features, labels = zip(*(collect_features(self, loader) for _ in range(views)), strict=True)
        keys = self.model.keys.copy_(normalize(torch.stack(features).mean(0)))
        self.model.values.zero_().scatter_(1, labels[0][:, None], 1)
        shots, dim = keys.shape
        seen = f"{views} views" if views > 1 else "1 view"
        print(f"Cache: {shots:,} keys of {dim:,} numbers, {seen} each{'' if self.trains_keys else '; none is trained'}")

    def run_epoch(self) -> None:
        self.search_weights()

    def search_weights(self) -> None:
        """Put the best alpha and beta in place of the initial ones."""
        cache, node = self.model, self.cfg.TRAINER.TIPADAPTER
        if chosen_on := collect_validation_features(self):
            features, labels = normalize(chosen_on[0]), chosen_on[1]
            zero_shot = self.backbone.logits(features, self.class_features)
            cached, start = (features, cache.keys, cache.values), (float(node.ALPHA), float(node.BETA))
            alpha, beta, accuracy = search_hyperparameters(zero_shot, cached, labels, start)
            cache.alpha.fill_(alpha)
            cache.beta.fill_(beta)
            print(f"Searched on {len(labels):,} validation images: {accuracy:.2f}% of them")
        print(f"alpha {cache.alpha.item():.4g}, beta {cache.beta.item():.4g}")

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        features = normalize(input.float())
        return self.backbone.logits(features, self.class_features) + self.model(features)


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """The keys are trained by cross-entropy; alpha and beta are searched after the last epoch, or after each where the
    best on validation is kept (TEST.FINAL_MODEL best_val)."""

    trains_keys = True

    def register(self) -> None:
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        for group in self.optim.param_groups:
            if "eps" in group:
                group["eps"] = ADAM_EPS
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("tip_adapter", self.model, self.optim, self.sched)

    def run_epoch(self) -> None:
        node = self.cfg.TRAINER.TIPADAPTER
        self.model.alpha.fill_(node.ALPHA)
        self.model.beta.fill_(node.BETA)
        TrainerX.run_epoch(self)
        if self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val":
            self.search_weights()

    forward_backward = cross_entropy_step
