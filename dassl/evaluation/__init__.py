"""Evaluators: they collect a test set's predictions and report on them."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .evaluator import Classification, EvaluatorBase
from .retrieval import Retrieval
