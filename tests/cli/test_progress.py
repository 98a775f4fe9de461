"""Progress is a bar on a terminal, and a few lines in a file."""

import io

from clipseq.cli.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_a_line_for_each_tenth():
    stream = io.StringIO()
    with ProgressBar("training", stream=stream) as bar:
        for step in range(1, 101):
            bar(step, 100, {"loss_total": 1 / step, "scale": 3.0})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "training: 1/100  loss_total 1.000"
    assert lines[-1] == "training: 100/100  loss_total 0.010"
    assert lines[5].startswith("training: 50/100  loss_total 0.020")
    assert lines[5].endswith("s left")


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    with ProgressBar("training", stream=stream) as bar:
        bar(1, 2, {"loss_total": 4.5})
        bar(2, 2, {"loss_total": 2.25})
    assert "training" in stream.getvalue()
    assert "2/2" in stream.getvalue()
    assert "loss_total 2.250" in stream.getvalue()


def test_a_slow_run_gets_a_line_every_half_minute(monkeypatch):
    clock = iter([0.0, *range(0, 1000, 10)])
    monkeypatch.setattr("clipseq.cli.progress.time.monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with ProgressBar("training", stream=stream) as bar:
        for step in range(1, 11):  # ten seconds each
            bar(step, 1000, {})
    steps = [line.split()[1] for line in stream.getvalue().splitlines()]
    assert steps == ["1/1000", "4/1000", "7/1000", "10/1000"]
    assert "10.00 s each, 9900 s left" in stream.getvalue()
