"""Claims of elements that run on other machines."""

from astra.element.claiming import ElementProcess


def somewhere() -> ElementProcess:
    """Where an element of another machine runs."""
    return ElementProcess(host="elsewhere", pid=1, pid_began="gone")
