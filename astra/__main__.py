"""``python -m astra`` is the ``astra`` command."""

from astra.cli import main

main()
