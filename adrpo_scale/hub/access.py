"""The hub's answers about a repository before a download: existence, access, commit, licence, and
the sizes of the needed files.

Every answer that prevents a download becomes one error that names the page or command that helps.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.core.secrets import check_sendable, keep
from adrpo_scale.hub.inside import is_inside
from adrpo_scale.hub.lock import LockedRepo, check_revision, size_of
from adrpo_scale.hub.needs import (
    HubNeed,
    cache_folder,
    converted_name,
    repo_folder,
    snapshot_folder,
)
from adrpo_scale.hub.pickles import (
    PickledWeights,
    is_converted,
    pickled_weights,
    variants_alone,
)

SECONDS = 20.0  # limit for an answer of the hub
_NETWORK = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class HubUnreachableError(ModelNotFoundError):
    """The hub does not answer; a question about another repository would fail as well."""


@dataclass(frozen=True)
class RepoPlan:
    """The files that a need requires at one commit.

    files: sizes in bytes of the files that are read, by path, without pickles. pickled: weights
    that must be converted; is_converted: whether they were converted before. pickles: sizes of
    their files and indexes. there: files of the repository that the cache has at this commit;
    known: files whose content it has, from any commit. is_new: whether the commit was looked up
    now, not taken from a lock.
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
        """Sizes of the files that the hub's client must bring, by path."""
        every = {**self.files, **self.to_convert}
        return {name: size for name, size in every.items() if name not in self.there}

    @property
    def bytes_to_fetch(self) -> int:
        """Bytes of them that come over the network."""
        return sum(size for name, size in self.to_bring.items() if name not in self.known)

    @property
    def to_convert(self) -> Mapping[str, int]:
        """Sizes of the pickles that are yet to be converted, by path."""
        return {} if self.is_converted else self.pickles

    @property
    def to_write(self) -> int:
        """Bytes by which the cache will grow."""
        return self.bytes_to_fetch + sum(self.to_convert.values())


def ask(need: HubNeed, locked: LockedRepo | None) -> RepoPlan:
    """The plan of a need, at the lock's revision or, without one, at the newest.

    Raises ModelNotFoundError where the hub lacks the repository or its files, or refuses access;
    HubUnreachableError where it does not answer.
    """
    _check_token()
    if locked is not None:
        check_revision(need, locked)
    try:
        info = _info(need, locked)
    except Exception as error:
        explained = _explained(error, need, locked)
        if explained is None:
            raise
        raise explained from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    strange = next((name for name in sizes if not is_inside(name)), None)
    if strange is not None:
        raise ModelNotFoundError(
            f"{need.type} {need.name!r}: {endpoint()} lists the file {strange!r}, which would lie "
            "outside of the cache: see that HF_ENDPOINT is the hub or a mirror that you trust"
        )
    pickled = pickled_weights(need, sizes)
    inside = [name for weights in pickled for name in (*weights.files, weights.index)]
    files = {name: size for name, size in sizes.items() if need.covers(name) and name not in inside}
    if not files and not pickled:
        raise ModelNotFoundError(
            f"{need.type} {need.name!r} has none of the files that are needed "
            f"({', '.join(need.allow)}): is it another {need.type}? See {_page(need)}"
        )
    variants = variants_alone(need, sizes)
    if variants:
        raise ModelNotFoundError(
            f"{need.type} {need.name!r} has weights of a part as a variant alone ({variants[0]}), "
            "which libraries read on request alone: name a model that has all files without a "
            "variant, or save one to a folder (docs/guide/weights.md shows how)"
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


def _check_token() -> None:
    """Raises ConfigError for a token that the client's own error would show."""
    from huggingface_hub import get_token

    check_sendable(
        keep(get_token() or ""),
        "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token of `hf auth login`",
    )


def _info(need: HubNeed, locked: LockedRepo | None) -> Any:
    from huggingface_hub import HfApi

    api = HfApi()
    info = api.repo_info(
        need.name,
        repo_type=need.type,
        revision=locked.revision if locked is not None else need.revision,
        files_metadata=True,
        timeout=SECONDS,
    )
    if info.gated:  # its page is public, its files are not
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
    """Whether the hub answers. Takes a few seconds where it does not."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(endpoint(), timeout=5.0)
    except Exception:  # its class differs between the hub's clients
        return False
    return True


def _page(need: HubNeed) -> str:
    """The repository's page at huggingface.co: terms cannot be accepted at a mirror."""
    return f"https://huggingface.co/{'datasets/' * (need.type == 'dataset')}{need.name}"


# ---- errors --------------------------------------------------------------------------------------


def _explained(
    error: Exception, need: HubNeed, locked: LockedRepo | None
) -> ModelNotFoundError | None:
    """The error with a remedy for a client's error; None where it is a fault of this package."""
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
            "HF_HUB_OFFLINE is set, so the hub is not asked; unset it for `adrpo-scale prefetch`"
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
    """Whether an error of a client comes from the network; the classes differ between clients."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in _NETWORK


def _as_whom() -> str:
    """The end of a remedy: the account of the token in use, or the command that logs in."""
    from huggingface_hub import get_token

    if get_token() is None:
        return "and log in here with `hf auth login` (there is no token yet)"
    where = "of HF_TOKEN" if os.environ.get("HF_TOKEN") else "of `hf auth login`"
    return f"with the account of the token that is used here, the one {where} (`hf auth whoami`)"


def _nearest(need: HubNeed) -> str:
    """A hint at a similar name on the hub; empty where there is none."""
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
