"""tools/interpret_prompt.py: the words nearest to learned context tokens."""

from __future__ import annotations

import re

import pytest
import torch

import tools.interpret_prompt as tool  # noqa: F401  the fixture call runs it
from dassl.utils import save_checkpoint
from datasets.digits import DIGIT_NAMES
from vlm import openai
from vlm.tiny.weights import load_tiny

EMBEDDINGS = load_tiny()["token_embedding.weight"]
SHORT = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", "True")


def token(text: str) -> int:
    """Return the id of a text that is one token."""
    (number,) = openai.tokenizer.encode(text)
    return number


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that writes a checkpoint of a context as CoOp does and returns its path."""

    def write(context: torch.Tensor):
        save_checkpoint({"state_dict": {"ctx": context}, "epoch": 1}, tmp_path / "prompt_learner")
        return tmp_path / "prompt_learner/model.pth.tar-1"

    return write


def parse_words(text: str) -> list[list[tuple[str, float]]]:
    """Return (word, distance) of each word in each row of the printed tables."""
    rows = [line for line in text.splitlines() if re.match(r" *\d+  ", line)]
    return [[(w, float(d)) for w, d in re.findall(r"(\S+) \((\d+\.\d+)\)", row)] for row in rows]


def test_the_nearest_words_are_printed_with_their_distances(call, checkpoint):
    learned = torch.stack(
        [EMBEDDINGS[token("photo")] + 0.001, 0.5 * (EMBEDDINGS[token("cat")] + EMBEDDINGS[token("dog")])]
    )
    code, output, _ = call(checkpoint(learned.half()), 3, "--backbone", "tiny")
    assert code == 0
    rows = parse_words(output)
    assert [len(row) for row in rows] == [3, 3]
    for row, vector in zip(rows, learned.half().float(), strict=True):
        distances = (EMBEDDINGS - vector).norm(dim=1)
        nearest = distances.topk(3, largest=False).values
        assert [distance for _, distance in row] == pytest.approx(nearest.tolist(), abs=1e-4)
    assert rows[0][0][0] == "photo"
    assert {rows[1][0][0], rows[1][1][0]} == {"cat", "dog"}


def test_a_token_that_begins_a_word_ends_in_a_hyphen(call, checkpoint):
    beginning = openai.tokenizer.encoder["cat"]
    assert beginning != token("cat") == openai.tokenizer.encoder["cat</w>"]
    _, output, _ = call(checkpoint(EMBEDDINGS[[beginning, token("cat")]]), "--topk", 1, "--backbone", "tiny")
    assert parse_words(output) == [[("cat-", 0.0)], [("cat", 0.0)]]


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp"])
def test_the_backbone_and_the_checkpoint_come_from_the_run(run, call, trainer):
    learned = (f"TRAINER.{trainer.upper()}.CTX_INIT", "a photo of a", "OPTIM.LR", 0.0)
    trained = run(*SHORT, *learned, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, trainer=trainer)
    code, output, _ = call(trained.folder, "--topk", 1)
    assert code == 0
    assert "model.pth.tar-2:" in output
    assert [row[0][0] for row in parse_words(output)] == ["a", "photo", "of", "a"]
    assert call(trained.checkpoint(2), 1)[1] == output  # a checkpoint in a run
    assert "model.pth.tar-1:" in call(trained.folder, "--load-epoch", 1)[1]


def test_class_specific_contexts_are_printed_under_their_class_names(run, call):
    trained = run(*SHORT, "TRAINER.COOP.CSC", "True", "TRAINER.COOP.N_CTX", 2)
    _, output, _ = call(trained.folder, "--topk", 2)
    assert len(parse_words(output)) == 20
    assert [line for line in output.splitlines() if line in DIGIT_NAMES] == list(DIGIT_NAMES)
    (trained.folder / "result.json").unlink()
    assert "class 9" in call(trained.folder, "--topk", 2)[1]


@pytest.mark.parametrize(
    ("context", "arguments", "fragments"),
    [
        (torch.zeros(4, 512), ["--backbone", "tiny"], ["512", "tiny have 128", "another CLIP"]),
        (torch.zeros(4, 128), [], ["no CLIP is named", "--backbone"]),
        (torch.zeros(4, 128), ["--backbone", "tiny", "--topk", 0], ["--topk is 0"]),
        (torch.zeros(128), ["--backbone", "tiny"], ['no learned context "ctx"']),
        (torch.zeros(4, 128), ["--backbone", "tiny", "--load-epoch", 2], ["checkpoint of epoch 1, not 2"]),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(call, checkpoint, context, arguments, fragments):
    code, _, error = call(checkpoint(context), *arguments)
    assert code == 2
    assert error.count("error: ") == 1
    assert all(fragment in error for fragment in fragments)


def test_a_folder_without_a_run_is_refused(call, tmp_path):
    assert call(tmp_path)[0] == 2
    assert "no model directory or checkpoint" in call(tmp_path / "absent", "--backbone", "tiny")[2]
