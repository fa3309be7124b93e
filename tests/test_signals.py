"""Told to end: by signals, at any moment."""

import signal
import sys
import threading

from astra.run import Stop
from astra.signals import heard


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
