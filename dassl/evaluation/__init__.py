"""Evaluators: they collect the predictions of a test set and report the metrics."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .evaluator import Classification, EvaluatorBase
from .retrieval import Retrieval
