"""A script of an element, and sbatch's way to read one."""

import sys

from astra.slurm import script

SCRIPT = script.Script(
    about="for plan 12 of slam.slam: pages 1-1000, 1 for each element",
    arguments=["run-page", "--plan", "12", "--job", "c0ffee"],
    job_name="astra-12-c0ffee",
    array="1-1000%50",
    log_path="/runs/logs/%A_%a.log",
    chdir="/",
    python=(sys.executable,),
    made_by="astra",
    made_at="2026-01-02 03:04:05 UTC",
    directives=[("time", "02:00:00"), ("exclusive", None)],
    setup=["module_of_the_site=1", "true"],
    environment={"ASTRA_CONFIG": "/a b/astra.toml"},
)


def sbatch_reads(text: str) -> list[str]:
    """The words of an #SBATCH line, by the rules that sbatch 22.05 was seen to follow."""
    words, word, quoted, started = [], "", "", False
    characters = iter(text)
    for c in characters:
        if c == "\\":
            word, started = word + next(characters, ""), True
        elif quoted:
            quoted = "" if c == quoted else quoted
            word += c if quoted else ""
        elif c in "\"'":
            quoted, started = c, True
        elif c == "#":
            break
        elif c.isspace():
            if started:
                words.append(word)
            word, started = "", False
        else:
            word, started = word + c, True
    return [*words, word] if started else words
