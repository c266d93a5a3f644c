"""CLIP's frozen image encoder, run as fast as the machine allows.

On a CPU by OpenVINO, one image block on each core; where that is not installed, and on CUDA, by PyTorch. On CUDA, one
block is copied while another is computed (no GPU has run this so far: its speed is not known). Images are encoded in
blocks of one size, the last one filled up: so a feature does not depend on how many images are asked for,
nor on their order, nor (a test holds it) on the other images of its block.
"""

from __future__ import annotations

import platform
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import islice

import torch
from torch import nn

from dassl.utils import UserError

PRECISIONS = ("", "bf16")  # empty: that of the model
BLOCK = {"cpu": 8, "cuda": 64}  # images


class ImageEncoder:
    """Turns images into features; ``description`` tells everything that a feature depends on, beside the image."""

    def __init__(self, visual: nn.Module, weights: str, precision: str):
        parameter = next(visual.parameters())
        self.visual, self.device, self.dtype = visual, parameter.device, parameter.dtype
        self.size = visual.input_resolution
        self.block = BLOCK.get(self.device.type, 64)
        self.precision = precision or str(self.dtype).rpartition(".")[2]
        self.runtime = self._runtime()
        self.description = {
            "weights": weights,
            "precision": self.precision,
            "runtime": self.runtime,
            "processor": self._processor(),
            "block": self.block,
            "preprocessing": " ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow")),
        }

    def __str__(self) -> str:
        return f"{self.precision}, {self.runtime}"

    def _runtime(self) -> str:
        return f"torch {version('torch')}"

    def _processor(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"

    def encode(self, images: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Images (3, height, width) -> features (embed_dim,), in order."""
        for features, count in self._encode(self._blocks(iter(images))):
            yield from features[:count].cpu()

    def _blocks(self, images: Iterator[torch.Tensor]) -> Iterator[tuple[torch.Tensor, int]]:
        """Blocks (block, 3, height, width), and how many images of each are not there to fill it up."""
        while part := list(islice(images, self.block)):
            # Pinned, a block can be copied to a GPU while that computes.
            block = torch.zeros(self.block, *part[0].shape, pin_memory=self.device.type == "cuda")
            torch.stack(part, out=block[: len(part)])
            yield block, len(part)

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        raise NotImplementedError


class TorchEncoder(ImageEncoder):
    def __init__(self, visual: nn.Module, weights: str, precision: str):
        super().__init__(visual, weights, precision)
        if self.device.type == "cpu":
            if precision == "bf16":
                raise UserError("FEATURES.PREC bf16 needs OpenVINO on a CPU: pip install openvino")
            self.description["threads"] = torch.get_num_threads()  # the order of summation depends on them
        elif precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError(f"FEATURES.PREC is bf16, which {self._processor()} does not have; leave it empty")

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        for block, count in blocks:
            yield self._features(block.to(self.device, self.dtype)), count

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        bf16 = self.precision == "bf16" and self.dtype != torch.bfloat16
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            return self.visual(images)


class CUDAEncoder(TorchEncoder):
    """Two blocks are under way: while one is computed, the next one is read and copied, and neither waits for the host.

    PyTorch keeps pinned memory until the copies from or to it have ended.
    """

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        self._copies, busy = torch.cuda.Stream(self.device), deque()

        def finished() -> tuple[torch.Tensor, int]:
            features, done, count = busy.popleft()
            done.synchronize()
            return features, count

        for block, count in blocks:
            busy.append((*self._start(block), count))
            if len(busy) == 2:
                yield finished()
        while busy:
            yield finished()

    def _start(self, block: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """The features of a block in pinned memory, which are there once the event has come."""
        compute = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            # Converted there, as a conversion on the way would be done here, into memory that is not pinned.
            images = block.to(self.device, non_blocking=True).to(self.dtype)
        compute.wait_stream(self._copies)
        images.record_stream(compute)  # else the next block could take its memory
        features = self._features(images)
        result = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        result.copy_(features, non_blocking=True)
        done = torch.cuda.Event()
        done.record(compute)
        return result, done


class OpenVINOEncoder(ImageEncoder):
    """Compiled on first use: a run that finds all its features in the cache never needs it."""

    _requests = None

    def __init__(self, visual: nn.Module, weights: str, precision: str):
        super().__init__(visual, weights, precision)
        if precision == "bf16" and "BF16" not in _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError(
                "FEATURES.PREC is bf16, but this processor has no bfloat16 arithmetic and would take ten times as "
                "long as for fp32; leave FEATURES.PREC empty"
            )

    def _runtime(self) -> str:
        return f"openvino {version('openvino')}"

    def _encode(self, blocks: Iterator[tuple[torch.Tensor, int]]) -> Iterator[tuple[torch.Tensor, int]]:
        if self._requests is None:
            self._requests = self._compile()
        free, busy = deque(self._requests), deque()

        def finished() -> tuple[torch.Tensor, int]:
            request, count = busy.popleft()
            request.wait()
            free.append(request)
            return torch.from_numpy(request.get_output_tensor(0).data.copy()), count

        try:
            for block, count in blocks:
                if not free:
                    yield finished()
                request = free.popleft()
                request.start_async({0: block.numpy()})
                busy.append((request, count))
            while busy:
                yield finished()
        finally:
            for request, _ in busy:
                request.wait()

    def _compile(self) -> list:
        """One inference request a core, each on a thread of its own."""
        ov = _openvino()
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


def _openvino():
    sys.modules.setdefault("openvino_telemetry", None)  # OpenVINO would report its use to its makers
    import openvino

    return openvino


def _has_openvino() -> bool:
    try:
        return bool(version("openvino"))
    except PackageNotFoundError:
        return False


@lru_cache(maxsize=1)
def image_encoder(visual: nn.Module, weights: str, precision: str = "") -> ImageEncoder:
    """The fastest encoder for ``visual`` (of fingerprint ``weights``), which must not change; the latest one is kept.

    Raises:
        UserError: the processor does not have the precision.
    """
    kind = {"cpu": OpenVINOEncoder if _has_openvino() else TorchEncoder, "cuda": CUDAEncoder}
    return kind.get(next(visual.parameters()).device.type, TorchEncoder)(visual, weights, precision)
