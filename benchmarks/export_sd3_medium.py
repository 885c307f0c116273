"""Exports of an SD3-medium-shaped pipeline: peak resident memory, and time against a plain copy.

    python -m benchmarks.export_sd3_medium [--rounds 3] [--folder /tmp] [--outputs]

Writes a pipeline folder whose transformer has Stable Diffusion 3 medium's shape (2.09 B parameters,
bfloat16, random), and two synthetic checkpoints in this package's format: LoRA of rank 32, and all
parameters. Then export and copy alternate, `--rounds` times. The export runs without verification,
in a separate process whose peak resident memory is measured. The plain copy reads and writes as
many bytes as the export wrote, in pieces of 8 MB, and ends with fsync. Both inputs are in the page
cache if they fit. `seconds` covers reading, merging, hashing, writing and fsync; the process also
imports the libraries and hashes the checkpoint.

--outputs also runs the two verifications once each: `tensors`, and `outputs`, which holds the
model in float32 (9 GB). Prints JSON; `--to FILE.json` writes it, and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from adrpo_scale import __version__
from adrpo_scale.checkpoint.base import (
    MANIFEST,
    Manifest,
    Piece,
    StoredTensor,
    folder_name,
    key_of,
)
from adrpo_scale.core.tensor_files import TensorFileWriter, TensorHeader
from adrpo_scale.domains.flow import ATTENTION
from adrpo_scale.engines.adapters import add_adapters
from adrpo_scale.engines.spec import LoraConfig
from adrpo_scale.hub.weights import SafetensorsFolder
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import load_config
from benchmarks.sd3_medium import MEDIUM, write_pipeline

STEM = "diffusion_pytorch_model"
KINDS = {"adapter": "lora", "merged": "lora", "full": "full"}
SHARD = 5 * 10**9
CHUNK = 8 << 20


def write_base(folder: Path, layers: int) -> list[TensorHeader]:
    """Writes a pipeline folder, its transformer tensor by tensor; returns the transformer's
    headers."""
    write_pipeline(folder, 1, (128, 256, 512, 512))
    for file in (folder / "transformer").glob(f"{STEM}*"):
        file.unlink()
    with torch.device("meta"):
        model = SD3Transformer2DModel(**MEDIUM | {"num_layers": layers})
    model.save_config(folder / "transformer")
    headers = [
        TensorHeader(name, torch.bfloat16, tuple(tensor.shape))
        for name, tensor in sorted(model.state_dict().items())
    ]
    path = folder / "transformer" / f"{STEM}.safetensors"
    with TensorFileWriter(path, headers, {"format": "pt"}) as file:
        for number, header in enumerate(headers):
            file.write(values(header.shape, number).to(header.dtype))
        file.finish()
    return headers


def values(shape: tuple[int, ...], number: int) -> torch.Tensor:
    """Random float32 values of the magnitude of trained weights."""
    generator = torch.Generator().manual_seed(number)
    if not shape:
        return torch.ones(())
    scale = 1.0 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
    return torch.empty(shape).normal_(0, 0.5 * scale, generator=generator)


def adapter_shapes(layers: int, lora: LoraConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = SD3Transformer2DModel(**MEDIUM | {"num_layers": layers})
    add_adapters(model, lora, ATTENTION)
    return {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}


def parameter_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = SD3Transformer2DModel(**MEDIUM | {"num_layers": layers})
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def write_checkpoint(
    run: Path, config: RunConfig, shapes: dict[str, tuple[int, ...]], base: SafetensorsFolder
) -> None:
    """Writes a committed checkpoint of one rank: weights near the base's, or random adapters."""
    folder = run / "checkpoints" / folder_name(1)
    folder.mkdir(parents=True)
    pieces = {n: Piece(0, math.prod(s), "rank-000.safetensors") for n, s in shapes.items()}
    headers = [
        TensorHeader(key_of("policy", n, p), torch.float32, (p.stop,)) for n, p in pieces.items()
    ]
    with TensorFileWriter(folder / "rank-000.safetensors", headers) as file:
        for number, (name, shape) in enumerate(shapes.items()):
            tensor = values(shape, 10_000 + number)
            if ".lora_B." in name:
                tensor *= 0.05
            elif ".lora_A." not in name:
                tensor = base.read(name).float().add_(tensor, alpha=0.01)
                base.close()
            file.write(tensor.flatten())
        facts = file.finish()
    lora = config.domain.lora
    document: dict[str, Any] = {
        "run": run.name,
        "identity": config.digest(),
        "package": __version__,
        "world_size": 1,
        "config": config.resolved(),
        "base": {"model": config.domain.model, "revision": None, "sha256": base.sha256()},
        "lora": lora and {"rank": lora.rank, "alpha": lora.alpha},
        "prompts": "",
        "origin": None,
        "counters": {"iteration": 1, "cursor": 0, "step": 1},
        "rewards": {},
        "optimizer_steps": {},
    }
    stored = {name: StoredTensor(shape, (pieces[name],)) for name, shape in shapes.items()}
    manifest = Manifest("weights", 1, (facts,), {"policy": stored}, document)
    (folder / MANIFEST).write_text(manifest.to_text())


