import os
import signal
import threading

import pytest

from driftlab.sweep import progress
from driftlab.sweep.progress import Progress, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_asks_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
    assert signal.getsignal(number) is before


@pytest.fixture
def python_interrupts():
    """Python's own handler: a job in a script's background starts with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_interrupts")
def test_a_second_signal_acts_at_once():
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_nothing_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with stop_on_signals() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", -1.0)
    shown = Progress(1000, enabled=True)
    shown.skip(100)
    shown.advance(400, 2.0, "3 of 4 lanes alive, 1 diverged")
    shown.close()
    line = capsys.readouterr().err
    assert line == "sweep  50% | 3 of 4 lanes alive, 1 diverged | 200 lane-steps/s | 0:03 left\n"


def test_silence(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_SECONDS", -1.0)
    shown = Progress(1000, enabled=False)
    shown.advance(400, 2.0, "all alive")
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_durations():
    assert [progress._duration(s) for s in (0, 59.6, 61, 3661)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:01:01",
    ]
