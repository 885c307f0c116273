"""What the hub says of a repository before anything is downloaded: whether it is there and may be
read, at which commit, under which licence, and how large the files are that are needed.

Every answer that stands in the way becomes one error that names the page or the command that helps.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.hub.lock import LockedRepo, size_of
from adrpo_scale.hub.needs import (
    HubNeed,
    cache_folder,
    converted_name,
    repo_folder,
    snapshot_folder,
)
from adrpo_scale.hub.pickles import PickledWeights, is_converted, pickled_weights

SECONDS = 20.0  # that the hub has for an answer
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class HubUnreachableError(ModelNotFoundError):
    """Nobody answers: there is no use in asking for the next repository."""


@dataclass(frozen=True)
class RepoPlan:
    """What a need comes to at one commit.

    files: sizes in bytes of the files that are read, by path, pickles apart. pickled: weights that
    must be converted, and is_converted: whether that was done before. pickles: the sizes of their
    files, and of their indexes. there: which of all these files are in the cache at this commit;
    known: whose content is, of another one. is_new: whether the commit was looked up now, not taken
    from a lock.
    """

    need: HubNeed
    revision: str
    licence: str | None
    files: Mapping[str, int]
    pickled: tuple[PickledWeights, ...]
    pickles: Mapping[str, int]
    there: frozenset[str]
    known: frozenset[str]
    is_converted: bool
    is_new: bool

    @property
    def to_bring(self) -> dict[str, int]:
        """Sizes of the files that the hub's client must be asked for."""
        every = {**self.files, **self.to_convert}
        return {name: size for name, size in every.items() if name not in self.there}

    @property
    def bytes_to_fetch(self) -> int:
        """Of those, what comes over the network."""
        return sum(size for name, size in self.to_bring.items() if name not in self.known)

    @property
    def to_convert(self) -> Mapping[str, int]:
        """Sizes of the pickles, where they have not been converted."""
        return {} if self.is_converted else self.pickles

    @property
    def to_write(self) -> int:
        """Bytes that the cache will grow by."""
        return self.bytes_to_fetch + sum(self.to_convert.values())


def ask(need: HubNeed, locked: LockedRepo | None) -> RepoPlan:
    """What a need comes to, at the lock's revision or at the newest. Raises ModelNotFoundError
    where the hub has no such thing or will not give it, HubUnreachableError where nobody answers.
    """
    try:
        info = _info(need, locked)
    except Exception as error:
        explained = _explained(error, need, locked)
        if explained is None:
            raise
        raise explained from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    pickled = pickled_weights(need, sizes)
    inside = [name for weights in pickled for name in (*weights.files, weights.index)]
    files = {name: size for name, size in sizes.items() if need.covers(name) and name not in inside}
    if not files:
        raise ModelNotFoundError(
            f"{need.type} {need.name!r} has none of the files that are needed "
            f"({', '.join(need.allow)}): is it another {need.type}? See {_page(need)}"
        )
    folder = cache_folder() / converted_name(need.key, info.sha)
    return RepoPlan(
        need=need,
        revision=info.sha,
        licence=_licence(info.card_data),
        files=files,
        pickled=tuple(pickled),
        pickles={name: sizes[name] for name in inside if name in sizes},
        there=frozenset(_there(need, info)),
        known=frozenset(_known(need, info)),
        is_converted=is_converted(folder, pickled, files),
        is_new=locked is None,
    )


def _info(need: HubNeed, locked: LockedRepo | None) -> Any:
    from huggingface_hub import HfApi

    api = HfApi()
    info = api.repo_info(
        need.name,
        repo_type=need.type,
        revision=locked.revision if locked is not None else None,
        files_metadata=True,
        timeout=SECONDS,
    )
    if info.gated:  # such a repository is shown to everybody, and given to few
        api.auth_check(need.name, repo_type=need.type)
    return info


def _there(need: HubNeed, info: Any) -> Iterator[str]:
    snapshot = snapshot_folder(need.key, info.sha)
    for file in info.siblings or []:
        if size_of(snapshot / file.rfilename) == (file.size or 0):
            yield file.rfilename


def _known(need: HubNeed, info: Any) -> Iterator[str]:
    blobs = repo_folder(need.key) / "blobs"
    for file in info.siblings or []:
        content = file.lfs.sha256 if file.lfs else file.blob_id
        if content and size_of(blobs / content) == (file.size or 0):
            yield file.rfilename


