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
from dassl.distributed import all_gather_objects, average_gradients, get_rank, local_loss_weight, process_group, shard
from dassl.engine import TrainerX
from vlm.contrastive import contrastive_loss, distributed_contrastive_loss, encode_in_chunks
from vlm.images import encoder
from vlm.similarity import compute_logits, normalize

STEPS = TrainerX.run_epoch


def check_gradients(pairs: int, chunk: int) -> None:
    """The loss of a batch of ``pairs`` and its gradients are those of one process."""
    torch.manual_seed(0)
    image, text, unused = nn.Linear(5, 4), nn.Linear(6, 4), nn.Parameter(torch.ones(2))
    scale = nn.Parameter(torch.tensor(2.0))
    parameters = [*image.parameters(), *text.parameters(), scale]
    images, texts, ids = torch.randn(pairs, 5), torch.randn(pairs, 6), torch.arange(pairs) % 4
    whole = contrastive_loss(compute_logits(normalize(image(images)), normalize(text(texts)), scale), ids)
    expected = torch.autograd.grad(whole, parameters)

    images, texts, ids = shard(images), shard(texts), shard(ids)
    features = normalize(encode_in_chunks(image, images, chunk)), normalize(encode_in_chunks(text, texts, chunk))
    assert sum(all_gather_objects(len(ids))) == pairs
    loss = distributed_contrastive_loss(*features, ids, scale)[0] * local_loss_weight(len(ids))
    loss.backward()
    torch.testing.assert_close(average_gradients([*parameters, unused], loss), whole.detach())
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert unused.grad is None
    first, second = all_gather_objects([parameter.grad.tolist() for parameter in parameters])
    assert first == second


def killed(trainer) -> None:
    """The second process is gone in the middle of the second epoch."""
    if trainer.epoch == 1 and get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
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


EPOCHS = {"own_loop": own_loop, "unaveraged": unaveraged, "killed": killed}


def main() -> int:
    code = 0
    encoder._has_openvino = lambda: False  # it takes longer to load than all that follows
    for what, argv in json.loads(Path(sys.argv[1]).read_text()):
        TrainerX.run_epoch = EPOCHS.get(what, STEPS)
        if what == "gradients":
            for pairs, chunk in ((8, 0), (7, 2)):
                check_gradients(pairs, chunk)
        else:
            code = train.main(argv)
        if os.environ["RANK"] == "0":
            print(f"{what} ended in {code}", flush=True)
    return code


if __name__ == "__main__":
    with process_group():
        code = main()
    sys.exit(code)
