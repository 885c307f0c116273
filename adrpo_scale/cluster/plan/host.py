"""Host memory of a node, beside what its processes take by themselves.

Counted is what grows with the run: the text encoders while prompts are embedded (one rank's at
least: more ranks of a node embed only where its memory takes them, `domains.embedding_ranks`), the
copies from which checkpoints are written in the background, what an engine keeps in host memory,
and the latents of given pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adrpo_scale.core.disk_space import size_text
from adrpo_scale.domains.given_pictures import KEPT, GivenPictures
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.run.given_pairs import has_given_pairs
from adrpo_scale.run.registry import DOMAINS

_FLOAT32 = 4
ENCODERS = "text encoders of one rank"


@dataclass(frozen=True)
class HostItem:
    """Host memory of a node for one purpose. phase: while the run loads, or from then on. remedy:
    what lowers it."""

    name: str
    bytes: int
    phase: Literal["load", "train"]
    remedy: str


def host_items(
    config: Any, ranks: tuple[int, int], encoders: int, trained: int, elements: int = 0
) -> list[HostItem]:
    """The items of a run. ranks: (of all nodes, of one). encoders: bytes of the text encoders; 0
    where every prompt is embedded already. trained, elements: numbers of trained parameters and of
    all of the policy. Every parameter's state lies in one copy over all ranks."""
    world, per_node = ranks
    here = per_node / world
    sets = 3 + (config.ema_decay is not None) + config.reference.moves  # weights, two moments
    offload = {name: getattr(config.engine, f"offload_{name}", False) for name in _OFFLOADS}
    width = DTYPES[config.engine.dtype].itemsize
    found = [
        HostItem(ENCODERS, encoders, "load", _EMBED),
        HostItem(
            "copies for checkpoints in the background",
            int(config.checkpoint.background * sets * _FLOAT32 * trained * here),
            "train",
            "set checkpoint.background = false, which makes training wait for each save",
        ),
        HostItem(
            "optimizer: gradients, masters, moments",
            int(offload["optimizer"] * 4 * _FLOAT32 * trained * here),
            "train",
            "set engine.offload_optimizer = false, or take more nodes",
        ),
        HostItem(
            "shards of parameters",
            int(offload["parameters"] * width * elements * here),
            "train",
            "set engine.offload_parameters = false, or take more nodes",
        ),
        HostItem(
            "latents of given pictures, at most",
            _latents(config, per_node),
            "train",
            "start fewer processes on a node",
        ),
    ]
    return [item for item in found if item.bytes > 0]


_OFFLOADS = ("optimizer", "parameters")
_EMBED = (
    "ask for more memory (#SBATCH --mem=0), or start the run once on a node with more: the cache "
    "($ADRPO_CACHE) keeps the embeddings; domain.t5 = false trains without the largest encoder"
)


def _latents(config: Any, per_node: int) -> int:
    takes_pictures = issubclass(DOMAINS[config.domain.name], GivenPictures)
    return KEPT * per_node if takes_pictures and has_given_pairs(config) else 0


def peak_of(items: Sequence[HostItem]) -> int:
    """The larger of what a node takes while the run loads and from then on, in bytes."""
    return max(sum(item.bytes for item in items if item.phase == phase) for phase in _PHASES)


def host_line(items: Sequence[HostItem]) -> str:
    """What `plan` says: "11.4 GB while the run loads (...), 0.9 GB in training (...)"."""
    return ", ".join(_phase_text(items, phase) for phase in _PHASES)


_PHASES: tuple[Literal["load", "train"], ...] = ("load", "train")


def _phase_text(items: Sequence[HostItem], phase: str) -> str:
    here = [item for item in items if item.phase == phase]
    when = {"load": "while the run loads", "train": "in training"}[phase]
    named = f" ({', '.join(item.name for item in here)})" if here else ""
    return f"{size_text(sum(item.bytes for item in here))} {when}{named}"
