"""Names that several tests use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"  # the makers' reference data, which a clone does not have
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, the makers' reference data")
WNIDS = {"n01440764": "tench", "n02102040": "English springer", "n03028079": "church"}


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def assert_same_tensors(one: Path, other: Path) -> None:
    """Two checkpoints hold bit for bit the same."""
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def damage(*paths: str | Path) -> None:
    """Put the same few bytes, which are no whole picture, in place of pictures."""
    for path in paths:
        Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"cut")
