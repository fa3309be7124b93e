"""Apply the retry policy to a plan: read how its pages ended, and choose the next step of each."""

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache

from peewee import fn

from astra.config import profiles, retry_rules
from astra.config import settings as config
from astra.config.profiles import Profile, choose_profile, without_early_signal
from astra.database.connection import connection, dialect, tuples, writing
from astra.errors import AstraError, ConfigError
from astra.models.attempts import N_ENDED, Attempt, Exclusion, excluded_nodes
from astra.models.plans import Page, Plan, Submission
from astra.models.stored_json import log_damage
from astra.plan.lookup import is_trusted
from astra.plan.pages import PageStatus, pages_without_keys
from astra.policy import retry_policy
from astra.policy.retry_policy import Decision, End
from astra.records import dataclass
from astra.slurm import limits, parse
from astra.slurm.limits import PartitionLimits
from astra.states import ALIVE, PageState, SlurmState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageStep:
    """The next step of a page that is neither done nor alive."""

    page: Page
    end: End | None
    decision: Decision
    profile: Profile  # for its next element


@dataclass(frozen=True)
class NextStep:
    """What the policy decides about some pages."""

    pages: tuple[int, ...]
    state: str | None  # what ended their elements
    retry: bool
    explanation: str  # "3 of 3 retries used up"
    remedy: str | None = None  # the command that submits pages which are not retried


#: States in which an element may end before it starts; this says nothing of its page. Nor does an
#: end that Slurm cannot report, because its accounting is unavailable or was purged.
_ENDS_OF_QUEUED = (SlurmState.CANCELLED, SlurmState.DEADLINE, SlurmState.ABSENT, None)


def next_steps(
    plan: Plan,
    statuses: Iterable[PageStatus],
    profile_name: str | None = None,
    options: Mapping[str, object] | None = None,
    on_request: bool = False,
) -> list[PageStep]:
    """Choose the next step of each page by the policy.

    Without a profile and options, an element is submitted with those of the previous one, and for a
    page that had none, because of a limit of Slurm, with those of the plan's last array.

    Parameters
    ----------
    statuses : of the plan's pages; those that are done or alive are skipped.
    on_request : whether to take pages that have used up their retries.
    """
    wanted = {s.page: s for s in statuses if s.state not in ALIVE and s.state is not PageState.DONE}
    if not wanted:
        return []
    with connection():
        pages = [page for page in pages_without_keys(plan) if page.number in wanted]
        submissions = {s.pk: s for s in Submission.select().where(Submission.plan == plan.pk)}
        gained, searched = _attempts(plan)
    overrides = {key: value for key, value in (options or {}).items() if value is not None}
    # Cached: it is the same for all pages of an array, which may be thousands.
    chosen = cache(lambda pk: _profile(submissions.get(pk or 0), profile_name, overrides))
    last_array = max((pk for pk, s in submissions.items() if s.kind == "slurm"), default=None)
    limits_of = cache(_limits_of)
    steps = []
    for page in pages:
        status, base = wanted[page.number], chosen(page.submission_pk or last_array)
        last = page.pk, page.submission_pk
        was_queued = last not in gained and status.slurm_state in _ENDS_OF_QUEUED
        no_row_ended = not gained[last] and not was_queued
        submission = submissions.get(page.submission_pk or 0)
        end = end_of(status, no_row_ended)
        if end is not None and submission is not None:
            end = replace(end, cluster=submission.cluster_name)
        if end is not None and end.state in retry_policy.CAUSED_BY_ROWS and last in searched:
            end = replace(end, no_row_ended=False)
        decision = _decide(
            end, page, base, submission, limits_of,
            on_request or "mem" in overrides or "time" in overrides,
        )  # fmt: skip
        grown = {key: value for key, value in decision.options if key not in overrides}
        steps.append(PageStep(page, end, decision, _grown(base, grown)))
    return steps


def end_of(status: PageStatus, no_row_ended: bool = True) -> End | None:
    """Return how the last element of a page ended, as the policy names it."""
    return retry_policy.end_of(
        status.state, status.slurm_state, status.exit_code, no_row_ended, status.node,
        has_time_limit=not status.is_local,
    )  # fmt: skip


