"""What the processes of tests/test_distributed.py do: ``torchrun … tests/several.py COMMANDS.json``.

One interpreter runs several commands of train.py in turn, since to start one takes longer than they do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import train
from dassl.engine import TrainerX
from dassl.utils import UserError, average_gradients, endings, gather, one_of_several, part_of, rank, sizes_of_all
from vlm.contrastive import batch_loss, contrastive_loss, in_chunks
from vlm.similarity import logits, normalize

STEPS = TrainerX.run_epoch


def check_gradients(pairs: int, chunk: int) -> None:
    """The loss of a batch of ``pairs`` and its gradients are those of one process."""
    torch.manual_seed(0)
    image, text, unused = nn.Linear(5, 4), nn.Linear(6, 4), nn.Parameter(torch.ones(2))
    scale = nn.Parameter(torch.tensor(2.0))
    parameters = [*image.parameters(), *text.parameters(), scale]
    images, texts, ids = torch.randn(pairs, 5), torch.randn(pairs, 6), torch.arange(pairs) % 4
    whole = contrastive_loss(logits(normalize(image(images)), normalize(text(texts)), scale), ids)
    expected = torch.autograd.grad(whole, parameters)

    images, texts, ids = part_of(images), part_of(texts), part_of(ids)
    features = normalize(in_chunks(image, images, chunk)), normalize(in_chunks(text, texts, chunk))
    sizes = sizes_of_all(len(ids))
    assert sum(sizes) == pairs
    loss = batch_loss(*features, ids, scale)[0] * len(ids) * len(sizes) / pairs
    loss.backward()
    torch.testing.assert_close(average_gradients([*parameters, unused], loss), whole.detach())
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert unused.grad is None
    first, second = gather([parameter.grad.tolist() for parameter in parameters])
    assert first == second


def killed(trainer) -> None:
    """The second process is gone in the middle of the second epoch."""
    if trainer.epoch == 1 and rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    STEPS(trainer)


def mistaken(trainer) -> None:
    if rank() == 1:
        raise UserError("this process cannot go on")
    STEPS(trainer)


def own_loop(trainer) -> None:
    """A trainer's own loop over whole batches, of which it has looked at all before."""
    loader = trainer.train_loader_x
    epoch = loader.epoch
    assert [len(batch["label"]) for batch in loader] == [5, 5]
    loader.epoch = epoch
    trainer.set_model_mode("train")
    trainer.num_batches = len(loader)
    for trainer.batch_idx, batch in enumerate(loader):
        trainer.forward_backward(batch)


def unaveraged(trainer) -> None:
    """After the first step, the optimizer steps by the gradients of its own process."""
    backward = trainer.model_backward

    def once(loss) -> None:
        backward(loss)
        trainer.model_backward = lambda loss: (loss.backward(), print("a step of its own"))

    trainer.model_backward = once
    own_loop(trainer)


EPOCHS = {"own_loop": own_loop, "unaveraged": unaveraged, "mistaken": mistaken, "killed": killed}


def main() -> int:
    endings.GRACE = 2.0
    code = 0
    for what, argv in json.loads(Path(sys.argv[1]).read_text()):
        TrainerX.run_epoch = EPOCHS.get(what, STEPS)
        try:
            if what == "gradients":
                with one_of_several():
                    for pairs, chunk in ((8, 0), (7, 2)):
                        check_gradients(pairs, chunk)
            else:
                code = train.main(argv)
        except SystemExit as end:
            code = end.code
        if os.environ["RANK"] == "0":  # rank() is that of a run, while it lasts
            print(f"{what} ended in {code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
