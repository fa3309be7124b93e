"""Claims of elements that run on other machines."""

from astra.element.claiming import Where


def somewhere() -> Where:
    """Where an element of another machine runs."""
    return Where(host="elsewhere", pid=1, pid_began="gone")
