"""When Python looks for garbage in a process of astra's own.

Its collector counts objects, and imports make them by the ten thousand: it would go through all
that was imported again and again, a last time as the process ends, and in a fork write to each of
the pages that it could have shared. That is a third of what a short command costs.
"""

import atexit
import gc

_USUAL = gc.get_threshold()
_SELDOM = (100_000, *_USUAL[1:])


def collect_seldom() -> None:
    """From the start of a command; what is there at its end is left to the operating system."""
    gc.set_threshold(*_SELDOM)
    atexit.register(gc.freeze)


def collect_as_usual() -> None:
    """Before the code of a task runs: as it expects, but for what was imported up to now.

    In a process that is not astra's own nothing was changed, and nothing is.
    """
    if gc.get_threshold() != _SELDOM:
        return
    gc.freeze()
    gc.set_threshold(*_USUAL)
    atexit.unregister(gc.freeze)
