"""Operations of an update's pass with and without shared prompts: counted, nothing is computed.

    python -m benchmarks.shared_prefix [--json FILE]

Forward and backward of one micro-batch on tensors without storage, by torch's counter of operations
(matrix products and attention; attention counts every pair of a line and a column, masked or not).
Completions have lengths spread evenly from a quarter of `max_new_tokens` to all of it; `groups`
says how many different prompts the rows have. Which rows meet in a micro-batch is a matter of
`prompts.group_size`, `optimizer.micro_batch` and the number of GPUs: with 80, a rank often has no
two rows of one prompt.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from adrpo_scale.core.markdown import table
from adrpo_scale.core.types import Rows
from adrpo_scale.domains.completions import Packed, packed
from adrpo_scale.domains.logprobs import Targets
from adrpo_scale.domains.shared_prefix import shared
from adrpo_scale.engines.spec import ModelSpec


@dataclass(frozen=True)
class Case:
    """rows: of the micro-batch, of `groups` prompts of `prompt` tokens each."""

    config: str
    prompt: int
    rows: int
    groups: int


CASES = (
    Case("configs/demo/text_rm_grpo.toml", 16, 16, 2),
    Case("configs/demo/text_rm_grpo.toml", 16, 16, 8),
    Case("configs/qwen/qwen3_0.6b_adrpo.toml", 256, 4, 1),
    Case("configs/qwen/qwen3_0.6b_adrpo.toml", 256, 8, 1),
    Case("configs/qwen/qwen3_0.6b_adrpo.toml", 1024, 4, 1),
    Case("configs/qwen/qwen3_0.6b_adrpo.toml", 1024, 8, 1),
    Case("configs/qwen/qwen3_0.6b_adrpo.toml", 1024, 8, 8),
    Case("configs/omni/avqa_adrpo.toml", 350, 2, 1),
    Case("configs/omni/avqa_adrpo.toml", 350, 4, 1),
    Case("configs/omni/avqa_adrpo.toml", 350, 8, 1),
    Case("configs/omni/avqa_adrpo.toml", 350, 8, 8),
)


def rows_of(case: Case, most: int) -> Rows:
    lengths = torch.linspace(most / 4, most, case.rows).round().long()
    order = torch.randperm(case.rows, generator=torch.Generator().manual_seed(0))
    prompt_ids = torch.arange(case.rows) * case.groups // case.rows
    tensors = {
        "lengths": lengths[order],
        "completion": torch.zeros(case.rows, most, dtype=torch.int64),
    }
    return Rows(torch.arange(case.rows), prompt_ids, tensors)


def operations(spec: ModelSpec, made: Packed, temperature: float) -> int:
    """Of a forward and a backward, on tensors without storage."""
    with FakeTensorMode() as mode:
        model: Any = spec.build()
        inputs = {name: mode.from_tensor(value) for name, value in made.inputs.items()}
        places = [mode.from_tensor(t) for t in (made.row_K, made.before_K, made.tokens_K)]
        targets, ids = Targets(*places, temperature, 256), mode.from_tensor(made.ids_GT)
        with FlopCounterMode(display=False) as counter:
            logp, entropy = model(input_ids=ids, targets=targets, **inputs)
            (logp.sum() + entropy.sum()).backward()
    return int(counter.get_total_flops())


def measured(case: Case) -> dict[str, Any]:
    from adrpo_scale.run.load import load_config
    from adrpo_scale.run.registry import DOMAINS

    config = load_config(Path(case.config)).config.domain
    spec = DOMAINS[config.name].workload(config, torch.bfloat16).spec
    with FakeTensorMode():
        hidden = spec.build().config.get_text_config().hidden_size
    rows = rows_of(case, config.rollout.max_new_tokens)
    prompts = [[1] * case.prompt] * case.rows
    passes = (packed(prompts, rows, 0), shared(prompts, rows, 0, hidden))
    plain, ours = (operations(spec, made, config.rollout.temperature) for made in passes)
    shapes = ["×".join(map(str, made.ids_GT.shape)) for made in passes]
    return {
        **asdict(case),
        "max_new_tokens": config.rollout.max_new_tokens,
        "plain_shape": shapes[0],
        "shared_shape": shapes[1],
        "plain_operations": plain,
        "shared_operations": ours,
        "ratio": ours / plain,
    }


HEAD = ("config", "prompt", "rows", "prompts among them", "plain", "shared", "operations", "ratio")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    found = [measured(case) for case in CASES]
    lines = [[*HEAD]]
    for one in found:
        name = Path(one["config"]).stem
        lines.append(
            [
                *(name, str(one["prompt"]), str(one["rows"]), str(one["groups"])),
                *(one["plain_shape"], one["shared_shape"]),
                f"{one['plain_operations']:.3g} → {one['shared_operations']:.3g}",
                f"{one['ratio']:.2f}",
            ]
        )
    print(table(lines))
    if arguments.json:
        arguments.json.write_text(json.dumps({"torch": torch.__version__, "cases": found}) + "\n")


if __name__ == "__main__":
    main()
