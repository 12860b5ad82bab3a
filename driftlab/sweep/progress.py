"""What a sweep shows while it runs, and how it is asked to stop."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

_LINE_SECONDS = 10.0


class Interrupted(Exception):
    """A sweep that was asked to stop, and stopped with everything on disk (if it has a folder).

    The same call, with the same folder, continues it.
    """


class Stop:
    """Whether the process was asked to stop; `requested` names the signal, or is None."""

    requested: str | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turns SIGTERM and SIGINT into a request to stop at the next segment's end.

    A second signal acts at once, as it would have without this. Outside the main thread, where
    Python takes no signals, nothing is installed.

    Yields:
      The request.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {}

    def request(number: int, frame: FrameType | None) -> None:
        del frame
        stop.requested = signal.Signals(number).name
        signal.signal(number, previous[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            # None: a handler that Python did not install and cannot put back.
            previous[number] = signal.signal(number, request) or signal.SIG_DFL
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Progress:
    """A progress bar on a terminal, a line every ten seconds elsewhere.

    Args:
      total: lane-steps to be done, all lanes alive.
      enabled: whether to show anything.
    """

    def __init__(self, total: int, enabled: bool):
        from rich import console, progress

        self.total, self.done = total, 0
        self._console = console.Console(stderr=True)
        self._bar = None
        self._started = self._last_line = time.monotonic()
        self._rate: float | None = None
        self._enabled = enabled
        if enabled and self._console.is_terminal:
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("sweep", total=total, status="compiling")

    def skip(self, lane_steps: int) -> None:
        """Counts work that an earlier run did, or that dead lanes no longer need.

        Args:
          lane_steps: how much.
        """
        self.done += lane_steps
        if self._bar:
            self._bar.update(self._task, completed=self.done)

    def advance(self, lane_steps: int, seconds: float, lanes: str) -> None:
        """Counts work done and shows it.

        Args:
          lane_steps: lane-steps of live lanes that were done.
          seconds: the time they took.
          lanes: how many lanes are alive and diverged, in words.
        """
        self.done += lane_steps
        rate = lane_steps / max(seconds, 1e-9)
        self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
        left = max(self.total - self.done, 0) / max(self._rate, 1e-9)
        status = f"{lanes} | {self._rate:,.0f} lane-steps/s | {_duration(left)} left"
        if self._bar:
            self._bar.update(self._task, completed=self.done, status=status)
        elif self._enabled and time.monotonic() - self._last_line > _LINE_SECONDS:
            self._last_line = time.monotonic()
            percent = 100 * self.done / max(self.total, 1)
            print(f"sweep {percent:3.0f}% | {status}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the display."""
        if self._bar:
            self._bar.update(self._task, status="")
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
