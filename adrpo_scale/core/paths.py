"""The meaning of a path in a config.

`demo:image/prompts/train.jsonl` is a file of the assets that ship inside this package, wherever it
is installed; anything else is a path of the file system, relative to the current folder.
"""

from __future__ import annotations

import difflib
import errno
import os
from pathlib import Path

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.json_files import read_regular
from adrpo_scale.core.printable import shown

DEMO_PREFIX = "demo:"
ASSETS = Path(__file__).resolve().parents[1] / "demo" / "assets"
_LISTED = 40
_PIPES = ("/dev/fd/", "/proc/self/fd/")  # bash's <(...)


def resolve_path(name: str) -> Path:
    """The path that `name` stands for.

    A `demo:` name is a file or folder of the shipped assets. Raises ConfigError, which lists the
    assets, where there is no such asset. Any other name is returned as it is (`~` expanded) and
    need not exist: its reader reports a missing file with its own remedy.
    """
    if not name.startswith(DEMO_PREFIX):
        return usual_path(name)
    asset = name.removeprefix(DEMO_PREFIX)
    path = (ASSETS / asset).resolve()
    # "demo:../.." would otherwise read whatever lies beside the package.
    if asset and path.is_relative_to(ASSETS.resolve()) and path.exists():
        return path
    raise ConfigError(f"{name}: no such demo asset. {_known_assets(asset)}")


def usual_path(name: str | Path) -> Path:
    """The path of a name that somebody wrote, `~` expanded; it need not exist. Raises ConfigError
    where the system takes no such name, or does not let this user look."""
    path = os.path.expanduser(name)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a NUL
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{shown(path)} cannot be a path here ({why}): correct it") from error
    return Path(path)


def read_given(path: Path, most: int) -> bytes:
    """The bytes of a file that somebody named: a regular one, or a pipe of their shell's. Raises
    OSError for anything else, and for more than `most` bytes."""
    if not str(path).startswith(_PIPES):
        return read_regular(path, most)
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(path))
    return content


def _known_assets(asset: str) -> str:
    known = sorted(
        file.relative_to(ASSETS).as_posix() for file in ASSETS.rglob("*") if file.is_file()
    )
    if not known:
        return "This installation has no demo assets at all: install the package again."
    folders = sorted({name.partition("/")[0] for name in known if "/" in name})  # the models
    near = difflib.get_close_matches(asset, [*folders, *known], n=1)
    guess = f"Did you mean {DEMO_PREFIX}{near[0]}? " if near else ""
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"{guess}There are: " + ", ".join(DEMO_PREFIX + k for k in known[:_LISTED]) + more


def is_name(path: Path) -> bool:
    """Whether a file can have this name: no NUL, nothing that the filesystem cannot encode."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def make_output_folder(to: Path) -> None:
    """Makes the folder of a command's results, before its work begins. Raises ConfigError where
    that fails, or where nothing can be written into it."""
    try:
        to.mkdir(parents=True, exist_ok=True)
        fault = None if os.access(to, os.W_OK) else "Permission denied"
    except OSError as error:
        fault = error.strerror
    if fault is not None:
        raise ConfigError(f"--to {to}: no folder can be made ({fault}); choose another --to")
