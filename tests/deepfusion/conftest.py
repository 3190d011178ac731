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


@pytest.fixture
def refused(run):
    """``refused(message, ...)``: exit code 2, and one line of error on stderr, the last, has the message; all of stderr."""

    def call(message, *arguments):
        code, out, err = run(*arguments)
        errors = [line for line in err.splitlines() if line.startswith("Error:")]
        assert code == 2, err
        assert len(errors) == 1
        assert message in errors[0]
        assert err.rstrip().endswith(errors[0])
        assert not out
        assert "Traceback" not in err
        return err

    return call
