"""Tip-Adapter: a key-value cache of the shots' features, whose logits are added to those of zero-shot CLIP.

Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022, section 3. For each
training image, the cache has a key, the image feature, and a value, the one-hot label (3.1). The logits are
``scale * f W^T + alpha * exp(-beta (1 - f K^T)) V``. Tip-Adapter trains nothing; Tip-Adapter-F
trains the keys (3.2), with alpha and beta at their initial values. Both then search alpha and beta (4.1) on validation
images, never on test images. Without validation images, alpha and beta stay at their initial values.
"""

from __future__ import annotations

import torch
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from vlm.similarity import normalize

from .shots import check_shots_cfg, collect_shots, cross_entropy_step, load_zero_shot, register_fitted, search_settings

# The search grid of the authors' config for ImageNet.
ALPHAS = torch.linspace(0.1, 3, 20).tolist()
BETAS = torch.linspace(0.1, 7, 200).tolist()
ADAM_EPS = 1e-4  # epsilon of AdamW in the authors' code (PyTorch: 1e-8); OPTIM has no key for it


def affinity(f: torch.Tensor, K: torch.Tensor, beta: float | torch.Tensor) -> torch.Tensor:
    """Return ``exp(-beta (1 - f K^T))`` (images, shots) of unit features f (images, dim) and keys K (shots, dim)."""
    return torch.exp(-beta * (1 - f @ K.t()))


@TRAINER_REGISTRY.register()
class TipAdapter(TrainerX):
    """Fills the cache with the shots and searches alpha and beta; nothing is trained."""

    display_name = "Tip-Adapter"
    group = "training-free"
    trained: tuple[str, ...] = ()
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
        self.backbone, self.class_features = load_zero_shot(self)
        shots = len(getattr(self.dm.dataset, "train_x", ()))  # 0 in prediction without data; then the checkpoint's
        classes, dim = self.class_features.shape
        cache = {"keys": (shots, dim), "values": (shots, classes), "alpha": (), "beta": ()}
        register_fitted(self, "tip_adapter", self.trained, eps=ADAM_EPS, **cache)

    def before_train(self) -> None:
        """Prepare training; fill the cache in a new run, as a resumed one has it from the checkpoint."""
        super().before_train()
        if not self.start_epoch:
            self.fill_cache()

    @torch.no_grad()
    def fill_cache(self) -> None:
        """Set keys to the normalised mean feature of each shot's AUGMENT_EPOCH views, and values to one-hot labels."""
        keys, labels = collect_shots(self, self.cfg.TRAINER.TIPADAPTER.AUGMENT_EPOCH, every_class=False)
        self.model.keys.copy_(keys)
        self.model.values.zero_().scatter_(1, labels[:, None], 1)

    def run_epoch(self) -> None:
        """Set alpha and beta to the best values on the validation images, if there are any, and print them."""
        model, node = self.model, self.cfg.TRAINER.TIPADAPTER
        K, V, initial = model.keys, model.values, {"alpha": node.ALPHA, "beta": node.BETA}
        logits = lambda f, alpha, beta: alpha * (affinity(f, K, beta) @ V)  # noqa: E731
        alpha, beta = search_settings(self, initial, [ALPHAS, BETAS], logits)
        model.alpha.fill_(alpha)
        model.beta.fill_(beta)

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return zero-shot plus cache logits (images, classes) for image features (images, dim) of any length."""
        f, model = normalize(input.float()), self.model
        cache = affinity(f, model.keys, model.beta) @ model.values
        return self.backbone.logits(f, self.class_features) + model.alpha * cache


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: trains the keys by cross-entropy, then searches alpha and beta.

    It searches after the last epoch, or with TEST.FINAL_MODEL best_val after each epoch.
    """

    display_name = "Tip-Adapter-F"
    group = "features"
    trained = ("keys",)

    def run_epoch(self) -> None:
        """Train the keys with the initial alpha and beta; then search both in the last epoch, or in any (best_val)."""
        node = self.cfg.TRAINER.TIPADAPTER
        self.model.alpha.fill_(node.ALPHA)
        self.model.beta.fill_(node.BETA)
        TrainerX.run_epoch(self)
        if self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val":
            super().run_epoch()

    forward_backward = cross_entropy_step