def _licence(card: Any) -> str | None:
    facts = card.to_dict() if card is not None else {}
    licence = facts.get("license")
    if licence == "other" and facts.get("license_name"):
        licence = facts["license_name"]
    if isinstance(licence, list):
        licence = ", ".join(map(str, licence))
    return str(licence) if licence else None


def endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def answers() -> bool:
    """Whether somebody is there to be asked. Takes a few seconds where nobody is."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(endpoint(), timeout=5.0)
    except Exception:  # which one differs between the hub's clients
        return False
    return True


def _page(need: HubNeed) -> str:
    """For people, who cannot accept terms at a mirror."""
    return f"https://huggingface.co/{'datasets/' * (need.type == 'dataset')}{need.name}"


# ---- errors --------------------------------------------------------------------------------------


def _explained(
    error: Exception, need: HubNeed, locked: LockedRepo | None
) -> ModelNotFoundError | None:
    """What a client's error means for people; None where it is a fault of ours."""
    from huggingface_hub import errors

    what, page = f"{need.type} {need.name!r}", _page(need)
    if isinstance(error, errors.HFValidationError):
        return ModelNotFoundError(f"{what} is neither a folder here nor a hub id: {error}")
    if isinstance(error, errors.GatedRepoError):
        return ModelNotFoundError(
            f"{what} is gated: accept its terms on {page} {_as_whom()}; if you have asked for "
            "access, wait for its authors' answer"
        )
    if isinstance(error, errors.RevisionNotFoundError) and locked is not None:
        return ModelNotFoundError(
            f"{what} has no revision {locked.revision[:12]} any more, which the lock names: see "
            f"{page}, and take the newest one with --upgrade"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"{what} is not on the hub, or is private{_nearest(need)}. For a private one, see that "
            f"{page} opens {_as_whom()}"
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubUnreachableError(
            "the hub may not be asked: HF_HUB_OFFLINE is set; unset it for `adrpo-scale prefetch`"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error, what, page)
    if is_of_the_network(error):
        return HubUnreachableError(
            f"{endpoint()} cannot be reached ({type(error).__name__}: {error}). Compute nodes "
            "often have no internet: run `adrpo-scale prefetch` on a login node, or set "
            "HTTPS_PROXY as your site says"
        )
    return None


def _refused(error: Any, what: str, page: str) -> ModelNotFoundError:
    status = error.response.status_code
    if status in (401, 403):
        return ModelNotFoundError(
            f"{what}: the hub refuses access ({status}): accept the terms on {page} {_as_whom()}; "
            "a fine-grained token also needs the right to read gated repositories"
        )
    if status >= 500 or status == 429:
        return HubUnreachableError(
            f"{endpoint()} answers with {status} for {what}: it is overloaded or down, so try "
            "again later"
        )
    return ModelNotFoundError(f"{what}: the hub answers with {status} ({error})")


def is_of_the_network(error: Exception) -> bool:
    """Whether the network failed, not this package: the classes differ between clients."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _NETWORK


def _as_whom() -> str:
    """Where a token stands, and how to get one."""
    from huggingface_hub import get_token

    if get_token() is None:
        return "and log in here with `hf auth login` (there is no token yet)"
    where = "of HF_TOKEN" if os.environ.get("HF_TOKEN") else "of `hf auth login`"
    return f"with the account of the token that is used here, the one {where}; `hf auth whoami`"


def _nearest(need: HubNeed) -> str:
    """A hint at the spelling, where the hub knows something like it."""
    from huggingface_hub import HfApi

    owner, _, name = need.name.partition("/")
    api = HfApi()
    listed: Any = api.list_datasets if need.type == "dataset" else api.list_models
    try:
        known = [repo.id for repo in listed(author=owner, limit=200)]
        known += [repo.id for repo in listed(search=name, limit=50)]
    except Exception:  # a hint is not worth an error
        return ""
    near = difflib.get_close_matches(need.name.lower(), [k.lower() for k in known], n=1, cutoff=0.7)
    spelt = next((k for k in known if near and k.lower() == near[0]), None)
    return f" (did you mean {spelt!r}?)" if spelt else ""
