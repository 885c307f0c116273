"""Named errors. Each message gives the value, what was expected and what to do about it.

The command line prints the message alone, without a traceback, and exits with 2; anything that is
not an `AdrpoError` is a fault of this package and keeps its traceback.
"""

STOPPED = 85  # exit code: a signal asked for it; start the same command again to resume
LOST = 86  # exit code: another process has ended, or the network; this one has done nothing wrong


class AdrpoError(Exception):
    """Base of every error that a user can cause and fix.

    agreed: whether every rank raises it alike, so that one of them may print it for all.
    """

    agreed = False


def agreed(error: AdrpoError) -> AdrpoError:
    """`error`, marked as one that every rank raises."""
    error.agreed = True
    return error


class ConfigError(AdrpoError):
    """A setting is unknown, of the wrong type, or contradicts another one."""


class PromptError(AdrpoError):
    """A prompt file is missing, empty or not in a known format."""


class ClipError(AdrpoError):
    """An audio clip is missing, broken, empty, too short or too long."""


class ModelNotFoundError(AdrpoError):
    """A model folder or hub id cannot be read here."""


class WeightsError(AdrpoError):
    """Weights on disk do not cover the model's parameters exactly."""


class RewardError(AdrpoError):
    """A reward cannot be built, or answered with something that is not one number per sample."""


class GroupError(AdrpoError):
    """A group does not hold exactly G samples."""


class EndpointError(AdrpoError):
    """An endpoint gives no answers: it is not there, refuses the key, or fails again and again."""


class RunFolderError(AdrpoError):
    """A run folder cannot be used as asked."""


class NonFiniteError(AdrpoError):
    """Too many updates in a row had a gradient that is not finite."""


class LimitReached(AdrpoError):
    """A limit of the section [limits] was crossed; the run stopped on purpose."""


class CheckpointError(AdrpoError):
    """A checkpoint cannot be written, is broken, or does not belong to this run."""


class DiskSpaceError(AdrpoError):
    """There is too little room, by the disk or by a quota."""


class ExportError(AdrpoError):
    """An export cannot be made, or did not pass its verification."""


class NodeError(AdrpoError):
    """A node is unfit or absent; the same job on other nodes would do."""


class TrialError(AdrpoError):
    """A trial did not come to its end: it was stopped, or needs more memory than there is."""


class StopRequested(Exception):
    """A signal asked every rank to stop, and all agreed at the same safe point.

    Not an error: it unwinds the loop. saveable: whether the state is that of an iteration's
    boundary and can be saved; otherwise the last commit stands.
    """

    def __init__(self, saveable: bool) -> None:
        super().__init__("stop requested")
        self.saveable = saveable


def exit_code(error: AdrpoError) -> int:
    """4: a node is unfit, others would do; 3: a limit of the config was reached; 2: anything else
    that a user can fix."""
    return 4 if isinstance(error, NodeError) else 3 if isinstance(error, LimitReached) else 2
