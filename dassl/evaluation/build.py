"""Evaluators by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yacs.config import CfgNode

from dassl.utils import Registry

if TYPE_CHECKING:
    from .evaluator import EvaluatorBase

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs) -> EvaluatorBase:
    """The evaluator that TEST.EVALUATOR names."""
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
