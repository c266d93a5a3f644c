"""Fixtures that call ``predict.main``, and images for it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

import predict
from tests.inference import models


@dataclass
class Result:
    """The exit code of a call, what it printed, and its error output."""

    code: int
    output: str
    error: str

    @property
    def records(self) -> list[dict]:
        """The JSON objects that the call printed, one for each image."""
        return [json.loads(line) for line in self.output.splitlines()]

    def probabilities(self, index: int = 0) -> dict[str, float]:
        """Return class name -> probability of the image at ``index``, the most probable first."""
        return {entry["class"]: entry["probability"] for entry in self.records[index]["predictions"]}


@pytest.fixture
def call(capsys):
    """Return a function that calls ``predict.main`` with ``arguments``."""

    def call_predict(*arguments: object) -> Result:
        code = predict.main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call_predict


@pytest.fixture
def refused(call):
    """Return a function that asserts exit code 2, no output, and one error message with all ``fragments``."""

    def check(*arguments: object, fragments: list) -> None:
        result = call(*arguments)
        assert result.code == 2
        assert result.error.count("error: ") == 1
        assert not result.output
        for fragment in fragments:
            assert str(fragment) in result.error

    return check


@pytest.fixture
def image_paths(tmp_path) -> list[str]:
    """Return the paths of two different images."""
    return [models.write_image(tmp_path / f"images/{number}.png", number) for number in range(2)]
