"""The program of the processes in tests/test_distributed.py: ``torchrun … tests/distributed_worker.py COMMANDS.json``.

One interpreter runs several commands of train.py in turn, since an interpreter takes longer to start than they do.
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

RUN_EPOCH = TrainerX.run_epoch  # the engine's method, which a command may replace


def check_gradients(pairs: int, chunk: int) -> None:
    """Check that the loss of a batch of ``pairs``, and its gradients, are those of one process."""
    torch.manual_seed(0)
    image, text, unused = nn.Linear(5, 4), nn.Linear(6, 4), nn.Parameter(torch.ones(2))
    scale = nn.Parameter(torch.tensor(2.0))
    parameters = [*image.parameters(), *text.parameters(), scale]
    images, texts, ids = torch.randn(pairs, 5), torch.randn(pairs, 6), torch.arange(pairs) % 4
    expected_loss = contrastive_loss(compute_logits(normalize(image(images)), normalize(text(texts)), scale), ids)
    expected = torch.autograd.grad(expected_loss, parameters)

    images, texts, ids = shard(images), shard(texts), shard(ids)
    features = normalize(encode_in_chunks(image, images, chunk)), normalize(encode_in_chunks(text, texts, chunk))
    assert sum(all_gather_objects(len(ids))) == pairs
    loss = distributed_contrastive_loss(*features, ids, scale)[0] * local_loss_weight(len(ids))
    loss.backward()
    torch.testing.assert_close(average_gradients([*parameters, unused], loss), expected_loss.detach())
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert unused.grad is None
    first, second = all_gather_objects([parameter.grad.tolist() for parameter in parameters])
    assert first == second


def kill_second_process(trainer) -> None:
    """Run an epoch; in the second epoch, the second process kills itself."""
    if trainer.epoch == 1 and get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    RUN_EPOCH(trainer)


def custom_loop(trainer) -> None:
    """Run an epoch in a trainer's own loop over whole batches, after a first pass over the same loader."""
    loader = trainer.train_loader_x
    epoch = loader.epoch
    assert [len(batch["label"]) for batch in loader] == [5, 5]
    loader.epoch = epoch
    trainer.set_model_mode("train")
    trainer.num_batches = len(loader)
    for trainer.batch_idx, batch in enumerate(loader):
        trainer.forward_backward(batch)


def local_gradients(trainer) -> None:
    """Run an epoch whose steps, from the second one on, use the gradients of this process alone."""
    model_backward = trainer.model_backward

    def average_once(loss) -> None:
        model_backward(loss)
        trainer.model_backward = lambda loss: (loss.backward(), print("a step by local gradients"))

    trainer.model_backward = average_once
    custom_loop(trainer)


EPOCH_RUNNERS = {
    "custom_loop": custom_loop,
    "local_gradients": local_gradients,
    "killed": kill_second_process,
}  # in place of TrainerX.run_epoch, by the name of the command


def main() -> int:
    """Run the named commands of the JSON file; return the exit code of the last one."""
    code = 0
    encoder._has_openvino = lambda: False  # OpenVINO takes longer to load than the commands run
    for name, argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        TrainerX.run_epoch = EPOCH_RUNNERS.get(name, RUN_EPOCH)
        if name == "gradients":
            for pairs, chunk in ((8, 0), (7, 2)):
                check_gradients(pairs, chunk)
        else:
            code = train.main(argv)
        if os.environ["RANK"] == "0":
            print(f"{name} ended in {code}", flush=True)
    return code


if __name__ == "__main__":
    with process_group():
        code = main()
    sys.exit(code)
