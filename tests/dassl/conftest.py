"""Images that several tests load."""

import numpy as np
import pytest
from PIL import Image

from dassl.data.datasets import Datum


@pytest.fixture
def images(tmp_path) -> list[Datum]:
    """Seven pictures of noise, of two classes and three domains."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(path)
    return [Datum(str(path), number % 2, number % 3, "name") for number, path in enumerate(paths)]
