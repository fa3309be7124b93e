"""Render batch scripts from templates, with every value quoted.

Every value for a shell passes through ``quote``, and every value for sbatch through ``directive``;
only the set-up lines of a profile are shell code. A site's templates take precedence over the
shipped ones, to which they can refer as ``astra/element.sh.j2``.
"""

import re
import shlex
import socket
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, fields
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from astra.config import secrets, settings, shipped_files
from astra.config.value_checks import is_utf8
from astra.errors import ScriptError, nearest
from astra.processes import user_name
from astra.records import dataclass

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, kw_only=True)
class Script:
    """The values for a script: of an array of elements, or of a job of one process."""

    job_name: str
    about: str  # what the job does, for people
    arguments: Sequence[str]  # of python -P -m astra
    log_path: str  # Slurm's pattern, see log_pattern()
    chdir: str | Path
    python: Sequence[str]  # the command that runs Python, word by word
    directives: Iterable[tuple[str, str | None]] = ()  # see profile.directives()
    setup: Iterable[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)  # exported; no secrets
    array: str | None = None  # Slurm's indices: "1-1000%50"; each is an element
    offset: int = 0  # element = array index + offset: MaxArraySize bounds the index
    path: str | None = None  # of the script, if another node is to run it where one cannot
    exclude: str = ""  # the nodes that the profile excludes, with a comma after each
    made_by: str = field(default_factory=lambda: f"{user_name()} on {socket.gethostname()}")
    made_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))

    @property
    def command(self) -> str:
        """The shell command that the script runs."""
        command = " ".join(map(quote, [*self.python, "-P", "-m", "astra", *self.arguments]))
        if self.array is None:
            return command
        return f"{command} --element $((SLURM_ARRAY_TASK_ID + {int(self.offset)}))"


def prepare(template: str) -> None:
    """Compile a template and those that it extends, which takes longer than rendering them.

    Errors are left to :func:`render`.
    """
    with suppress(Exception):  # most of it needs values, but it is compiled before
        _environment(settings.current().run.templates).get_template(template).render()


def render(template: str, script: Script, site: Path | None = None) -> str:
    """Render the text of a batch script.

    Parameters
    ----------
    template : name of a template, such as ``element.sh.j2``.
    script : the values for the template.
    site : folder of a site's own templates; by default the configured ``[run] templates``.

    Raises
    ------
    ScriptError
        If the template is missing or faulty, or a value cannot be written to a script.
    """
    import jinja2

    _refuse_secrets(script)
    site = site or settings.current().run.templates
    environment = _environment(site)
    context = {item.name: getattr(script, item.name) for item in fields(script)}
    context.update(command=script.command, directives=_with_append(script.directives))
    try:
        text = environment.get_template(template).render(context)
    except jinja2.TemplateSyntaxError as error:
        place = error.filename or error.name or template
        raise ScriptError(f"template {place}, line {error.lineno}: {error.message}") from error
    except jinja2.TemplateNotFound as error:
        hint = nearest(str(error.name), environment.list_templates())
        raise ScriptError(f"no template {error.name!r} in {_folders(site)}. {hint}") from error
    except Exception as error:  # a template is a program: it can fail in any way
        raise ScriptError(f"{_place(error, template)}: {error}") from error
    if site:
        _check_blocks(environment, template)
    needed = ["--job-name=", "--output=", *(["--array="] if script.array else [])]
    return _checked_script(re.sub(r"\n{3,}", "\n\n", text), template, needed)


def array_spec(indices: Iterable[int], throttle: int | None = None) -> str:
    """Write array indices as sbatch reads them.

    >>> array_spec([1, 2, 3, 7, 9, 10], throttle=4)
    '1-3,7,9-10%4'
    """
    ordered = sorted(set(indices))
    if not ordered or ordered[0] < 0:
        raise ValueError("an array needs indices, none of them below 0")
    if throttle is not None and throttle < 1:
        raise ValueError(f"throttle is {throttle}: at least 1 element must be allowed to run")
    runs = []
    for _, group in groupby(enumerate(ordered), lambda item: item[1] - item[0]):
        consecutive = [index for _, index in group]
        first, last = consecutive[0], consecutive[-1]
        runs.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(runs) + (f"%{throttle}" if throttle else "")


def log_pattern(folder: str | Path, name: str = "%A_%a.log") -> str:
    """Return Slurm's pattern of the logs in `folder`, whose own percent signs are escaped.

    Raises
    ------
    ScriptError
        If the folder's name holds a backslash, with which Slurm replaces no patterns.
    """
    if "\\" in str(folder):
        raise ScriptError(
            f"the folder of the logs, {str(folder)!r}, contains a backslash, so that Slurm "
            "replaces no %A and %a; choose another [run] dir"
        )
    return f"{str(folder).replace('%', '%%')}/{name}"


def quote(value: object) -> str:
    """Quote `value` as one word for a shell."""
    text = _text(value)
    if "\0" in text:
        raise ScriptError(f"{text!r} holds a NUL, which no shell can pass on")
    return shlex.quote(text)


