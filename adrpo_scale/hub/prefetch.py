"""The command `prefetch`: brings the repositories of runs into the hub's cache, and pins them.

For a login node: no GPU, no process group. All problems of all repositories (access, existence,
room) are looked for first. Then each repository is downloaded at one commit by the hub's own
client, which keeps complete files, so the same command resumes after an interruption with the
missing files. Weights that exist as pickles alone are converted to safetensors. `prefetch.lock` is
written after each repository.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Column, Table

from adrpo_scale.core.console import console
from adrpo_scale.core.disk_space import free_space, shortage, size_text
from adrpo_scale.core.dist import rank_facts
from adrpo_scale.core.errors import (
    AdrpoError,
    DamagedFileError,
    ModelNotFoundError,
    WeightsError,
)
from adrpo_scale.hub import access as hub_access
from adrpo_scale.hub.access import HubUnreachableError, RepoPlan
from adrpo_scale.hub.download import download, remember_newest
from adrpo_scale.hub.lock import (
    REMEDY,
    LockedRepo,
    PinnedError,
    check_locked,
    damaged,
    find_here,
    lock_path,
    missing,
    read_lock,
    write_lock,
)
from adrpo_scale.hub.needs import (
    HubNeed,
    Key,
    cache_folder,
    converted_name,
    joined,
    snapshot_folder,
)
from adrpo_scale.hub.pickles import contents, convert_snapshot


def require_models(needs: Sequence[HubNeed]) -> None:
    """Raises ModelNotFoundError, which names all missing needs, unless a run can read its models.

    For the start of a run, before a process group: looks at names, sizes and headers alone. A need
    that is neither locked nor cached counts as missing only where the hub does not answer. Raises
    DamagedFileError for files that are here and cannot be read.
    """
    found = missing(needs)
    if any(is_on_hub for _, is_on_hub in found) and hub_access.answers():
        found = [(line, is_on_hub) for line, is_on_hub in found if not is_on_hub]
    if not found:
        _require_whole(needs)
        return
    lines = list(dict.fromkeys(line for line, _ in found))
    error = ModelNotFoundError(
        _listed(f"{_things(len(lines))} that this run reads cannot be found here:", lines)
        + f"\n{REMEDY[0].upper()}{REMEDY[1:]}, and give the job the same cache by "
        f"HF_HOME; here it is {cache_folder()}"
    )
    error.agreed = rank_facts().local_rank > 0  # ranks of a node share the cache: one prints it
    raise error


def _require_whole(needs: Sequence[HubNeed]) -> None:
    lines = damaged(needs)
    if lines:
        head = f"{_things(len(lines))} that this run reads cannot be read:"
        error = DamagedFileError(_listed(head, lines))
        error.agreed = rank_facts().local_rank > 0
        raise error


def prefetch(
    needs: Sequence[HubNeed],
    quota_command: str | None = None,
    lock: Path | None = None,
    upgrade: bool = False,
    dry_run: bool = False,
) -> None:
    """The command. Raises ModelNotFoundError, with every problem of every repository, before
    anything is downloaded.

    needs: of all runs together. quota_command: see `core.disk_space`. lock: the file, `lock_path()`
    by default. upgrade: takes the newest revision of locked repositories, too. dry_run: only shows
    the plan.
    """
    path = lock or lock_path()
    locked = read_lock(path)
    needs = _widened(joined(needs), locked)
    pinned = {} if upgrade else locked
    plans, problems = _plans(needs, pinned)
    if not os.access(path.absolute().parent, os.W_OK):
        problems.append(f"the lock {path} cannot be written: name another one with --lock")
    problems += _room(plans, quota_command)
    if problems:
        raise ModelNotFoundError(
            _listed(f"{_things(len(problems))} in the way, and nothing was downloaded:", problems)
        )
    _show(needs, plans, pinned)
    if dry_run:
        console.print("--dry-run: nothing was downloaded", highlight=False)
        return
    for plan in plans:
        locked[plan.need.key] = _fetch(plan)
        write_lock(path, locked.values())
    _conclude(path, needs, locked)


def _widened(needs: Sequence[HubNeed], locked: Mapping[Key, LockedRepo]) -> list[HubNeed]:
    """The needs, with what the lock's other configs read of the same repositories."""
    earlier = [HubNeed(repo.id, "", repo.allow, repo.ignore, repo.type) for repo in locked.values()]
    found = []
    for need in needs:
        same = [other for other in earlier if other.key == need.key and need.is_hub_id]
        (both,) = joined([need, *same])
        found.append(replace(both, what=need.what))
    return found


