"""Calling the tool that a file of tests is about."""

import pytest


@pytest.fixture
def call(request, capsys):
    """Call ``main`` of what the tests' file imports as ``tool``; returns its exit code, output and errors."""

    def run_it(*arguments):
        capsys.readouterr()
        code = request.module.tool.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run_it
