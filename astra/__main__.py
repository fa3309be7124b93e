"""``python -m astra`` is the ``astra`` command."""

from astra.processes import collect_seldom


def run() -> None:
    """Do what the command line says, and exit."""
    collect_seldom()  # before the imports
    from astra.cli.group import main

    main()


if __name__ == "__main__":
    run()
