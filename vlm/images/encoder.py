"""CLIP's frozen image encoder, run as fast as the machine allows.

On a CPU by OpenVINO, one image block on each core; where that is not installed, and on CUDA, by PyTorch. Images are
encoded in blocks of one size, the last one filled up: so a feature does not depend on how many images are asked for,
nor on their order, nor (a test holds it) on the other images of its block.
"""

from __future__ import annotations

import platform
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import cycle, islice

import torch
from torch import nn

from dassl.utils import UserError

PRECISIONS = ("", "bf16")  # empty: that of the model


def get_processor_name(device: torch.device) -> str:
    """Return the name of a GPU, or what a CPU is capable of."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def get_input_dtype(visual: nn.Module) -> torch.dtype:
    """Return the type of the images that an image encoder takes: that of its first convolution.

    Of OpenAI's vision transformers in half precision, the embeddings stay fp32.
    """
    convolutions = (module for module in visual.modules() if isinstance(module, nn.Conv2d))
    return next(convolutions).weight.dtype


class ImageEncoder:
    """Turns images into features; ``description`` tells everything that a feature depends on, beside the image."""

    package = "torch"  # that runs the encoder

    def __init__(self, visual: nn.Module, weights: str, precision: str):
        self.visual, self.device, self.dtype = visual, next(visual.parameters()).device, get_input_dtype(visual)
        self.size = visual.input_resolution
        self.block = 8 if self.device.type == "cpu" else 64  # images
        self.precision = precision or str(self.dtype).rpartition(".")[2]
        self.runtime = f"{self.package} {version(self.package)}"
        self.description = {
            "weights": weights,
            "precision": self.precision,
            "runtime": self.runtime,
            "processor": get_processor_name(self.device),
            "block": self.block,
            "preprocessing": " ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow")),
        }

    def __str__(self) -> str:
        return f"{self.precision}, {self.runtime}"

    def encode(self, images: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Images (3, height, width) -> features (embed_dim,), in order."""
        for features, count in self._encode(self._blocks(iter(images))):
            yield from features[:count].cpu()

    def _blocks(self, images: Iterator[torch.Tensor]) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield blocks (block, 3, height, width), and how many images are in each; the last one is filled up."""
        while part := list(islice(images, self.block)):
            block = torch.zeros(self.block, *part[0].shape)
            torch.stack(part, out=block[: len(part)])
            yield block, len(part)


class TorchEncoder(ImageEncoder):
    def __init__(self, visual: nn.Module, weights: str, precision: str):
        super().__init__(visual, weights, precision)
        if self.device.type == "cpu":
            if precision == "bf16":
                raise UserError("FEATURES.PREC bf16 needs OpenVINO on a CPU: pip install openvino")
            self.description["threads"] = torch.get_num_threads()  # the order of summation depends on them
        elif precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(
                f"FEATURES.PREC is bf16, which {get_processor_name(self.device)} does not have; leave it empty"
            )

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        bf16 = self.precision == "bf16" and self.dtype != torch.bfloat16
        for block, count in blocks:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                features = self.visual(block.to(self.device, self.dtype))
            yield features, count


class OpenVINOEncoder(ImageEncoder):
    """Compiled on first use: a run that finds all its features in the cache never needs it."""

    package = "openvino"

    def __init__(self, visual: nn.Module, weights: str, precision: str):
        super().__init__(visual, weights, precision)
        if precision == "bf16" and "BF16" not in _import_openvino().Core().get_property(
            "CPU", "OPTIMIZATION_CAPABILITIES"
        ):
            raise UserError("FEATURES.PREC is bf16, but this processor has no bfloat16 arithmetic; leave it empty")

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        requests, busy = self._requests, deque()

        def finished() -> tuple[torch.Tensor, int]:
            request, count = busy.popleft()
            request.wait()
            return torch.from_numpy(request.get_output_tensor(0).data.copy()), count

        try:
            for (block, count), request in zip(blocks, cycle(requests)):
                if len(busy) == len(requests):  # this one, too
                    yield finished()
                request.start_async({0: block.numpy()})
                busy.append((request, count))
            while busy:
                yield finished()
        finally:
            for request, _ in busy:
                request.wait()

    @cached_property
    def _requests(self) -> list:
        """One inference request a core, each on a thread of its own."""
        ov = _import_openvino()
        example = torch.zeros(2, 3, self.size, self.size)
        batch = torch.export.Dim("batch", min=1, max=64)
        with torch.no_grad():
            model = ov.convert_model(torch.export.export(self.visual, (example,), dynamic_shapes=({0: batch},)))
        model.reshape([self.block, *example.shape[1:]])
        threads = torch.get_num_threads()
        settings = {
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",  # else it picks bf16 by itself
            "ENABLE_CPU_PINNING": False,  # it would pin the threads that PyTorch starts later, too: all to one core
        }
        compiled = ov.Core().compile_model(model, "CPU", settings)
        return [compiled.create_infer_request() for _ in range(threads)]


def _import_openvino():
    sys.modules.setdefault("openvino_telemetry", None)  # OpenVINO would report its use to its makers
    import openvino

    return openvino


def _has_openvino() -> bool:
    return find_spec("openvino") is not None


@lru_cache(maxsize=1)
def build_image_encoder(visual: nn.Module, weights: str, precision: str = "") -> ImageEncoder:
    """Return the fastest encoder for a frozen ``visual``, of fingerprint ``weights``; the latest one is kept."""
    on_cpu = next(visual.parameters()).device.type == "cpu"
    return (OpenVINOEncoder if on_cpu and _has_openvino() else TorchEncoder)(visual, weights, precision)
