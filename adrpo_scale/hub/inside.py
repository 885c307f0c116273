"""Files that lie in a model's folder: what it names may lie elsewhere, and so may what its links
lead to. A copy of such a file would publish it, and a write to such a name would overwrite it.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.hub.needs import CONVERTED


def is_inside(name: str) -> bool:
    """True for the relative path of a file below a folder, in the notation of every system."""
    parts = PurePosixPath(name).parts
    is_below = bool(parts) and ".." not in parts and not PurePosixPath(name).is_absolute()
    return is_below and not any(letter in name for letter in "\\\0") and ":" not in parts[0]


def real_file(path: Path, folder: Path) -> Path:
    """The file that `path`, a path in `folder`, leads to. Raises ModelNotFoundError where that lies
    outside of the folder; the links of the hub's cache to its own contents are inside."""
    name = path.relative_to(folder).as_posix()
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a loop is a RuntimeError before Python 3.13
        raise ModelNotFoundError(
            f"{path} is a link that leads nowhere: bring the file itself"
        ) from error
    if not is_inside(name) or not any(found.is_relative_to(root) for root in _roots(folder)):
        raise ModelNotFoundError(
            f"{path} leads to {found}, outside of the model's folder, and would be taken along: "
            f"copy the file itself there (`cp --remove-destination {found} {path}`), or remove it"
        )
    return found


def _roots(folder: Path) -> list[Path]:
    """The folder, and where the hub's cache keeps the contents of its links."""
    real = folder.resolve()
    above = real.parent.parent
    if real.parent.name == "snapshots":
        return [real, above / "blobs"]
    if above.name == CONVERTED:  # of converted pickles: cache/adrpo_scale/NAME/COMMIT
        return [real, above.parent / f"models--{real.parent.name}" / "blobs"]
    return [real]
