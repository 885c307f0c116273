"""What a row of an evaluation is of: samples of other settings are refused, not mixed in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import AdrpoError, RunFolderError
from adrpo_scale.core.files import replace_json
from adrpo_scale.core.json_files import parse_object, read_object, read_regular
from adrpo_scale.core.settings import leaves
from adrpo_scale.data.prompt_sets import key_of, overlap, set_hash
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.evaluation.asked import AskedConfig
from adrpo_scale.evaluation.row_folder import CONFIG, IDENTITY, TRAINED
from adrpo_scale.evaluation.rows import Row
from adrpo_scale.evaluation.samples import NamedSet
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.prompt_sets import FILE
from adrpo_scale.run.starts import last_command

_LISTED = 6  # differences in an error


def identity_of(
    config: AskedConfig, sets: Sequence[NamedSet], row: Row, model: Mapping[str, Any]
) -> dict[str, Any]:
    """The document of a row's evaluation.json. model: identity of its maker."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(model)))
    document = config.resolved()
    return {
        "benchmark": document["benchmark"],
        "row": row.name,
        "run": row.of["run"],
        "algorithm": row.of["algorithm"],
        "seed": row.of["seed"],
        "published": row.is_published,
        "checkpoint": row.sha256,
        "model": plain,
        "sampling": document["sampling"],
        "prompt_sets": {
            one.name: {"prompts": len(one.prompts), "hash": set_hash([*map(key_of, one.prompts)])}
            for one in sets
        },
        "order": set_hash([f"{n} {key_of(p)}" for n, p in enumerate(_every(sets))]),
    }


def _every(sets: Sequence[NamedSet]) -> list[Any]:
    return [prompt for one in sets for prompt in one.prompts]


def refuse_another(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raises RunFolderError where the folder's samples are of anything else, with the differences.
    On rank 0 alone."""
    path = folder / IDENTITY
    try:
        known = parse_object(read_regular(path))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read ({error}): delete {folder}") from error
    if known == identity:
        return
    before, after = dict(leaves(known)), dict(leaves(dict(identity)))
    keys = [k for k in {**before, **after} if before.get(k) != after.get(k)]
    shown = [f"{key}: {before.get(key)!r} → {after.get(key)!r}" for key in keys[:_LISTED]]
    more = [f"and {len(keys) - _LISTED} more"] if len(keys) > _LISTED else []
    raise RunFolderError(
        f"{folder} has samples of another evaluation ({', '.join([*shown, *more])}): set another "
        "`to`, rename the model, or delete that folder"
    )


def begin_row(folder: Path, row: Row, identity: Mapping[str, Any], sets: Sequence[NamedSet]) -> str:
    """Writes the files that say what a row is of, where they are not there; returns what is known
    of its prompts and those that its run trained on, "" for a published model."""
    folder.mkdir(parents=True, exist_ok=True)
    for cut_short in folder.rglob("*.tmp"):  # what a kill has left of a file
        cut_short.unlink()
    if row.config is not None and not (folder / CONFIG).is_file():
        replace_json(folder / CONFIG, dict(row.config))
        command = last_command(Path(str(row.run).rpartition("@")[0]))
        if command is not None:
            replace_json(folder / TRAINED, {"command": command})
    text = ""
    if row.config is not None:
        text = _say_overlap(folder, row.config, sets)
    if not (folder / IDENTITY).is_file():
        replace_json(folder / IDENTITY, dict(identity))  # the last one: now it is a row
    return text


def _say_overlap(folder: Path, config: Mapping[str, Any], sets: Sequence[NamedSet]) -> str:
    """The overlap, which is measured once and kept for `report`."""
    tested = _every(sets)
    known = (read_object(folder / FILE) or {}).get("overlap")
    if isinstance(known, Mapping):
        return ""
    try:
        train, _ = build_prompts(parse_config(config).prompts)
    except AdrpoError as error:
        return f"whether they were trained on is not known: {str(error).partition(chr(10))[0]}"
    found = overlap(train, tested)
    hashes = {
        one.name: {"prompts": len(one.prompts), "hash": set_hash([*map(key_of, one.prompts)])}
        for one in sets
    }
    replace_json(folder / FILE, {**hashes, "overlap": found.as_json()})
    return str(found)
