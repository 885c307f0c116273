"""The names in a bundle, and the form of its paths and its MANIFEST."""

from __future__ import annotations

FORMAT = 1
ENDING = ".tar"
INDEX, MANIFEST, LOCK = "bundle.json", "MANIFEST", "locks/prefetch.lock"
MOST = 200_000  # files
LONGEST = 1024  # characters of a path


def lock_place(number: int) -> str:
    """`locks/prefetch.lock` of the first lock."""
    return LOCK if number == 0 else f"{LOCK}.{number}"


def path_fault(path: str) -> str | None:
    """Why no file of a bundle has this path; None where it may."""
    parts = path.split("/")
    if len(path) > LONGEST or len(parts) > 16 or any(len(part) > 255 for part in parts):
        return "is too long"
    if "" in parts or "." in parts or ".." in parts:
        return "leads out of its folder"
    if any(c == "\\" or not c.isprintable() for c in path):
        return "has a character that a bundle's paths have not"
    return None


def manifest_line(digest: str, size: int, path: str) -> str:
    return f"{digest} {size} {path}\n"