CHILD = """
import json, resource, sys, time
from pathlib import Path

from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export

start = time.perf_counter()
done = export(sys.argv[1], Request(Path(sys.argv[2]), sys.argv[3], verify=sys.argv[4], link=True))
# Not ru_maxrss, which includes the memory of the parent before exec.
status = Path("/proc/self/status").read_text()
own = int(status.split("VmHWM:")[1].split()[0])
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({
    "bytes": done.written.bytes,
    "seconds": done.seconds_conversion,
    "seconds_verification": done.seconds_verification,
    "seconds_with_checks": time.perf_counter() - start,
    "peak_gb": own * 1024 / 1e9,
    "peak_gb_of_the_loading_process": child * 1024 / 1e9,
    "figures": dict(done.verdict.figures) if done.verdict else None,
}))
"""


def run_export(run: Path, to: Path, kind: str, verify: str) -> dict[str, Any]:
    """Time, bytes and peak memory of an export in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, run, to, kind, verify],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def plain_copy(source: Path, to: Path, size: int) -> float:
    """Seconds to copy `size` bytes; a shorter source is read again from its start."""
    start, left = time.perf_counter(), size
    with open(to, "wb", buffering=0) as target:
        while left:
            with open(source, "rb", buffering=0) as file:
                while left and (data := file.read(min(CHUNK, left))):
                    target.write(data)
                    left -= len(data)
        os.fsync(target.fileno())
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    os.environ["ADRPO_CACHE"] = str(folder / "cache")
    headers = write_base(folder / "base", arguments.layers)
    base = SafetensorsFolder(folder / "base" / "transformer", STEM)
    weights = folder / "base" / "transformer" / f"{STEM}.safetensors"
    shared = [f"domain.model={folder / 'base'}", "ema_decay=null", "evaluation.weights=raw"]
    toml = Path("configs/sd3/adrpo.toml")
    lora = load_config(toml, shared).config
    full = load_config(toml, [*shared, "domain.train=full", "domain.lora=null"]).config
    adapters = adapter_shapes(arguments.layers, lora.domain.lora)
    write_checkpoint(folder / "lora", lora, adapters, base)
    write_checkpoint(folder / "full", full, parameter_shapes(arguments.layers), base)
    results = {kind: list(rounds(arguments, folder, kind, weights)) for kind in KINDS}
    answer = {
        "command": shlex.join(["python", "-m", "benchmarks.export_sd3_medium", *sys.argv[1:]]),
        "machine": arguments.machine,
        "torch": torch.__version__,
        "parameters": sum(math.prod(header.shape) for header in headers),
        "transformer_bytes": sum(header.bytes for header in headers),
        "exports": {kind: summary(found) for kind, found in results.items()},
    }
    if arguments.outputs:
        levels = ("tensors", "outputs")
        answer["verification"] = {
            kind: {level: verified(folder, kind, level) for level in levels} for kind in KINDS
        }
    return answer


def rounds(
    arguments: argparse.Namespace, folder: Path, kind: str, weights: Path
) -> Iterator[dict[str, Any]]:
    """Figures of alternating export and copy; the first round, a warm-up, is dropped."""
    for number in range(arguments.rounds + 1):
        to, copy = folder / "export", folder / "copy"
        found = run_export(folder / KINDS[kind], to, kind, "none")
        subprocess.run(["rm", "-r", to], check=True)
        found["seconds_copy"] = plain_copy(weights, copy, found["bytes"])
        copy.unlink()
        if number:
            print(f"{kind} {number}: {found}", file=sys.stderr)
            yield found


def verified(folder: Path, kind: str, level: str) -> dict[str, Any]:
    found = run_export(folder / KINDS[kind], folder / "export", kind, level)
    subprocess.run(["rm", "-r", folder / "export"], check=True)
    print(f"{kind} {level}: {found}", file=sys.stderr)
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = sorted(one["seconds"] / one["seconds_copy"] for one in found)
    return {
        "bytes": found[0]["bytes"],
        "peak_gb": max(one["peak_gb"] for one in found),
        "seconds": statistics.median(one["seconds"] for one in found),
        "seconds_copy": statistics.median(one["seconds_copy"] for one in found),
        "ratio_median": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "seconds_with_checks": statistics.median(one["seconds_with_checks"] for one in found),
        "rounds": len(found),
    }


def table(answer: dict[str, Any]) -> str:
    lines = [
        f"Transformer of {answer['parameters']:,} parameters in bfloat16, "
        f"{answer['machine']}; `{answer['command']}`.",
        "",
        "| export | GB written | peak memory, GB | seconds | plain copy, s | ratio (range) |",
        "|---|---|---|---|---|---|",
    ]
    for kind, one in answer["exports"].items():
        lines.append(
            f"| {kind} | {one['bytes'] / 1e9:.2f} | {one['peak_gb']:.2f} | {one['seconds']:.1f} | "
            f"{one['seconds_copy']:.1f} | {one['ratio_median']:.2f} "
            f"({one['ratio_min']:.2f}–{one['ratio_max']:.2f}) |"
        )
    if "verification" in answer:
        lines += [
            "",
            "| verification | level | seconds | peak here, GB | peak of the loading process, GB |",
            "|---|---|---|---|---|",
        ]
        for kind, levels in answer["verification"].items():
            for level, one in levels.items():
                lines.append(
                    f"| {kind} | {level} | {one['seconds_verification']:.0f} | "
                    f"{one['peak_gb']:.2f} | {one['peak_gb_of_the_loading_process']:.2f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=24, help="fewer for a dry run")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--outputs", action="store_true")
    parser.add_argument("--machine", default="2 x86-64 cores, no GPU")
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        answer = measure(arguments, Path(name))
    print(json.dumps(answer, indent=2))
    if arguments.to:
        arguments.to.write_text(json.dumps(answer, indent=2) + "\n")
        arguments.to.with_suffix(".md").write_text(table(answer))


if __name__ == "__main__":
    main()
