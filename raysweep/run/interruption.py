"""Signals that stop a run: Ctrl-C, SIGTERM of a scheduler, SIGHUP of a lost terminal.

The first one stops the run, not its conclusion; one more ends the process at once, wherever it is:
every file of the store appears whole or not at all.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A dying terminal, `timeout` and some schedulers signal a process and then its whole group.
ECHO_SECONDS = 1.0
TAKE_SECONDS = 0.02


class Interrupted(KeyboardInterrupt):
    """A signal asks this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Signals:
    """The state of the signals that stop a run.

    Attributes:
        number: the first of them; 0 while there is none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._came = 0.0
        self._held = False

    def hold(self) -> None:
        """Let a first signal from now on be remembered only."""
        self._held = True

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let a first signal raise `Interrupted` inside, as it does until `hold`."""
        self._held = False
        try:
            yield
        finally:
            self._held = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal in; a second one ends the process."""
        del frame
        if not self.number:
            self.number, self._came = number, time.monotonic()
            if not self._held:
                raise Interrupted(number)
        elif time.monotonic() - self._came > ECHO_SECONDS:
            os._exit(128 + self.number)


Handler = Callable[[int, FrameType | None], None] | int | None
_install = signal.signal
_listener: Signals | None = None


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def catching_signals() -> Iterator[Signals]:
    """Take the signals that stop a run; where a listener stands already, share it.

    A signal that is ignored when we begin (`nohup`) stays ignored. Python hands signals to the main
    thread alone: in another one nothing is taken.
    """
    global _listener
    if _listener is not None or not _in_main_thread():
        yield _listener if _listener is not None and _in_main_thread() else Signals()
        return
    _listener = Signals()
    before = {n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        _install(number, _listener.handle)
    signal.signal = _kept  # type: ignore[assignment]  # Ray and Tune install handlers of their own.
    try:
        yield _listener
    finally:
        signal.signal = _install
        for number, handler in before.items():
            _install(number, handler)
        _listener = None


def _kept(number: int, handler: Handler) -> Handler:
    """Install a handler, but for the signals that stop a run; return the one before it."""
    return signal.getsignal(number) if number in SIGNALS else _install(number, handler)


def check() -> None:
    """Raise if a signal has come: libraries swallow what a handler raises in a callback.

    Raises:
        Interrupted: names the signal.
    """
    if _listener is not None and _in_main_thread() and _listener.number:
        raise Interrupted(_listener.number)


def taken_here() -> bool:
    """Return whether SIGTERM would stop a run of this thread, as `catching_signals` promises."""
    if _listener is None or not _in_main_thread():
        return False
    return signal.getsignal(signal.SIGTERM) == _listener.handle


def stop_main_thread() -> None:
    """Stop the run of the main thread, from any thread, as SIGTERM does; once."""
    main = threading.main_thread().ident
    if _listener is not None and not _listener.number and main is not None:
        signal.pthread_kill(main, signal.SIGTERM)


def take_again() -> None:
    """Take SIGTERM back: Ray's core takes it behind Python's back as it starts, and drops it later.

    With Ray's handler a SIGTERM would abort this process, with none it would end it.
    """
    if _listener is not None and _in_main_thread():
        _install(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def end_ray(shutdown: Callable[[], None], seconds: float, *, leave: bool = False) -> None:
    """Shut Ray down; after `seconds`, go on while the shutdown runs in a thread of its own.

    It waits for answers of its processes, which may have been killed with us: records come first.

    Args:
        shutdown: shuts Ray down.
        seconds: to wait for it.
        leave: whether the end of this process is not to wait for it either.
    """
    ending = threading.Thread(target=shutdown, daemon=leave)
    ending.start()
    limit = time.monotonic() + seconds
    while ending.is_alive() and time.monotonic() < limit:
        ending.join(TAKE_SECONDS)
        take_again()