def _attempts(plan: Plan) -> tuple[Counter[tuple[int, int | None]], set[tuple[int, int | None]]]:
    """Return how many rows ended, by page and submission; and the pages and submissions in which
    groups of suspects were run, which are halved each time."""
    of_page = Attempt.page, Attempt.submission_pk
    query = Attempt.select(*of_page, fn.SUM(N_ENDED), fn.MAX(Attempt.group)).join(Page)
    gained: Counter[tuple[int, int | None]] = Counter()
    searched = set()
    for page, submission, n, group in tuples(query.where(Page.plan == plan.pk).group_by(*of_page)):
        gained[page, submission] += int(n or 0)
        if group is not None:
            searched.add((page, submission))
    return gained, searched


def _decide(
    end: End | None,
    page: Page,
    base: Profile,
    submission: Submission | None,
    limits_of: Callable[[str | None, str | None], PartitionLimits],
    on_request: bool,
) -> Decision:
    """Apply the rules of a page's profile; query the partition only if memory or time may grow."""
    rules = retry_rules.rules(config.current().rules, base.policy)
    used = _used(submission, base)
    rule = None if end is None else rules.get(end.state)
    grows = rule is not None and (rule.mem_growth > 1 or rule.time_growth > 1)
    return retry_policy.next_step(
        end,
        ends_of(page),
        rules,
        base.options,
        used,
        limits_of(base.partition, base.clusters) if grows else PartitionLimits(),
        on_request,
    )


def _used(submission: Submission | None, base: Profile) -> dict[str, str | float]:
    """Return the options of the last element, without a time that another partition gave it."""
    if submission is None:
        return {}
    used, is_default = submission.options, submission.stored_profile.get("default_time")
    if is_default and used.get("partition") != base.options.get("partition"):
        used.pop("time", None)
    return used


def _limits_of(partition: str | None, clusters: str | None) -> PartitionLimits:
    try:
        return limits.partition_limits(partition, clusters)
    except AstraError:
        return PartitionLimits()  # sbatch itself refuses what does not fit


def _profile(
    submission: Submission | None, name: str | None, overrides: Mapping[str, object]
) -> Profile:
    """Return the profile of a submission, with the options that are given now."""
    if name is not None or submission is None or submission.kind != "slurm":
        return choose_profile(name, overrides)
    previous = submission.stored_profile
    if not is_trusted(submission.role, submission.plan.token):  # options name files and folders
        return _default_profile(submission, "its role is not trusted", overrides)
    overrides = {**previous.get("given", {}), **overrides}
    try:
        profiles.get(previous.get("name"), config.current())
    except ConfigError as error:  # it was renamed, or is somebody else's
        return _default_profile(submission, str(error).rstrip("."), overrides)
    return choose_profile(previous.get("name"), overrides)


def _default_profile(
    submission: Submission, reason: str, overrides: Mapping[str, object]
) -> Profile:
    """Return the default profile for pages whose own cannot be used, and say so."""
    profile = choose_profile(None, overrides)
    name = str(submission.stored_profile.get("name"))
    _warn_once(submission.plan_pk, submission.plan.token, name, reason, profile.name)
    return profile


@cache
def _warn_once(pk: int, token: str, name: str, reason: str, default: str) -> None:
    """Warn once for each plan, whose status may be read again and again."""
    log.warning(
        "plan %d was submitted with profile %r, which is not used: %s; pages are submitted again "
        "with profile %r; for another: astra resume %d --profile NAME",
        pk, name, reason, default, pk,
    )  # fmt: skip


def _grown(base: Profile, options: Mapping[str, str]) -> Profile:
    if not options:
        return base
    # Not counted as given: a later element grows from what this one had.
    return without_early_signal(replace(base.with_options(**options), given=base.given))


def ends_of(page: Page) -> list[End]:
    """Return the ends of a page's elements that retries followed, first to last."""
    if page.retries is None:
        return []
    if (ends := parsed_ends(page.retries)) is None:
        log_damage(f"`retries` of page {page.number} of plan {page.plan_pk}", page.retries)
    return ends or []


