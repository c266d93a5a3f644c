"""A step as a CUDA graph. There is no GPU here: a stand-in captures and replays."""

import pytest
import torch
from torch.nn import functional as F

from trainers import step_graph
from trainers.coop import CoOp
from trainers.step_graph import StepGraph


@pytest.fixture
def replays(monkeypatch):
    """What a graph does: all of ``work`` again, with its results in the memory of the first time."""
    done = []

    def captured(work):
        outputs = work()
        gradients = [p.grad for p in PARAMETERS]
        for gradient in gradients:
            gradient.fill_(torch.nan)  # a capture computes nothing yet

        def replay():
            done.append(1)
            for own, new in zip(outputs, work(), strict=True):
                own.copy_(new)
            for own, parameter in zip(gradients, PARAMETERS, strict=True):
                own.copy_(parameter.grad)
                parameter.grad = None

        return outputs, replay

    monkeypatch.setattr(step_graph, "captured", captured)
    return done


PARAMETERS = []


def test_each_batch_goes_through_the_graph_and_other_shapes_past_it(replays):
    weight = torch.nn.Parameter(torch.randn(4, 3))
    PARAMETERS[:] = [weight]

    def compute(x, label):
        output = x @ weight
        return F.cross_entropy(output, label), output, label

    graph = StepGraph(compute, [weight])
    for number, size in enumerate((5, 5, 2, 5), start=1):
        x, label = torch.randn(size, 4), torch.randint(3, (size,))
        (expected,) = torch.autograd.grad(compute(x, label)[0], weight)
        loss, output, labels = graph(x, label)
        assert torch.equal(weight.grad, expected), number
        assert torch.equal(output, x @ weight)
        assert torch.equal(labels, label)
        assert loss.item() == compute(x, label)[0].item()
        with torch.no_grad():
            weight -= 0.1 * weight.grad
    assert len(replays) == 3


def test_a_run_by_graph_is_the_run_without(run, replays, monkeypatch):
    build_model = CoOp.build_model

    def build(self):
        build_model(self)
        PARAMETERS[:] = self.model.prompt_learner.parameters()
        self.graph = StepGraph(self.training_loss, PARAMETERS)

    options = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
    plain = run(*options, "TRAIN.CUDA_GRAPH", True, "USE_CUDA", False, out="plain")
    assert "Note: TRAIN.CUDA_GRAPH does not go with no GPU" in plain.log
    monkeypatch.setattr(CoOp, "build_model", build)
    assert torch.equal(*(load(r.checkpoint(3)) for r in (plain, run(*options, out="graph"))))
    assert replays


def load(path):
    return torch.load(path, weights_only=True)["state_dict"]["ctx"]
