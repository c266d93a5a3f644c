"""The linear probe: logistic regression on CLIP's image features, without its text encoder.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 3.2 and appendix
A.3: L-BFGS of scikit-learn, at most 1,000 iterations, without crops or flips. The inverse strength C of the L2
regularisation is swept on validation images from 1e-6 to 1e6: first seven values, then the interval around the best is
halved until there are 8 steps a decade. As in few-shot studies, the final classifier is fitted to the shots alone.

The paper takes features as CLIP gives them. Here they are scaled to length 10, about the length of CLIP's features: one
range of C then suits every backbone, and the classifier is a linear head on unit features.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import check_at_least
from vlm.similarity import normalize

from . import shots
from .backbone import load_backbone

FEATURE_NORM = 10.0  # length of the features in the regression: about the length of CLIP's features
MAX_ITERATIONS = 1000  # of L-BFGS, as in the paper
COARSE_GRID = (-6, -4, -2, 0, 2, 4, 6)  # exponents of ten of the first values of C, as in the paper
FINEST_STEP = 1 / 8  # decades between the last values of C, as in the paper
DEFAULT_C = 0.316  # C without validation images, from the example in CLIP's README


def fit_linear_probe(features: torch.Tensor, labels: torch.Tensor, c: float) -> nn.Linear:
    """Fit a logistic regression to features (images, dim); return it as a linear layer.

    Features of any norm are first scaled to ``FEATURE_NORM``; so does ``predict`` with the layer's input.

    Args:
        labels: (images,), with at least one image of each class.
        c: inverse strength of the L2 regularisation.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    inputs = FEATURE_NORM * normalize(features.double()).cpu().numpy()
    regression = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    # scikit-learn would use all cores, also those that a sweep gives to other runs.
    with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # expected for the large C of the sweep
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # expected with 1 shot
        regression.fit(inputs, labels.cpu().numpy())
    weight, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
    if len(weight) == 1:  # for two classes, scikit-learn returns the difference of the logits
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    head = nn.Linear(features.shape[1], len(weight))
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.to(features.device)


def predict(head: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """Return the logits (images, classes) of a linear probe for features (images, dim) of any length."""
    return head(FEATURE_NORM * normalize(features.float()))


@torch.no_grad()
def sweep_regularization(
    train: tuple[torch.Tensor, torch.Tensor], validation: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, nn.Linear, float]:
    """Return the C with the best score on ``validation``, its linear probe, and its validation accuracy (%).

    ``train`` and ``validation`` are features (images, dim) and labels (images,).
    """
    features, labels = validation

    fit = cache(lambda exponent: fit_linear_probe(*train, 10**exponent))

    def score(exponent: float) -> tuple[float, float]:
        """Return the score (``shots.score_candidates``) of the linear probe for C = 10 ** ``exponent``."""
        return shots.score_candidates(predict(fit(exponent), features)[None], labels)[0]

    best: float = max(COARSE_GRID, key=score)
    step = 1.0
    while step >= FINEST_STEP:
        neighbours = (e for e in (best - step, best + step) if COARSE_GRID[0] <= e <= COARSE_GRID[-1])
        best, step = max((best, *neighbours), key=score), step / 2
    return 10**best, fit(best), score(best)[0]


@TRAINER_REGISTRY.register()
class LinearProbe(TrainerX):
    """Fits a linear classifier with bias, of classes * (embed_dim + 1) parameters, to the image features."""

    display_name = "Linear probe"
    group = "features"
    training_keys = ("C",)

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        """Add TRAINER.LINEARPROBE, the config node of this method, with its defaults to ``cfg``, in place."""
        cfg.TRAINER.LINEARPROBE = CfgNode()
        cfg.TRAINER.LINEARPROBE.C = 0.0  # inverse strength of the L2 regularisation; 0: swept on validation images

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raise ``UserError`` for INIT_WEIGHTS or a negative C."""
        shots.check_shots_cfg(self, cfg)
        check_at_least(cfg.TRAINER.LINEARPROBE.C, 0, "TRAINER.LINEARPROBE.C")

    def build_model(self) -> None:
        """Register a linear classifier without an optimizer; make CLIP's image encoder the feature extractor."""
        self.backbone = load_backbone(self)
        model = nn.Linear(self.backbone.embed_dim, self.num_classes)
        self.feature_extractor = self.backbone.build_feature_extractor()
        shots.register_feature_model(self, self.backbone, "linear_probe", model, optimize=False)

    def run_epoch(self) -> None:
        """Fit the classifier to the shots. A C of 0 is swept on validation images; without any, it is DEFAULT_C."""
        train = shots.collect_features(self, shots.build_shots_loader(self, augmented=False))
        shots.check_shots(self, train[1])
        c = self.cfg.TRAINER.LINEARPROBE.C
        validation = None if c else shots.collect_validation_features(self)
        if validation:
            c, head, accuracy = sweep_regularization(train, validation)
            source = f"swept on {len(validation[1]):,} validation images: {accuracy:.2f}% of them"
        else:
            c, source = c or DEFAULT_C, "not swept"
            head = fit_linear_probe(*train, c)
        print(f"C {c:.4g}, {source}")
        self.model.load_state_dict(head.state_dict())

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        """Return logits (images, classes) for image features (images, embed_dim) of any length."""
        return predict(self.model, input)

    @torch.no_grad()
    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight (classes, embed_dim) and bias (classes,) that give the logits of unit image features."""
        return FEATURE_NORM * self.model.weight, self.model.bias
