"""Names of weights: one rule for `sample`, `export`, `evaluate` and `report`.

RUN          the newest weights, and of them those that the run's evaluation measures
RUN@120      those after iteration 120
RUN@last     the newest, as RUN; `report` takes the last evaluation alone
RUN@best     those with the best evaluation, by checkpoint.best_metric, best_split and best_mode
RUN@*        one after the other, where a command takes several

`--weights` chooses between the trained weights and their moving average (EMA). By default it is
what `evaluation.weights` of the run says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.retention import values_of
from adrpo_scale.core.errors import CheckpointError, ConfigError
from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.numbers import natural
from adrpo_scale.core.paths import usual_path
from adrpo_scale.core.run_rows import EVALUATIONS, evaluation_rows

EVALUATED, RAW, EMA = "evaluated", "raw", "ema"
WEIGHTS = (EVALUATED, RAW, EMA)
_OLD = {"trained": RAW}  # the word that `sample --weights` had
LAST, BEST, EVERY = "last", "best", "*"
_SETS = {RAW: "policy", EMA: "ema"}
_RANKING = ("best_metric", "best_split", "best_mode")


@dataclass(frozen=True)
class Named:
    """A name taken apart. which: an iteration, LAST, BEST, EVERY, or None where nothing is said."""

    folder: Path
    which: int | str | None = None


def named(name: str) -> Named:
    """The folder and the `@…` of a name. A folder that exists under the whole name is taken as it
    is. Raises CheckpointError for an `@` with anything else behind it."""
    folder = usual_path(name)
    if folder.exists() or "@" not in name:
        return Named(folder)
    before, _, after = name.rpartition("@")
    which = after if after in (LAST, BEST, EVERY) else natural(after)
    if which is None:
        raise CheckpointError(
            f"{name!r}: expected RUN@iteration, e.g. runs/mine@120, RUN@last, RUN@best or RUN@*"
        )
    return Named(usual_path(before), which)


def best_iteration(run: Path) -> int:
    """The iteration after which the run's best evaluation was; of equal ones the last. Iteration 0
    is the base model and does not count. Raises CheckpointError without such an evaluation."""
    stated: Any = (read_object(run / "config.json") or {}).get("checkpoint")
    own = stated if isinstance(stated, Mapping) else {}
    config = CheckpointConfig.model_validate({k: own[k] for k in _RANKING if k in own})
    rows = evaluation_rows(run / EVALUATIONS)
    values = values_of(rows, config.best_metric, config.best_split)
    trained = {iteration: value for iteration, value in values.items() if iteration > 0}
    if not trained:
        pairs = {f"{row['metric']} on {row['split']}" for row in rows if row["iteration"] > 0}
        raise CheckpointError(
            f"{run}@best: the run has no evaluation of {config.best_metric} on {config.best_split} "
            f"after training began (it has {', '.join(sorted(pairs)) or 'none'}): name an iteration"
        )
    sign = -1.0 if config.best_mode == "max" else 1.0
    return min(trained, key=lambda iteration: (sign * trained[iteration], -iteration))


def parse_weights(text: str) -> str:
    """A word of WEIGHTS. Raises ConfigError for another one."""
    word = _OLD.get(text, text)
    if word not in WEIGHTS:
        raise ConfigError(f"--weights {text!r}: expected one of {', '.join(WEIGHTS)}")
    return word


def weights_of(reader: Reader, wanted: str) -> str:
    """RAW or EMA: which weights of a checkpoint `wanted`, a word of WEIGHTS, means. Raises
    CheckpointError for an average where there is none."""
    wanted, has_average = parse_weights(wanted), "ema" in reader.manifest.sets
    if wanted == EMA and not has_average:
        raise CheckpointError(
            f"--weights ema, but {reader.folder} has no moving average, because its run had no "
            "ema_decay: leave --weights out"
        )
    if wanted != EVALUATED:
        return wanted
    section = reader.manifest.document["config"].get("evaluation") or {}
    measured = section.get("weights", RAW)
    return EMA if measured == EMA and has_average else RAW


def set_of(reader: Reader, wanted: str) -> str:
    """The set of a checkpoint, `policy` or `ema`, that holds the weights of `weights_of`."""
    return _SETS[weights_of(reader, wanted)]


def stated_weights(reader: Reader, wanted: str) -> str:
    """The weights that `wanted` means, in words: "the trained weights of iteration 120"."""
    which = {RAW: "the trained weights", EMA: "the moving average (EMA) of the weights"}
    return f"{which[weights_of(reader, wanted)]} of iteration {reader.iteration}"
