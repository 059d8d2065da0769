"""What all commands share: exit codes, flags, the progress line."""

import argparse
import io
import signal
import subprocess
import sys

import pytest

from tests.collection import ROOT, summary
from workflows import cli, progress
from workflows.progress import Progress, duration, size


@pytest.mark.parametrize(
    ("text", "failed", "code"), [("10", 10, 0), ("10", 11, 3), ("1%", 1, 0), ("1%", 2, 3), ("0", 0, 0), ("0", 1, 3)]
)
def test_a_bound_on_failures_is_a_count_or_a_share(text, failed, code):
    assert cli.exit_code_for(failed, 100, cli.max_failed(text)) == code


def test_without_a_bound_failures_are_no_error():
    assert cli.exit_code_for(100, 100, None) == 0


@pytest.mark.parametrize("text", ["-1", "x", "%", "-1%"])
def test_a_bound_that_is_none_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="neither a count such as 10 nor a share such as 1%"):
        cli.max_failed(text)


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (cli.UserError("name it"), 2, "error: name it\n"),
        (cli.RunError("it broke"), 1, "error: it broke\n"),
        (KeyboardInterrupt(), 130, "interrupted: the same command continues where it stopped\n"),
    ],
)
def test_an_error_becomes_one_line_and_its_exit_code(capsys, raised, code, said):
    def command():
        raise raised

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.run_main(command, verbose=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.value.code, capsys.readouterr().err) == (code, said)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_each_ten_seconds_and_no_bar(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = Progress(100, already=20, stream=stream)
    for second in range(1, 21):
        now[0] = second
        shown.show(20 + 2 * second, second, 1)
    shown.close(100, 50, 1)
    assert stream.getvalue() == (
        "40/100 images  2.0/s  10 faces  1 failed  30 s left\n60/100 images  2.0/s  20 faces  1 failed  20 s left\n"
    )


def test_a_terminal_gets_a_bar_on_one_line(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = Terminal()
    shown = Progress(10, stream=stream)
    now[0] = 60.0  # workers took so long to start
    shown.show(1, 1, 0)
    now[0] = 64.0
    shown.show(5, 3, 0)
    shown.close(10, 6, 0)
    assert stream.getvalue() == (
        f"\r\x1b[K{'█' * 2}{'░' * 22} 1/10 images  0.0/s  1 faces  0 failed  …"
        f"\r\x1b[K{'█' * 12}{'░' * 12} 5/10 images  1.0/s  3 faces  0 failed  5 s left"
        f"\r\x1b[K{'█' * 24} 10/10 images  2.2/s  6 faces  0 failed  0 s left\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (200, "3 min 20 s"), (3600, "1 h 00 min"), (90000, "1 d 01 h")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (3400, "3.4 kB"), (2.5e15, "2500.0 TB")])
def test_sizes_read_well(count, text):
    assert size(count) == text


def test_the_sample_photos_have_three_faces(tmp_path):
    command = [sys.executable, "-m", "workflows.sample", "--out", str(tmp_path / "out"), "--json"]
    told = summary(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))
    assert (told["faces"], told["failed"]) == (3, 0)
    assert told["images"] == told["ok"] + told["no_face"] >= 20
