"""Room on the disk: the checkpoints of a run, from the number of its trained elements."""

from __future__ import annotations

from adrpo_scale.run.config import RunConfig

_FLOAT32 = 4  # bytes


def checkpoints_bytes(config: RunConfig, trained: int) -> int:
    """Bytes of all checkpoints and trajectory weights that a run keeps, and of one being written.
    trained: elements. Weights, two moments and, where there are any, averages are in float32."""
    weights, saving = _FLOAT32 * trained, config.checkpoint
    sets = 3 + (config.ema_decay is not None) + config.reference.moves
    kept = saving.keep_last + saving.keep_best + 1
    kept += config.iterations // saving.keep_every if saving.keep_every else 0
    way = config.iterations // saving.keep_trajectory if saving.keep_trajectory else 0
    return weights * (sets * min(kept, config.iterations + 1) + way)
