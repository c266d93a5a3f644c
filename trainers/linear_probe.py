"""The linear probe: logistic regression on CLIP's image features, without its text encoder.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021, section 3.2 and appendix
A.3: L-BFGS of scikit-learn, at most 1,000 iterations, the strength of the L2 regularisation swept on validation images
from 1e-6 to 1e6: seven values first, then the interval around the best is halved until there are 8 steps a decade.
What is reported is fitted to the shots alone, as few-shot studies do it; no crops or flips, as in the paper.

Features are brought to length 10, about that of CLIP's raw ones, where the paper takes them as they are: one range of
strengths then suits every backbone, and the classifier is a linear head on unit features.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import nn
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.utils import UserError, check_at_least
from vlm.similarity import normalize

from .backbone import load_backbone
from .shots import (
    bind_classnames,
    build_shots_loader,
    check_no_init_weights,
    collect_features,
    collect_validation_features,
    score_candidates,
)

FEATURE_NORM = 10.0  # of the features
MAX_ITERATIONS = 1000
COARSE_GRID = (-6, -4, -2, 0, 2, 4, 6)  # powers of ten
FINEST_STEP = 1 / 8  # of a decade
DEFAULT_C = 0.316  # C in the example of CLIP's README


def fit_linear_probe(features: torch.Tensor, labels: torch.Tensor, c: float) -> nn.Linear:
    """Logistic regression on features (images, dim), brought to ``FEATURE_NORM``; its logits are (images, classes).

    Args:
        labels: (images,), of all classes.
        c: the inverse strength of the regularisation.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    inputs = FEATURE_NORM * normalize(features.double()).cpu().numpy()
    regression = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    # A sweep of runs gives each of them a few cores; scikit-learn would take all.
    with threadpool_limits(torch.get_num_threads()), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak regularisation of the sweep
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one image each
        regression.fit(inputs, labels.cpu().numpy())
    weight, bias = torch.from_numpy(regression.coef_), torch.from_numpy(regression.intercept_)
    if len(weight) == 1:  # of two classes, scikit-learn gives the difference
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    head = nn.Linear(features.shape[1], len(weight))
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.to(features.device)


def predict(head: nn.Linear, features: torch.Tensor) -> torch.Tensor:
    """Logits (images, classes) of features (images, dim) of any length."""
    return head(FEATURE_NORM * normalize(features.float()))


@torch.no_grad()
def sweep_regularization(
    shots: tuple[torch.Tensor, torch.Tensor], validation: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, nn.Linear, float]:
    """Return the C that does best on ``validation``, its classifier, and its accuracy there (%).

    Both arguments are features (images, dim) and labels (images,).
    """
    features, labels = validation

    @cache
    def classifier(power: float) -> tuple[nn.Linear, tuple[float, float]]:
        head = fit_linear_probe(*shots, 10**power)
        return head, score_candidates(predict(head, features)[None], labels)[0]

    best, step = max(COARSE_GRID, key=lambda power: classifier(power)[1]), 1.0
    while step >= FINEST_STEP:
        around = (power for power in (best - step, best + step) if COARSE_GRID[0] <= power <= COARSE_GRID[-1])
        best, step = max((best, *around), key=lambda power: classifier(power)[1]), step / 2
    head, (accuracy, _) = classifier(best)
    return 10**best, head, accuracy


@TRAINER_REGISTRY.register()
class LinearProbe(TrainerX):
    """A linear classifier with bias, classes * (embed_dim + 1) parameters."""

    @classmethod
    def extend_cfg(cls, cfg: CfgNode) -> None:
        cfg.TRAINER.LINEARPROBE = CfgNode()
        cfg.TRAINER.LINEARPROBE.C = 0.0  # inverse strength of the L2 regularisation; 0: swept on validation images

    def check_cfg(self, cfg: CfgNode) -> None:
        check_no_init_weights(cfg)
        check_at_least(cfg.TRAINER.LINEARPROBE.C, 0, "TRAINER.LINEARPROBE.C")

    def build_model(self) -> None:
        classnames = self.dm.dataset.classnames
        if len(classnames) < 2:
            raise UserError(f"the linear probe tells classes apart, but {self.cfg.DATASET.NAME} has {len(classnames)}")
        self.backbone = load_backbone(self)
        self.model = nn.Linear(self.backbone.text_encoder().embed_dim, len(classnames)).to(self.device)
        bind_classnames(self.model, classnames, self.device)
        self.register_model("linear_probe", self.model)
        self.max_epoch = 1  # fitted at once
        self.feature_extractor = self.backbone.feature_extractor()
        self.provenance = self.backbone.report(self)

    def run_epoch(self) -> None:
        shots = collect_features(self, build_shots_loader(self, augmented=False))
        if absent := sorted({*self.dm.dataset.lab2cname} - {*shots[1].tolist()}):
            names = ", ".join(self.dm.dataset.lab2cname[label] for label in absent)
            raise UserError(f"the linear probe needs a training image of each class; without: {names}")
        c = self.cfg.TRAINER.LINEARPROBE.C
        chosen_on = None if c else collect_validation_features(self)
        if chosen_on:
            c, head, accuracy = sweep_regularization(shots, chosen_on)
            how = f"swept on {len(chosen_on[1]):,} validation images: {accuracy:.2f}% of them"
        else:
            c, how = c or DEFAULT_C, "not swept"
            head = fit_linear_probe(*shots, c)
        print(f"C {c:.4g}, {how}")
        self.model.load_state_dict(head.state_dict())

    def model_inference(self, input: torch.Tensor) -> torch.Tensor:
        return predict(self.model, input)

    @torch.no_grad()
    def linear_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        return FEATURE_NORM * self.model.weight, self.model.bias
