"""The README's commands for a user's photos, with the tiny CLIP in place of RN50."""

import shlex
import shutil

from tests.common import REPOSITORY
from tests.datasets.shapes import write_images
from tools import results_table, sweep

TINY = "OPTIM.MAX_EPOCH 1 --jobs 1"


def read_commands(readme: str) -> list[list[str]]:
    """Return the commands in the block with "DATASET.NAME ImageFolder", split into words."""
    before, match, after = (REPOSITORY / readme).read_text(encoding="utf-8").partition("DATASET.NAME ImageFolder")
    block = before.rpartition("\n\n")[2] + match + after.partition("\n\n")[0]
    words = [shlex.split(line, comments=True) for line in block.replace("\\\n", "").splitlines()]
    return [line for line in words if line]


def test_the_commands_for_photos_write_a_results_table(tmp_path, monkeypatch):
    write_images(tmp_path / "photos", (f"{name}/{i}.jpg" for name in ("cat", "big_dog") for i in range(4)))
    assert read_commands("README.md") == read_commands("README.zh-CN.md")
    (python, runs, *options), (_, table, folder) = read_commands("README.md")
    assert (python, runs, table) == ("python", "tools/sweep.py", "tools/results_table.py")
    assert options[0] == "configs/sweeps/imagenette.yaml"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "configs", tmp_path / "configs")
    assert sweep.main(["configs/sweeps/digits.yaml", *options[1:], *shlex.split(TINY)]) == 0
    assert results_table.main([folder]) == 0
    text = (tmp_path / folder / "results.md").read_text(encoding="utf-8")
    assert "Missing" not in text
    assert "| Zero-shot CLIP" in text
    log = (tmp_path / folder / "CoOp/tiny_1shots/seed1/log.txt").read_text(encoding="utf-8")
    assert "ImageFolder" in log
