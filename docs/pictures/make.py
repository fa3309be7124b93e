"""Make the pictures of the documentation: ``.venv/bin/python docs/pictures/make.py``.

A plan of synthetic spectra runs on SQLite in a temporary folder. ``watch.svg`` is taken while it
runs, ``report.png`` at its end, by Debian's chromium; ``way.svg`` is drawn. It takes a minute.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent

#: The steps of a row, each with the two lines below it.
STEPS = (
    ("pending", "no result, or", "modified since"),
    ("plan", "rows frozen", "into pages"),
    ("script", "Jinja", "template"),
    ("submit", "token first,", "then sbatch"),
    ("element", "claims pages,", "runs the task"),
    ("checkpoint", "results, outcomes:", "one transaction"),
    ("status", "database: done?", "Slurm: running?"),
)

_STYLE = (
    "text{font:14px sans-serif;text-anchor:middle;fill:#24292f}.b{font-weight:bold}"
    ".r{fill:#eef4fb;stroke:#3572b0;rx:6}path{fill:none;stroke:#57606a;stroke-width:1.5;"
    "marker-end:url(#head)}#head path{fill:#57606a;marker-end:none}"
)


def way() -> str:
    """Return the drawing of a row's way, as SVG."""
    width, gap = 136, 28
    parts = ['<rect width="100%" height="100%" fill="white"/>']
    for number, (name, *below) in enumerate(STEPS):
        left = 8 + number * (width + gap)
        middle = left + width // 2
        parts.append(f'<rect class="r" x="{left}" y="16" width="{width}" height="84"/>')
        for y, text, style in ((42, name, ' class="b"'), (66, below[0], ""), (86, below[1], "")):
            parts.append(f'<text x="{middle}" y="{y}"{style}>{text}</text>')
        if number:
            parts.append(f'<path d="M{left - gap},58 H{left - 3}"/>')
    first, last = (8 + n * (width + gap) + width // 2 for n in (3, len(STEPS) - 1))
    parts.append(f'<path d="M{last},100 V132 H{first} V104"/>')
    below = "resume: pages that are neither done nor running"
    parts.append(f'<text x="{(first + last) // 2}" y="152">{below}</text>')
    size = 16 + len(STEPS) * (width + gap) - gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} 164" role="img">\n'
        f'<style>{_STYLE}</style>\n<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" '
        'markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker>'
        "</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _plan(folder: Path, n_rows: int = 600) -> int:
    """Set up a database with synthetic spectra, three of them broken, and plan them."""
    os.environ["ASTRA_DATABASE_URL"] = f"sqlite:///{folder}/astra.db"
    os.environ["ASTRA_RUN_DIR"] = str(folder / "runs")
    os.chdir(folder)
    from astra.cli.demo import make_spectra
    from astra.database.connection import connection
    from astra.models import BossVisitSpectrum
    from astra.models.schema import init_database
    from astra.plan.plan import create_plan

    init_database()
    make_spectra(n_rows)
    with connection():
        for broken in BossVisitSpectrum.select().limit(3):
            broken.stored_ivar = broken.stored_ivar[:100]
            broken.save()
    (planned,) = create_plan("slam.slam", BossVisitSpectrum, limit=50)
    return planned.plan


def watch_picture(plan: int) -> str:
    """Run the plan in two processes; return how ``--watch`` shows it when half of it is done."""
    from astra.cli.listing import Terminal
    from astra.cli.show_watch import _watched
    from astra.status.watch import watch

    command = [sys.executable, "-m", "astra", "submit", str(plan), "--local", "-j", "2"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    shown = None
    while shown is None and running.poll() is None:  # nothing may live yet
        for look in watch(plan, 0.2):
            n_ended, n_rows = look.status.n_ended, look.status.n_rows
            if look.rows_per_s and n_ended * 3 > n_rows > n_ended:
                shown = look
                break
    running.wait()
    if shown is None:
        sys.exit("the plan ended before it was seen half done: give it more rows")
    with open(os.devnull, "w") as nowhere:
        console = Terminal(record=True, width=100, height=18, file=nowhere, force_terminal=True)
        console.print(_watched(shown, console))
    svg = console.export_svg(title=f"astra status {plan} --watch")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts of the network
    return svg.replace("Fira Code, monospace", "monospace")


def report_picture(plan: int, file: Path) -> None:
    """Write the first screen of the plan's report as a PNG."""
    page = Path("report.html").absolute()
    astra = [sys.executable, "-m", "astra", "report", str(plan), "--output", str(page)]
    subprocess.run(astra, check=True, stdout=subprocess.DEVNULL)
    chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    size = ["--window-size=1200,1000", f"--screenshot={file}", f"--user-data-dir={page.parent}/ch"]
    subprocess.run([*chromium, *size, page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    (HERE / "way.svg").write_text(way())
    with tempfile.TemporaryDirectory() as folder:
        plan = _plan(Path(folder))
        (HERE / "watch.svg").write_text(watch_picture(plan))
        report_picture(plan, HERE / "report.png")
