"""The forward and backward pass of a training step as a CUDA graph (TRAIN.CUDA_GRAPH).

With few classes, a GPU waits for the launches of a step's hundreds of small kernels. A graph launches them at once, the
very same. It is of one shape of batch; others are computed plainly. No GPU has run this so far: tests know the capture
by a stand-in alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

WARM_UP = 3  # passes before the capture, as PyTorch asks: what its libraries set up first cannot be captured

Tensors = tuple[torch.Tensor, ...]


class StepGraph:
    """Calls ``compute``, which maps the tensors of a batch to a loss and other tensors, and leaves the gradient of the
    loss in ``parameters``. What it returns is overwritten by the next call."""

    def __init__(self, compute: Callable[..., Tensors], parameters: Iterable[nn.Parameter]):
        self._compute, self._parameters = compute, list(parameters)
        self._inputs: Tensors = ()  # of the graph: it reads a batch from there

    def __call__(self, *batch: torch.Tensor) -> Tensors:
        if not self._inputs:
            self._inputs = tuple(tensor.clone() for tensor in batch)
            self._outputs, self._replay = captured(lambda: self._plainly(self._inputs))
            self._gradients = [parameter.grad for parameter in self._parameters]
        if [tensor.shape for tensor in batch] != [tensor.shape for tensor in self._inputs]:
            return self._plainly(batch)
        for own, tensor in zip(self._inputs, batch, strict=True):
            own.copy_(tensor)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._outputs

    def _plainly(self, batch: Tensors) -> Tensors:
        for parameter in self._parameters:
            parameter.grad = None  # so that the pass makes a gradient, instead of adding to one
        outputs = self._compute(*batch)
        outputs[0].backward()
        return tuple(output.detach() for output in outputs)


def captured(work: Callable[[], Tensors]) -> tuple[Tensors, Callable[[], None]]:
    """What ``work`` returns, and a function that does all of it again, into the same memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's thread may be pinning memory
        outputs = work()
    return outputs, graph.replay
