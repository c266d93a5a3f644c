"""Calls of the real ``predict.main``."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

import predict
from tests.inference import models


@dataclass
class Result:
    code: int
    output: str
    error: str

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in self.output.splitlines()]

    def probabilities(self, number: int = 0) -> dict[str, float]:
        return {entry["class"]: entry["probability"] for entry in self.records[number]["predictions"]}


@pytest.fixture
def call(capsys):
    def run_it(*arguments: object) -> Result:
        code = predict.main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run_it


@pytest.fixture
def refused(call):
    def check(*arguments: object, parts: tuple) -> None:
        result = call(*arguments)
        assert result.code == 2
        assert result.error.count("error: ") == 1
        assert not result.output
        for part in parts:
            assert str(part) in result.error

    return check


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    return [models.picture(tmp_path / f"pictures/{number}.png", number) for number in range(2)]
