"""CLIP's frozen image encoder: by OpenVINO on a CPU, one block of images on each core; by PyTorch otherwise.

Images are encoded in blocks of a fixed size, the last one padded. So the feature of an image depends neither on the
number of images and their order, nor on the other images of its block (a test checks that).
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
from typing import Any

import torch
from torch import nn

from dassl.mkl import describe_cpu_sums
from dassl.utils import UserError

FEATURE_PRECISIONS = ("", "bf16")  # values of FEATURES.PREC; empty: the precision of the model


def get_processor_name(device: torch.device) -> str:
    """Return the name of a GPU, or the architecture and vector instructions of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def get_input_dtype(visual: nn.Module) -> torch.dtype:
    """Return the dtype of the images that an image encoder takes: that of its first convolution."""
    # In half precision, other parameters of OpenAI's vision transformers, the embeddings, stay fp32.
    convolutions = (module for module in visual.modules() if isinstance(module, nn.Conv2d))
    return next(convolutions).weight.dtype


class ImageEncoder:
    """Encodes images in blocks. ``description`` has everything that a feature depends on, except for the image."""

    package = "torch"  # the package that runs the encoder

    def __init__(self, visual: nn.Module, weights: str, precision: str):
        """Use CLIP's frozen image encoder, of fingerprint ``weights``; ``precision``: "bf16", or "" for its own."""
        self.visual, self.device, self.dtype = visual, next(visual.parameters()).device, get_input_dtype(visual)
        self.size: int = visual.input_resolution  # type: ignore[assignment]  # PyTorch types it Tensor | Module
        self.block = 8 if self.device.type == "cpu" else 64  # images; on a CPU, each core has its own block
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
        """Return precision, package and version, for messages."""
        return f"{self.precision}, {self.runtime}"

    def encode(self, images: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the feature (embed_dim,), not normalised, of each preprocessed image (3, height, width), on the CPU."""
        for features, count in self._encode(self._blocks(iter(images))):
            yield from features[:count].cpu()

    def _blocks(self, images: Iterator[torch.Tensor]) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield blocks (block, 3, height, width) with their number of images; the last one is padded with zeros."""
        while batch := list(islice(images, self.block)):
            block = torch.zeros(self.block, *batch[0].shape)
            torch.stack(batch, out=block[: len(batch)])
            yield block, len(batch)

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield the features (block, embed_dim) of each block, with its number of images."""
        raise NotImplementedError


class TorchEncoder(ImageEncoder):
    """Runs the image encoder by PyTorch."""

    def __init__(self, visual: nn.Module, weights: str, precision: str):
        """Use ``visual`` as ``ImageEncoder`` does; UserError if its device cannot compute in ``precision``."""
        super().__init__(visual, weights, precision)
        if self.device.type == "cpu":
            if precision == "bf16":
                raise UserError("FEATURES.PREC bf16 needs OpenVINO on a CPU: pip install openvino")
            self.description["sums"] = describe_cpu_sums()
        elif precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            name = get_processor_name(self.device)
            raise UserError(f"FEATURES.PREC is bf16, which {name} does not have; leave it empty")

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield the features of each block, with its number of images; one block is computed at a time."""
        bf16 = self.precision == "bf16" and self.dtype != torch.bfloat16
        for block, count in blocks:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                features = self.visual(block.to(self.device, self.dtype))
            yield features, count


class OpenVINOEncoder(ImageEncoder):
    """Runs the image encoder by OpenVINO, compiled on first use: not at all if all features of a run are cached."""

    package = "openvino"

    def __init__(self, visual: nn.Module, weights: str, precision: str):
        """Use ``visual`` as ``ImageEncoder`` does; UserError if the CPU cannot compute in ``precision``."""
        super().__init__(visual, weights, precision)
        if precision == "bf16":
            core = _import_openvino().Core()
            if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise UserError("FEATURES.PREC is bf16, but this processor has no bfloat16 arithmetic; leave it empty")

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        """Yield the features of each block, with its number of images; each core computes a block at a time."""
        requests = self._requests
        running: deque[tuple[Any, int]] = deque()  # requests with their number of images, in the order of the blocks

        def wait_for_first() -> tuple[torch.Tensor, int]:
            """Return the features of the block that was started first, and its number of images."""
            request, count = running.popleft()
            request.wait()
            return torch.from_numpy(request.get_output_tensor(0).data.copy()), count

        try:
            for (block, count), request in zip(blocks, cycle(requests)):
                if len(running) == len(requests):  # ``request`` itself is running: it was started first
                    yield wait_for_first()
                request.start_async({0: block.numpy()})
                running.append((request, count))
            while running:
                yield wait_for_first()
        finally:
            for request, _ in running:
                request.wait()

    @cached_property
    def _requests(self) -> list:
        """The inference requests of the compiled encoder: one for each core, each with its own thread."""
        ov = _import_openvino()
        example = torch.zeros(2, 3, self.size, self.size)
        batch = torch.export.Dim("batch", min=1, max=64)
        with torch.no_grad():
            model = ov.convert_model(torch.export.export(self.visual, (example,), dynamic_shapes=({0: batch},)))
        model.reshape([self.block, *example.shape[1:]])
        threads = torch.get_num_threads()
        options = {
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16" if self.precision == "bf16" else "f32",  # OpenVINO's default may be bf16
            "ENABLE_CPU_PINNING": False,  # pinning would also put all threads that PyTorch starts later on one core
        }
        compiled = ov.Core().compile_model(model, "CPU", options)
        return [compiled.create_infer_request() for _ in range(threads)]


def _import_openvino():
    """Return the module openvino, imported without its telemetry, which would report its use to its makers."""
    modules: dict[str, Any] = sys.modules
    modules.setdefault("openvino_telemetry", None)  # None lets its import fail
    import openvino

    return openvino


def _has_openvino() -> bool:
    """Return whether OpenVINO is installed."""
    return find_spec("openvino") is not None


@lru_cache(maxsize=1)
def build_image_encoder(visual: nn.Module, weights: str, precision: str = "") -> ImageEncoder:
    """Return the encoder of ``visual``: OpenVINO's if it is on a CPU and OpenVINO is installed, else PyTorch's.

    ``weights``: fingerprint of CLIP's weights. ``precision``: "bf16", or "" for that of ``visual``.
    """
    on_cpu = next(visual.parameters()).device.type == "cpu"
    return (OpenVINOEncoder if on_cpu and _has_openvino() else TorchEncoder)(visual, weights, precision)
