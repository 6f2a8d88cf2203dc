"""What tests of several modules run."""

import pytest

import cli
from dtld_tools.commands import app
from dtld_tools.errors import DtldError, UsageError


@pytest.fixture
def dtld(capsys, monkeypatch):
    """Run `dtld` in this process; the answer is (exit code, stdout, stderr)."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.run("dtld", app, DtldError, UsageError, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return run
