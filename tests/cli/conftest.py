"""Commands as a user runs them."""

import sys

import pytest

from clipseq import __main__ as entry


@pytest.fixture
def clipseq(monkeypatch, capsys):
    """A function that runs a command; returns exit status, standard output, standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["clipseq", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            entry.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return call