def parsed_ends(text: str) -> list[End] | None:
    """Parse the stored ends of a page; return None if they are damaged."""
    try:
        ends = [End(**end) for end in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        return None
    return ends if all(isinstance(end.state, str) for end in ends) else None


def ends_as_stored(ends: Iterable[End]) -> str:
    """Return the ends of a page as JSON."""
    return json.dumps([vars(end) for end in ends])


def record(plan: Plan, steps: Iterable[PageStep], statuses: Iterable[PageStatus]) -> None:
    """Store how the elements of pages that were submitted again had ended."""
    slurm_states = {s.page: s.slurm_state for s in statuses}
    before = {step.page.number: step for step in steps if step.end is not None}
    if not before:
        return
    with connection(), writing():
        for page in pages_without_keys(plan):
            old = before.get(page.number)
            if old is None or old.end is None or page.submission_pk == old.page.submission_pk:
                continue  # a limit of Slurm's: it was not submitted
            ends = ends_as_stored([*ends_of(page), old.end])
            Page.update(retries=ends).where(Page.pk == page.pk).execute()
            if page.attempt_pk is not None and slurm_states.get(page.number):
                Attempt.update(slurm_state=slurm_states[page.number]).where(
                    Attempt.pk == page.attempt_pk
                ).execute()


def exclude_bad_nodes(
    plan: Plan, statuses: Sequence[PageStatus], steps: Iterable[PageStep]
) -> None:
    """Exclude, for a while, the nodes at which many pages of a plan fail.

    An exclusion that the plan has made before ends if its pages have failed elsewhere too since.
    """
    settings = config.current().policy
    with connection():
        pages = list(pages_without_keys(plan))
        submissions = Submission.select(Submission.pk, Submission.cluster_name)
        of_plan = submissions.where(Submission.plan == plan.pk)
        clusters = {pk: name for pk, name in tuples(of_plan)}
    ends = [(page.number, end) for page in pages for end in ends_of(page)]
    ends += [(step.page.number, step.end) for step in steps if step.end is not None]
    seen: list[tuple[int, End | None, tuple[str, str] | None]] = [
        (page, end, _node(end.cluster, end.node)) for page, end in ends
    ]
    done = {s.page: s.node for s in statuses if s.state is PageState.DONE}
    seen += [
        (page.number, None, _node(clusters.get(page.submission_pk), done[page.number]))
        for page in pages
        if page.number in done
    ]
    never_claimed = {page.number for page in pages if page.attempt_pk is None}
    bad = retry_policy.bad_nodes(seen, settings.exclude_after, never_claimed)
    made_here = f"plan {plan.pk}: "
    cleared = {node for _, _, node in seen} - bad.keys()
    lifted = [
        e.pk
        for e in excluded_nodes()
        if (e.cluster, e.node) in cleared and e.reason.startswith(made_here)
    ]
    if not bad and not lifted:
        return
    with connection(), writing():
        now = dialect().now()
        until = now + timedelta(seconds=settings.exclude_for_s)
        for (cluster, node), reason in bad.items():
            values = {"reason": made_here + reason, "until": until}
            Exclusion.insert(cluster=cluster, node=node, **values).on_conflict(
                conflict_target=[Exclusion.cluster, Exclusion.node], update=values
            ).execute()
        # Another plan may have excluded one of them meanwhile.
        still_own = Exclusion.pk.in_(lifted) & Exclusion.reason.startswith(made_here)
        Exclusion.update(until=now).where(still_own).execute()


def _node(cluster: str | None, nodes: str | None) -> tuple[str, str] | None:
    """Return the cluster and the first of the nodes of an element, on which its script ran."""
    return (cluster or "", parse.first_node(nodes)) if nodes else None


def grouped(steps: Iterable[PageStep]) -> list[NextStep]:
    """Group pages by their next step."""
    groups: dict[tuple[str | None, bool, str, str | None], list[int]] = defaultdict(list)
    for page, decision in ((step.page, step.decision) for step in steps):
        remedy = None if decision.retry else retry_policy.remedy(page.plan_pk, decision.state)
        groups[decision.state, decision.retry, decision.explanation, remedy].append(page.number)
    return [NextStep(tuple(pages), *kind) for kind, pages in groups.items()]
