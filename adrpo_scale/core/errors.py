"""Named errors. Each message gives the value, the expectation and the remedy.

The command line prints the message alone, without a traceback, and exits with `exit_code`. An
exception that is not an `AdrpoError` is a fault of this package and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
STOPPED = 85  # exit code: stopped by a signal or a hang; the same command resumes the run
DONE_BUT = "done, but "  # begins the recorded outcome of a run that lost what it had learned
LOST = 86  # exit code: another process or the network failed; this process made no error


class AdrpoError(Exception):
    """Base of every error that a user can cause and fix.

    agreed: whether every rank raises the same error, so that one of them prints it for all. Some
    classes are raised alike by every rank, always.
    """

    agreed = False


def agreed(error: AdrpoError) -> AdrpoError:
    """`error`, marked as one that every rank raises."""
    error.agreed = True
    return error


def of_one_rank(error: AdrpoError) -> AdrpoError:
    """`error`, marked as one that other ranks may not raise, whatever its class."""
    error.agreed = False
    return error


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of all calls. Where several raise an AdrpoError, the error of the first has the
    messages of all, a line each: otherwise every start would name one fault."""
    found, errors = [], []
    for call in calls:
        try:
            found.append(call())
        except AdrpoError as error:
            errors.append(error)
    if len(errors) > 1:
        joined = type(errors[0])("\n".join(str(error) for error in errors))
        joined.agreed = all(error.agreed for error in errors)
        raise joined from errors[0]
    if errors:
        raise errors[0]
    return found


def given(value: T | None) -> T:
    """`value`, which this package has put there: its absence is a fault of this package."""
    if value is None:
        raise RuntimeError("a value is absent that must be there; please open an issue")
    return value


class ConfigError(AdrpoError):
    """A setting is unknown, of the wrong type, or contradicts another one."""

    agreed = True


class PromptError(AdrpoError):
    """A prompt file is missing, empty or not in a known format."""

    agreed = True


class ClipError(AdrpoError):
    """An audio clip is missing, broken, empty, too short or too long."""


class ModelNotFoundError(AdrpoError):
    """A model folder or hub id cannot be read here."""


class DamagedFileError(ModelNotFoundError):
    """A file of a model is cut off, empty, or not the file itself."""


class WeightsError(AdrpoError):
    """Weights on disk do not cover the model's parameters exactly."""


class RewardError(AdrpoError):
    """A reward cannot be built, or did not return one number per sample."""


class GroupError(AdrpoError):
    """A group does not hold exactly G samples."""

    agreed = True


class EndpointError(AdrpoError):
    """An endpoint gives no answers: it is absent, refuses the key, or fails repeatedly."""


class RunFolderError(AdrpoError):
    """A run folder cannot be used as asked."""


class NonFiniteError(AdrpoError):
    """Too many updates in a row had a gradient that is not finite."""

    agreed = True


class LimitReached(AdrpoError):
    """A limit of the section [limits] was crossed, and the run was ended for it."""

    agreed = True


class NothingLearned(AdrpoError):
    """A run came to its end without having learned anything."""

    agreed = True


class CheckpointError(AdrpoError):
    """A checkpoint cannot be written, is broken, or does not belong to this run."""


class DiskSpaceError(AdrpoError):
    """The disk or a quota leaves too little room."""


class CacheError(AdrpoError):
    """The folder of the cache cannot be used."""


class ExportError(AdrpoError):
    """An export cannot be made, or did not pass its verification."""


class NodeError(AdrpoError):
    """A node is unfit or absent; the same job can run on other nodes."""


class TrialError(AdrpoError):
    """A trial did not finish: it was stopped, or needs more memory than there is."""


class OutOfMemory(AdrpoError):
    """Memory ran out on this process. is_repeated: for the second time at the same place, so that
    another start would end alike."""

    def __init__(self, message: str, is_repeated: bool = False) -> None:
        super().__init__(message, is_repeated)
        self.is_repeated = is_repeated

    def __str__(self) -> str:
        return str(self.args[0])


class GenerationError(AdrpoError):
    """The process that draws this rank's rollouts failed, died or did not answer. is_accident: by a
    signal, a dead GPU or a hang, after which the same command may succeed."""

    def __init__(self, message: str, is_accident: bool = False) -> None:
        super().__init__(message, is_accident)
        self.is_accident = is_accident

    def __str__(self) -> str:
        return str(self.args[0])


class StopRequested(Exception):
    """A signal asked every rank to stop, and all agreed at the same safe point.

    Not an error: it unwinds the loop. saveable: whether the state is that of an iteration's
    boundary and can be saved; otherwise the last commit stands.
    """

    def __init__(self, saveable: bool) -> None:
        super().__init__("stop requested")
        self.saveable = saveable


def exit_code(error: AdrpoError) -> int:
    """4: a node is unfit, and the job can run on others; 3: a limit of the config was reached; 85:
    memory ran out for the first time; 86: a process beside this one was lost; 2: any other error
    that a user can fix."""
    if isinstance(error, OutOfMemory) and not error.is_repeated:
        return STOPPED
    if isinstance(error, GenerationError) and error.is_accident:
        return LOST
    return 4 if isinstance(error, NodeError) else 3 if isinstance(error, LimitReached) else 2
