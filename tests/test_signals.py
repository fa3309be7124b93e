"""Told to end: by signals, at any moment."""

import signal
import sys
import threading
import time

import pytest

from astra import config
from astra.run import Stop
from astra.signals import Forced, heard


def test_a_signal_at_the_very_end_does_not_keep_the_process():
    """What the C handler wrote may be read together with the word that all is over."""

    def end_with_a_signal() -> None:
        with heard(Stop()):
            for _ in range(3):
                signal.raise_signal(signal.SIGUSR1)

    def get_out(number, frame):
        raise TimeoutError("the process is kept by the thread that hears its signals")

    before, previous = sys.getswitchinterval(), signal.signal(signal.SIGPROF, get_out)
    watch = threading.Timer(20, signal.pthread_kill, (threading.get_ident(), signal.SIGPROF))
    watch.daemon = True
    watch.start()
    sys.setswitchinterval(1)  # so that the other thread comes late to its reading
    try:
        for _ in range(30):
            end_with_a_signal()
    finally:
        sys.setswitchinterval(before)
        watch.cancel()
        signal.signal(signal.SIGPROF, previous)


def test_a_signal_that_does_not_wake_the_main_thread_is_heard():
    """As one that comes between the interpreter's last look at its signals and a long sleep."""
    config.use(config.Config(element=config.Element(grace_s=0.2)))
    stop = Stop()

    def knock_elsewhere() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    elsewhere = threading.Timer(0.2, knock_elsewhere)
    began = time.monotonic()
    with pytest.raises(Forced), heard(stop):
        elsewhere.start()
        time.sleep(20)
    assert time.monotonic() - began < 10 and "SIGTERM" in stop.reason
