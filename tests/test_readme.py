"""The README's own photos: its lines as they stand, with the tiny CLIP in place of RN50."""

import shlex

from tests.common import REPOSITORY
from tests.datasets.shapes import write_images
from tools import results_table, sweep

TINY = "OPTIM.MAX_EPOCH 1 --jobs 1"


def commands(readme: str) -> list[list[str]]:
    """The commands under the heading of one's own photos, split into words."""
    lines = (REPOSITORY / readme).read_text(encoding="utf-8").partition("DATASET.NAME ImageFolder")
    block = lines[0].rpartition("\n\n")[2] + lines[1] + lines[2].partition("\n\n")[0]
    words = [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]
    return [line for line in words if line]


def test_photos_of_ones_own_become_a_table(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", (f"{name}/{i}.jpg" for name in ("cat", "big_dog") for i in range(4)))
    assert commands("README.md") == commands("README.zh-CN.md")
    (python, runs, *options), (_, table, folder) = commands("README.md")
    assert (python, runs, table) == ("python", "tools/sweep.py", "tools/results_table.py")
    assert options[0] == "configs/sweeps/imagenette.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    assert sweep.main(["configs/sweeps/digits.yaml", *options[1:], *shlex.split(TINY)]) == 0
    assert results_table.main([folder]) == 0
    text = (tmp_path / folder / "results.md").read_text()
    assert "Missing" not in text
    assert "| Zero-shot CLIP" in text
    log = (tmp_path / folder / "CoOp/tiny_1shots/seed1/log.txt").read_text()
    assert "ImageFolder" in log
