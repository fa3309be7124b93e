"""The retry policy: decide what to do with a page whose element ended before its rows did.

``[policy.STATE]`` of the configuration, overridden by ``[profiles.NAME.policy.STATE]``, sets for
each Slurm state how often a page is submitted again, and with how much more memory or time. Only an
element that ended no row uses up a retry: a page that makes progress is never given up. Nodes on
which pages fail that succeed elsewhere are excluded for a while.

Nothing here queries Slurm or the database.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import TypeVar

from astra.config.retry_rules import RULES, Rule
from astra.config.units import size_mb, time_limit_s, written_size, written_time
from astra.errors import OutOfHours
from astra.records import dataclass
from astra.slurm.limits import PartitionLimits
from astra.states import PageState

#: Ends that the page did not cause: they use up no retry.
USES_NO_RETRY = frozenset({"PREEMPTED", "OUTAGE", "HOURS", "STOPPED"})

#: Ends that a row may cause. While astra searches for the row, each end halves the suspects, so it
#: makes progress and uses up no retry.
CAUSED_BY_ROWS = frozenset({"FAILED", "OUT_OF_MEMORY"})

#: Ends that a node may cause.
_CAUSED_BY_NODES = frozenset({"FAILED", "NODE_FAIL", "BOOT_FAIL"})

_TEMPORARY_FAILURE = 75  # of an element that was asked to stop, or could not reach the database

#: Ends with an external cause, which have no rule: what kept the element from its rows.
EXTERNAL = {
    "OUTAGE": "the database was unavailable",
    "HOURS": "the hours of the night were over",
    "STOPPED": "it was asked to stop, outside of Slurm",
}


@dataclass(frozen=True)
class End:
    """How an element of a page ended, as stored with the page."""

    state: str
    node: str | None = None
    no_row_ended: bool = True
    cluster: str | None = None  # of the node: those of several clusters may share their names


@dataclass(frozen=True)
class Decision:
    """The next step of a page that is neither done nor alive."""

    state: str | None  # how its element ended; None: it had none
    retry: bool
    explanation: str  # "next with mem 3G instead of 2G (retry 1 of 3)"
    options: tuple[tuple[str, str], ...] = ()  # of sbatch, that grow


def end_of(
    page: PageState,
    slurm_state: str | None,
    exit_code: int | None,
    no_row_ended: bool,
    node: str | None,
    has_time_limit: bool = True,
) -> End | None:
    """Return how the last element of a page ended; None if it had none.

    An interrupted element was warned of its time limit, unless Slurm reports another state: its
    signal does not show it, as the script warns by SIGTERM. A process of `--local` has no limit.
    One that ended with status 75 and no record in the database could not reach the database; one
    with status 74 was outside of its night's hours.
    """
    if page in (PageState.UNSUBMITTED, PageState.CANCELLED, PageState.DONE):
        return None
    state = slurm_state if slurm_state is not None and slurm_state in RULES else "FAILED"
    if state == "FAILED" and exit_code == OutOfHours.exit_status:
        state = "HOURS"
    elif state == "FAILED" and page is PageState.INTERRUPTED:
        state = "TIMEOUT" if has_time_limit else "STOPPED"
    elif state == "FAILED" and page is PageState.LOST and exit_code == _TEMPORARY_FAILURE:
        state = "OUTAGE"
    return End(state, node, no_row_ended)


def next_step(
    last: End | None,
    earlier: Iterable[End],
    rules: Mapping[str, Rule],
    base: Mapping[str, object],
    used: Mapping[str, object],
    allowed: PartitionLimits,
    on_request: bool = False,
) -> Decision:
    """Choose the next step of a page by how its elements ended.

    Parameters
    ----------
    last, earlier : the last end, and the ends that a retry followed.
    rules : the rule of each state.
    base : the options of the next element's profile.
    used : the options of the last element.
    allowed : the limits of the partition.
    on_request : whether the user asks for these pages, even if their retries are used up.
    """
    earlier = list(earlier)
    if last is None or last.state in EXTERNAL:
        kept = _grown(Rule(), base, used, allowed).options if earlier else ()
        if last is None:
            return Decision(None, True, "not submitted yet", kept)
        why = EXTERNAL[last.state]
        return Decision(last.state, True, f"next as before: {why} (uses up no retry)", kept)
    rule = rules[last.state]
    tries = sum(end.no_row_ended for end in earlier if end.state == last.state)
    free = last.state in USES_NO_RETRY or not last.no_row_ended
    if not on_request and (tries >= rule.retries if not free else not rule.retries):
        none = f"{tries} of {rule.retries} retries used up" if rule.retries else "is not retried"
        return Decision(last.state, False, none)
    grown = _grown(rule, base, used, allowed)
    if not on_request and not free and grown.stuck:
        return Decision(last.state, False, grown.text)
    count = "uses up no retry" if free else f"retry {tries + 1} of {rule.retries}"
    return Decision(last.state, True, f"next {grown.text or 'as before'} ({count})", grown.options)


@dataclass(frozen=True)
class _Growth:
    """How memory, time or both grow for the next element."""

    text: str = ""
    options: tuple[tuple[str, str], ...] = ()
    stuck: bool = False  # the bound was reached and was not enough


@dataclass(frozen=True)
class _Resource:
    """Memory or time: its option of sbatch, the units of that, and how far it may grow."""

    option: str
    parse: Callable[[str], int | None]
    write: Callable[[int], str]
    factor: float
    bounds: tuple[int | None, ...]
    default: int | None = None  # of an element that does not request any

    def grown(self, base: Mapping[str, object], used: Mapping[str, object]) -> _Growth:
        """Return what the next element gets: at least what the last one and the profile have."""
        had = self.parse(str(used.get(self.option, ""))) or self.default
        in_profile = self.parse(str(base.get(self.option, ""))) or 0
        if not had or (self.option in base and not in_profile):  # no limit, or none that is known
            return _Growth()
        bound = min((bound for bound in self.bounds if bound), default=None)
        grown = math.ceil(had * self.factor)
        new = max(in_profile, had, grown if bound is None else min(grown, bound))
        options = ((self.option, self.write(new)),) if new > in_profile else ()
        if new > had:
            text = f"{self.option} {self.write(new)} instead of {self.write(had)}"
            return _Growth(text, options)
        if self.factor == 1:
            return _Growth("", options)
        text = f"{self.option} {self.write(had)}"
        if bound is not None:
            text += f" was not enough, and the limit is {self.write(bound)}"
        return _Growth(text, options, stuck=True)


def _grown(
    rule: Rule, base: Mapping[str, object], used: Mapping[str, object], allowed: PartitionLimits
) -> _Growth:
    """Return the memory and time of the next element.

    Further retries keep what a retry had, however they end.
    """
    memory = next((k for k in ("mem_per_cpu", "mem_per_gpu") if k in used or k in base), "mem")
    # The limits of a partition are those of a whole node.
    of_node = allowed if memory == "mem" else PartitionLimits()
    max_mem_mb, max_time_s = size_mb(rule.max_mem or ""), time_limit_s(rule.max_time or "")
    resources = (
        _Resource(
            memory, size_mb, written_size, rule.mem_growth, (max_mem_mb, of_node.max_mem_mb),
            of_node.default_mem_mb,
        ),
        _Resource(
            "time", time_limit_s, written_time, rule.time_growth, (max_time_s, allowed.max_time_s)
        ),
    )  # fmt: skip
    parts = [resource.grown(base, used) for resource in resources]
    stuck = any(part.stuck for part in parts)
    text = " and ".join(part.text for part in parts if part.text)
    options = tuple(option for part in parts for option in part.options)
    return _Growth(f"with {text}" if text and not stuck else text, options, stuck)


def remedy(plan: int, state: str | None) -> str:
    """Return the command that retries pages which were given up."""
    more = {"TIMEOUT": " --time ...", "OUT_OF_MEMORY": " --mem ..."}
    return f"astra resume {plan} --only {state}{more.get(state or '', '')}"


#: The key of a node.
Node = TypeVar("Node", bound=Hashable)


def bad_nodes(
    ends: Iterable[tuple[int, End | None, Node | None]],
    min_failed: int,
    never_claimed: Collection[int] = frozenset(),
) -> dict[Node, str]:
    """Return the nodes that seem to cause the failures of pages, each with an explanation.

    At least half of a bad node's pages failed on it, and less than half that share on other nodes.
    A page that failed on two nodes is not counted. If there were elements on one node only, as a
    scheduler that fills one node after the other sends them all to the node where they die at once,
    it is bad if none of them could even begin.

    Parameters
    ----------
    ends : (page, how an element of it ended, on which node); None for one that succeeded.
    min_failed : how many pages must have failed on a node for it to be bad; 0: no node is bad.
    never_claimed : pages that no element has claimed yet: neither a row nor the task failed them.
    """
    failed: defaultdict[Node, set[int]] = defaultdict(set)
    seen: defaultdict[Node, set[int]] = defaultdict(set)
    for page, end, node in ends:
        if node is not None and (end is None or end.state in _CAUSED_BY_NODES):
            seen[node].add(page)
            if end is not None:
                failed[node].add(page)
    n_nodes = Counter(page for pages in failed.values() for page in pages)
    own_fault = {page for page, n in n_nodes.items() if n > 1}
    reasons = {}
    for node, pages in failed.items():
        guilty = len(pages - own_fault)
        others = [other for other in seen if other != node]
        n_others = sum(len(seen[other] - own_fault) for other in others)
        share = guilty / max(len(seen[node] - own_fault), 1)
        n_failed = sum(len(failed[other] - own_fault) for other in failed if other != node)
        elsewhere = n_failed / max(n_others, 1)
        if not min_failed or guilty < min_failed or share < 0.5:
            continue
        if n_others and elsewhere < share / 2:
            reasons[node] = f"{guilty} pages failed on it and not elsewhere"
        elif not others and pages <= set(never_claimed):
            reasons[node] = (
                f"{guilty} elements could not begin on it, and there were none elsewhere"
            )
    return reasons
