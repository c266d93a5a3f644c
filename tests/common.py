"""Paths, marks and helpers of several test files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"  # reference data of the project, which a clone does not have
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, the project's reference data")
IS_WINDOWS = os.name == "nt" or "SIMULATED_WINDOWS" in os.environ  # the second: tests.windows
needs_bash = pytest.mark.skipif(IS_WINDOWS or shutil.which("bash") is None, reason="needs bash")
needs_links = pytest.mark.skipif(IS_WINDOWS, reason="needs symbolic links, which Windows refuses to most users")
# WordNet IDs, the names of ImageNet's class folders, with the class names; three suffice for tests.
WNIDS = {"n01440764": "tench", "n02102040": "English springer", "n03028079": "church"}


def load_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the state dict in a checkpoint."""
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def assert_same_tensors(first: Path, second: Path) -> None:
    """Assert that two checkpoints have state dicts with the same keys and bit for bit the same tensors."""
    state, other_state = load_tensors(first), load_tensors(second)
    assert state.keys() == other_state.keys()
    for key in state:
        assert torch.equal(state[key], other_state[key]), key


def damage_images(*paths: str | Path) -> None:
    """Replace each file by the first bytes of a PNG image, which cannot be read."""
    for path in paths:
        Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"cut")
