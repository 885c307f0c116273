"""The data of the training loop: frozen dataclasses without behaviour beyond look-ups.

Legend of shape suffixes, used everywhere:

    P  prompts of one iteration          N  rows (samples) held by this rank, or of a micro-batch
    G  samples per prompt (a group)      K  completion tokens of all rows of a micro-batch, packed
    S  = P*G, samples of one iteration   R  reward functions

Sample `s` of an iteration belongs to the prompt at place `s // G` of that iteration and is member
`s % G` of its group. Ids are int64 wherever they travel: never hashes, never floats.

Worked example, P = 2 prompts with G = 3 samples on 2 ranks:

    rank 0 rolls out   sample_ids_N = [0, 1, 2]   prompt_ids_N = [17, 17, 17]
    rank 1 rolls out   sample_ids_N = [3, 4, 5]   prompt_ids_N = [4, 4, 4]
    every rank sees    Rewards.total_PG  = [[.1, .5, .3], [.2, .2, .2]]
                       Credit.advantage  = [-.2, .2, 0, 0, 0, 0]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One prompt of a prompt file.

    id: its place in the file (int64). text: the model's input. metadata: the other fields of the
    file's row (GenEval's `include`, DrawBench's category, a reference answer, ...). messages: a
    conversation of several turns, `{"role": ..., "content": ...}` each, which `text` then only
    shows; where it is empty, `text` is one message of the user. derived: keys of the metadata that
    were made from others of the row. place: the file and line that it was read from, for messages.
    """

    id: int
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()
    derived: tuple[str, ...] = ()
    place: str = field(default="", compare=False)

    @property
    def conversation(self) -> list[dict[str, Any]]:
        """The messages for a chat model."""
        return [dict(m) for m in self.messages] or [{"role": "user", "content": self.text}]


@dataclass(frozen=True)
class Completion:
    """One completion of a language model: the artifact of the text domain.

    text: decoded with special tokens shown, without the end token. tokens: the token ids. finished:
    False where it was cut off at the length limit.
    """

    text: str
    tokens: Sequence[int] = ()
    finished: bool = True

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class DrawKey:
    """The key of a pass's random numbers; with a sample id it names one draw (see `seeding`).

    update: index of the optimizer step inside the iteration; draw: index of the (t, x0) draw.
    """

    seed: int
    iteration: int
    update: int = 0
    draw: int = 0


@dataclass(frozen=True)
class Rows:
    """N samples as a struct of arrays, on one rank.

    sample_ids_N, prompt_ids_N: int64 [N] on the CPU. tensors: of the domain, dim 0 = N (flow:
    `x1` [N, C, H, W]; tokens: prompt and completion ids), on the compute device.
    """

    sample_ids_N: Tensor
    prompt_ids_N: Tensor
    tensors: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.sample_ids_N)

    def take(self, index: Tensor | slice) -> Rows:
        """The rows at `index` (int64 [M] on the CPU, or a slice), in that order."""
        return Rows(
            self.sample_ids_N[index],
            self.prompt_ids_N[index],
            {
                name: tensor[index if isinstance(index, slice) else index.to(tensor.device)]
                for name, tensor in self.tensors.items()
            },
        )


@dataclass(frozen=True)
class Rewards:
    """Rewards of all samples of one iteration, the same on every rank.

    per_reward_RPG: float64 [R, P, G], one plane per reward function in config order.
    weights_R: float64 [R]. total_PG: float64 [P, G], the weighted sum.
    abstained_RPG: bool [R, P, G], True where a reward gave none: the weighted sum leaves it out;
    None: nowhere. mask_PG: bool [P, G], False where a reward raised or was not finite, and where
    all abstained: such a sample counts nowhere. kept_PG: bool [P, G], False where the domain keeps
    a sample out of the loss (a truncated completion) while its reward counts; None keeps all.
    prompt_ids_P: int64 [P]. gates_RPG: float64, a plane for each of `gate_names`, rewards outside
    the sum that the regulariser's gate compares it with; NaN where one gave none. info: means of
    what rewards gave beside their numbers, by name.
    """

    names: Sequence[str]
    weights_R: Tensor
    per_reward_RPG: Tensor
    total_PG: Tensor
    mask_PG: Tensor
    prompt_ids_P: Tensor
    kept_PG: Tensor | None = None
    abstained_RPG: Tensor | None = None
    gate_names: Sequence[str] = ()
    gates_RPG: Tensor | None = None
    info: Mapping[str, float] = field(default_factory=dict)

    @property
    def unscored_PG(self) -> Tensor:
        """bool [P, G]: samples for which every reward abstained."""
        if self.abstained_RPG is None:
            return torch.zeros_like(self.mask_PG)
        return self.abstained_RPG.all(0)

    @property
    def included_PG(self) -> Tensor:
        """bool [P, G]: samples that are trained on."""
        return self.mask_PG if self.kept_PG is None else self.mask_PG & self.kept_PG


@dataclass(frozen=True)
class Credit:
    """An algorithm's decision about S samples (or, after `take`, about N rows); all [S].

    advantage: A, the signed weight of the sample (float64). advantage_clipped: A_clip. beta: the
    weight of the divergence from the reference (beta0 - A_clip for ADRPO). pair_id: int64, equal
    for the winner and the loser of a pair, -1 elsewhere. include: float64, 1 or 0; a row with 0
    (masked, or filler that keeps ranks in step) adds nothing to the loss.
    """

    advantage: Tensor
    advantage_clipped: Tensor
    beta: Tensor
    pair_id: Tensor
    include: Tensor

    def take(self, index: Tensor) -> Credit:
        """Credit of the samples at `index` (int64 [M])."""
        return Credit(
            self.advantage[index],
            self.advantage_clipped[index],
            self.beta[index],
            self.pair_id[index],
            self.include[index],
        )


@dataclass(frozen=True)
class FlatRange:
    """The place of one rank's slice in a whole tensor, flattened in row-major order.

    shape: of the whole tensor. [start, stop): elements of this rank's slice; may be empty.
    replicas: number of ranks that hold the same slice; replica: the index of this one among them.
    """

    shape: tuple[int, ...]
    start: int
    stop: int
    replica: int = 0
    replicas: int = 1
