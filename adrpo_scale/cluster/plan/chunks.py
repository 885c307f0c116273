"""The largest `domain.rollout_chunk` that fits: the number behind "auto", and what `plan` advises.

A chunk holds whole groups, so that the samples of a prompt share its prefill, or a divisor of one,
or all samples of a rank. It fits where rollouts, rewards and evaluations do.
"""

from __future__ import annotations

from adrpo_scale.cluster.plan import memory
from adrpo_scale.cluster.plan.base import Hardware
from adrpo_scale.cluster.plan.dealing import evaluation_load, load_of
from adrpo_scale.cluster.plan.hardware import CPU
from adrpo_scale.cluster.plan.memory import Models
from adrpo_scale.domains.base import AUTO, CHUNK
from adrpo_scale.engines.planning import Phase
from adrpo_scale.engines.workload import Workload
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.rollout_chunk import with_number

PHASES: tuple[Phase, ...] = ("rollout", "reward", "evaluation")


def sizes(samples: int, group: int) -> list[int]:
    """Chunks of a rank with `samples` samples, ascending: divisors of a group, whole groups, and
    all of them, which no chunk splits."""
    parts = [n for n in range(1, group) if group % n == 0]
    whole = range(group, samples, group)
    return [*(n for n in (*parts, *whole) if n < samples), samples]


def largest_chunk(
    config: RunConfig, hardware: Hardware, work: Workload, what: Models
) -> int | None:
    """The largest chunk that fits, at most the samples of a rank in a rollout or an evaluation;
    None where not even one sample fits."""
    samples = load_of(config, hardware).samples
    if config.evaluation.every:
        samples = max(samples, evaluation_load(config, hardware).samples)
    known = sizes(samples, config.prompts.group_size)

    def fits(number: int) -> bool:
        changed = with_number(config, number)
        peaks = memory.peaks(
            memory.between_updates(changed, hardware, work, load_of(changed, hardware), what),
            changed,
            work,
        )
        room = memory.usable(hardware)
        return all(peak.bytes <= room for peak in peaks if peak.phase in PHASES)

    if fits(known[-1]):
        return known[-1]
    fitting, failing = -1, len(known) - 1  # places in `known`; each rehearsal takes seconds
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        if fits(known[middle]):
            fitting = middle
        else:
            failing = middle
    return known[fitting] if fitting >= 0 else None


def in_force(
    config: RunConfig, hardware: Hardware, work: Workload, what: Models
) -> tuple[RunConfig, int | None]:
    """(the config with the number that a run on these machines would choose in place of "auto",
    the largest chunk that fits). On CPUs a run chooses CHUNK."""
    largest = largest_chunk(config, hardware, work, what)
    if config.domain.rollout_chunk != AUTO:
        return config, largest
    is_known = largest is not None and hardware.gpu.name != CPU
    return with_number(config, largest if is_known and largest is not None else CHUNK), largest
