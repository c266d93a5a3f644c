"""tools/interpret_prompt.py: the words that are nearest to learned context tokens."""

from __future__ import annotations

import re

import pytest
import torch

import tools.interpret_prompt as tool  # noqa: F401  which call() calls
from dassl.utils import save_checkpoint
from datasets.digits import NAMES
from vlm import openai
from vlm.tiny.weights import load_tiny

TABLE = load_tiny()["token_embedding.weight"]
SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", "True")


def token(text: str) -> int:
    (number,) = openai.tokenizer.encode(text)
    return number


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint of a context, as CoOp would; returns its path."""

    def write(context: torch.Tensor):
        save_checkpoint({"state_dict": {"ctx": context}, "epoch": 1}, tmp_path / "prompt_learner")
        return tmp_path / "prompt_learner/model.pth.tar-1"

    return write


def words_in(text: str) -> list[list[tuple[str, float]]]:
    rows = [line for line in text.splitlines() if re.match(r" *\d+  ", line)]
    return [[(w, float(d)) for w, d in re.findall(r"(\S+) \((\d+\.\d+)\)", row)] for row in rows]


def test_the_nearest_words_with_their_distances(call, checkpoint):
    learned = torch.stack([TABLE[token("photo")] + 0.001, 0.5 * (TABLE[token("cat")] + TABLE[token("dog")])])
    code, output, _ = call(checkpoint(learned.half()), 3, "--backbone", "tiny")
    assert code == 0
    found = words_in(output)
    assert [len(row) for row in found] == [3, 3]
    for row, vector in zip(found, learned.half().float(), strict=True):
        distances = (TABLE - vector).norm(dim=1)
        nearest = distances.topk(3, largest=False).values
        assert [distance for _, distance in row] == pytest.approx(nearest.tolist(), abs=1e-4)
    assert found[0][0][0] == "photo"
    assert {found[1][0][0], found[1][1][0]} == {"cat", "dog"}


def test_beginnings_of_words_are_told_from_words(call, checkpoint):
    beginning = openai.tokenizer.encoder["cat"]
    assert beginning != token("cat") == openai.tokenizer.encoder["cat</w>"]
    _, output, _ = call(checkpoint(TABLE[[beginning, token("cat")]]), "--topk", 1, "--backbone", "tiny")
    assert words_in(output) == [[("cat-", 0.0)], [("cat", 0.0)]]


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp"])
def test_a_run_tells_its_backbone_and_has_epochs(run, call, trainer):
    learned = (f"TRAINER.{trainer.upper()}.CTX_INIT", "a photo of a", "OPTIM.LR", 0.0)
    trained = run(*SHORT, *learned, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, trainer=trainer)
    code, output, _ = call(trained.folder, "--topk", 1)
    assert code == 0
    assert "model.pth.tar-2:" in output
    assert [row[0][0] for row in words_in(output)] == ["a", "photo", "of", "a"]
    assert call(trained.checkpoint(2), 1)[1] == output  # a file in a run
    assert "model.pth.tar-1:" in call(trained.folder, "--load-epoch", 1)[1]


def test_class_specific_contexts_by_their_names(run, call):
    trained = run(*SHORT, "TRAINER.COOP.CSC", "True", "TRAINER.COOP.N_CTX", 2)
    _, output, _ = call(trained.folder, "--topk", 2)
    assert len(words_in(output)) == 20
    assert [line for line in output.splitlines() if line in NAMES] == list(NAMES)
    (trained.folder / "result.json").unlink()
    assert "class 9" in call(trained.folder, "--topk", 2)[1]


@pytest.mark.parametrize(
    ("context", "arguments", "parts"),
    [
        (torch.zeros(4, 512), ["--backbone", "tiny"], ["512", "tiny have 128", "another CLIP"]),
        (torch.zeros(4, 128), [], ["no CLIP is named", "--backbone"]),
        (torch.zeros(4, 128), ["--backbone", "tiny", "--topk", 0], ["--topk is 0"]),
        (torch.zeros(128), ["--backbone", "tiny"], ['no learned context "ctx"']),
        (torch.zeros(4, 128), ["--backbone", "tiny", "--load-epoch", 1], ["--load-epoch is for the folder of a run"]),
    ],
)
def test_mistakes(call, checkpoint, context, arguments, parts):
    code, _, error = call(checkpoint(context), *arguments)
    assert code == 2
    assert error.count("error: ") == 1
    assert all(part in error for part in parts)


def test_a_folder_that_is_no_run(call, tmp_path):
    assert call(tmp_path)[0] == 2
    assert "no checkpoint at" in call(tmp_path / "absent", "--backbone", "tiny")[2]