def directive(value: object) -> str:
    r"""Quote `value` for a ``#SBATCH`` line.

    No shell reads these lines. sbatch ends a value at a blank and the line at ``#``; both kinds of
    quotes protect these characters, and a backslash protects the next one, even in single quotes
    (tried on 22.05).

    >>> print(directive("a b"), directive('5" #1'), directive("B:USR1@60"))
    "a b" "5\" #1" B:USR1@60
    """
    text = _text(value)
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise ScriptError(f"{text!r} holds a control character: an #SBATCH line cannot")
    if text and not re.search(r"[\s\"'\\#]", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def comment(value: object) -> str:
    """Make `value` fit into one line of comment."""
    return "".join(c if c.isprintable() else " " for c in _text(value))


def _text(value: object) -> str:
    if not isinstance(value, str | int | float | Path):
        str(value)  # raises for an undefined name of a template, and names it
        raise ScriptError(f"{value!r} is neither text nor number")
    text = str(value)
    if not is_utf8(text):
        raise ScriptError(f"{text!r} is not UTF-8, in which scripts are written; rename it")
    return text


@cache
def _environment(site: Path | None) -> "Environment":
    import jinja2  # here, as few commands render a script

    shipped = jinja2.FileSystemLoader(shipped_files.templates_dir())
    places: list[jinja2.BaseLoader] = [shipped, jinja2.PrefixLoader({"astra": shipped})]
    if site:
        places.insert(0, jinja2.FileSystemLoader(site))
    environment = jinja2.Environment(  # noqa: S701 - shell, not HTML: the filter quote replaces it
        loader=jinja2.ChoiceLoader(places),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(quote=quote, directive=directive, comment=comment)
    return environment


def _check_blocks(environment: "Environment", name: str) -> set[str]:
    """Refuse a block that no template has which this one extends: Jinja leaves it out silently.

    Return the names of all of their blocks.
    """
    from jinja2.nodes import Block, Extends

    loader = environment.loader
    tree = environment.parse(loader.get_source(environment, name)[0] if loader else "")
    names = {block.name for block in tree.find_all(Block)}
    parent = next((node.template for node in tree.find_all(Extends)), None)
    if (extended := getattr(parent, "value", None)) is None:  # or it depends on a value
        return names
    known = _check_blocks(environment, extended)
    for block in tree.body:
        if isinstance(block, Block) and block.name not in known:
            raise ScriptError(
                f"template {name}, line {block.lineno}: {extended} has no block {block.name!r}, "
                f"so that this one would be left out. {nearest(block.name, known)}"
            )
    return names | known


def _folders(site: Path | None) -> str:
    return " or ".join(str(place) for place in (site, shipped_files.templates_dir()) if place)


def _with_append(options: Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Add the option by which a requeued element appends to its log, unless it is set."""
    listed = list(options)
    named = any(name == "open-mode" for name, _ in listed)
    return listed if named else [*listed, ("open-mode", "append")]


def _refuse_secrets(script: Script) -> None:
    for name, value in script.environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ScriptError(f"{name!r} cannot be the name of an environment variable")
        if secrets.has_password(value):
            raise _secret(name)
    for name, option in script.directives:
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ScriptError(f"{name!r} cannot be the name of an option of sbatch")
        if option is not None and secrets.holds_secret(_text(option)):
            raise _secret(f"the option --{name}")
    for number, line in enumerate(script.setup, 1):
        if secrets.holds_secret(line):
            raise _secret(f"line {number} of the set-up")
    if secrets.holds_secret(" ".join(script.python)):
        raise _secret("the command that runs Python")


def _secret(place: str) -> ScriptError:
    return ScriptError(
        f"{place} holds a password, which must not be in a script: Slurm keeps it and shows it "
        "to administrators; put it into ~/.pgpass (mode 600), or read it from a file of your own "
        'there: export NAME="$(cat ~/.name)"'
    )


def _place(error: BaseException, template: str) -> str:
    """Return the innermost line of a template that `error` passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if frame.filename.endswith((".j2", f"/{template}")):
            return f"template {frame.filename}, line {frame.lineno}"
    return f"template {template}"


def _checked_script(text: str, template: str, needed: Iterable[str]) -> str:
    """Return `text` if sbatch will read its directives, which end at the first command."""
    head = []
    for line in text.split("\n"):
        if line.strip() and not line.startswith("#"):
            break
        head.append(line)
    if not text.startswith("#!") or "\0" in text or not is_utf8(text):
        raise ScriptError(
            f"template {template}: the script must begin with #! and be UTF-8 without NUL"
        )
    if secrets.holds_known(text):
        raise _secret(f"what template {template} makes")
    for option in needed:
        if not any(line.startswith(f"#SBATCH {option}") for line in head):
            raise ScriptError(
                f"template {template}: no #SBATCH {option} before the first command; keep the "
                'block "directives" of base.sh.j2'
            )
    return text
