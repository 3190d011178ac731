"""The command line, called as a user calls it."""

import sys

import pytest

from deepfusion import cli


@pytest.fixture
def run(monkeypatch, capsys):
    """``run("fuse", "a", ...)`` -> (exit code, stdout, stderr), as the command line gives them."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["deepfusion", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return call