def _plans(
    needs: Sequence[HubNeed], pinned: Mapping[Key, LockedRepo]
) -> tuple[list[RepoPlan], list[str]]:
    """(plans of the needs that are not complete here, problems). The hub is not asked about a need
    that is locked and cached."""
    plans, problems = [], []
    for need in needs:
        try:
            if not need.is_hub_id:
                find_here(need)
            elif not _is_there(need, pinned):
                plans.append(hub_access.ask(need, pinned.get(need.key)))
        except HubUnreachableError as error:
            problems.append(str(error))
            break  # every other question would wait as long and fail the same way
        except AdrpoError as error:
            problems.append(f"{need.what}: {error}")
    return plans, problems


def _is_there(need: HubNeed, pinned: Mapping[Key, LockedRepo]) -> bool:
    locked = pinned.get(need.key)
    if locked is None:
        return False
    try:
        check_locked(need, locked)
    except PinnedError:
        return False
    return True


def _room(plans: Sequence[RepoPlan], quota_command: str | None) -> list[str]:
    """Problems of writing the plans' files into the cache: none, or one."""
    cache = cache_folder()
    needed = sum(plan.to_write for plan in plans)
    count = sum(2 * len(plan.to_bring) + len(plan.to_convert) for plan in plans)  # files and names
    if not count:
        return []
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK) or _is_read_only(existing):
        return [f"the cache {cache} cannot be written to: set HF_HOME to one that can"]
    space = free_space(cache, quota_command)
    lack = shortage(space, needed, count)
    if lack is None:
        return []
    return [
        f"no room in the cache {cache}: it needs {lack}. Set HF_HOME to a larger filesystem, or "
        "delete what is not needed (`hf cache ls`, `hf cache rm`)"
    ]


def _is_read_only(folder: Path) -> bool:
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)  # os.access grants root everything


def _fetch(plan: RepoPlan) -> LockedRepo:
    """Downloads and converts the files of a plan."""
    need = plan.need
    if plan.to_bring:
        console.print(f"{need.name} at {plan.revision[:12]}", highlight=False)
        download(plan)
    if plan.is_new:
        remember_newest(plan)
    files, converted = dict(plan.files), None
    if plan.pickled:
        converted = converted_name(need.key, plan.revision)
        files = _converted(plan, cache_folder() / converted)
    return LockedRepo(
        type=need.type,
        id=need.name,
        revision=plan.revision,
        licence=plan.licence,
        allow=need.allow,
        ignore=need.ignore,
        files=files,
        converted=converted,
    )


def _converted(plan: RepoPlan, folder: Path) -> dict[str, int]:
    """Files of the folder of converted weights, which is made if it does not exist."""
    if not plan.is_converted:
        name = plan.need.name
        console.print(f"converting the pickles of {name} to safetensors", highlight=False)
        snapshot = snapshot_folder(plan.need.key, plan.revision)
        try:
            convert_snapshot(snapshot, sorted(plan.files), plan.pickled, folder)
        except OSError as error:  # the disk was filled by somebody else in the meantime
            raise WeightsError(
                f"the conversion of {name} stopped ({error}): make room and run the command again"
            ) from error
    return contents(folder)


# ---- output --------------------------------------------------------------------------------------


def _show(
    needs: Sequence[HubNeed], plans: Sequence[RepoPlan], pinned: Mapping[Key, LockedRepo]
) -> None:
    table = Table(
        Column("repository", overflow="fold"),
        "revision",
        Column("licence", overflow="fold"),
        Column("size", no_wrap=True),
        Column("to download", no_wrap=True),
    )
    by_key = {plan.need.key: plan for plan in plans}
    for need in needs:
        if not need.is_hub_id:
            table.add_row(need.name, "", "", "", "is here")
            continue
        plan = by_key.get(need.key)
        known = plan or pinned[need.key]
        size = sum({**known.files, **(plan.pickles if plan else {})}.values())
        fetch = plan.bytes_to_fetch if plan else 0
        table.add_row(
            need.name,
            known.revision[:8],
            known.licence or "not stated",
            size_text(size),
            size_text(fetch) if fetch else "is here",
        )
    console.print(table)


def _conclude(path: Path, needs: Sequence[HubNeed], locked: Mapping[Key, LockedRepo]) -> None:
    mine = [locked[need.key] for need in needs if need.is_hub_id]
    if not mine:
        console.print("these configs read nothing from the hub: nothing to fetch", highlight=False)
        return
    total = size_text(sum(repo.bytes for repo in mine))
    console.print(f"cache:  {cache_folder()} ({total} of these configs)", highlight=False)
    console.print(f"lock:   {path}", highlight=False, soft_wrap=True)
    if path.absolute() != lock_path().absolute():
        console.print(
            f"jobs need ADRPO_PREFETCH_LOCK={shlex.quote(str(path.absolute()))}", highlight=False
        )


def _things(count: int) -> str:
    return "one thing" if count == 1 else f"{count} things"


def _listed(head: str, lines: Sequence[str]) -> str:
    return "\n".join([head, *(f"  - {line}" for line in lines)])
