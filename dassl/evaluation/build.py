"""The registry of evaluators."""

from yacs.config import CfgNode

from dassl.utils import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs):
    """Return the evaluator that TEST.EVALUATOR names, made with ``cfg`` and ``kwargs``; UserError if it is unknown."""
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)
