"""The modules that print what commands return, each imported on first use, and rich with it."""

from astra.lazy import Module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from astra.cli import show, show_nights, show_rows, show_watch
else:
    show, show_nights, show_rows, show_watch = (
        Module(f"astra.cli.{name}") for name in ("show", "show_nights", "show_rows", "show_watch")
    )

__all__ = ["show", "show_nights", "show_rows", "show_watch"]
