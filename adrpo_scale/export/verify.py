"""Verification of an export: another process loads it with the libraries of a user.

outputs   `load_check.py` loads the export with diffusers or transformers (and peft) and runs it in
          float32 on fixed inputs. Its outputs must equal those of the policy, which is rebuilt here
          from the checkpoint; a language model must also generate the policy's greedy tokens.
tensors   `load_check.py` compares names, shapes, types and hashes; `values` compares every value
          with a separate merge in float64. For machines that cannot hold the model.

In both cases parts that are copied from the base must equal the base's byte for byte.

The policy is rebuilt as in training, adapters beside the base weights; peft then merges them for a
merged export, and the weights are rounded to the export's types. None of the code that wrote the
export takes part.

Tolerance, as a share of the outputs' root mean square: 1e-5 in float32, where both sides differ
only in the order of sums (measured: 1e-6 between one and two threads, and between merged and
unmerged, on the demo and at 2 B parameters); 1e-4 in lower types, where a weight half-way between
two values may be rounded either way.
"""

from __future__ import annotations

import filecmp
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adrpo_scale.core.errors import ExportError
from adrpo_scale.engines.adapters import add_adapters, is_adapter, original_name
from adrpo_scale.export.base import Material, Request, Written
from adrpo_scale.export.layouts import layout_of
from adrpo_scale.export.stored import check_copied
from adrpo_scale.export.values import compare_values
from adrpo_scale.hub.weights import check_coverage

SCRIPT = Path(__file__).with_name("load_check.py")
TOLERANCE, LOW_TOLERANCE = 1e-5, 1e-4
ALONE = "tensors alone"  # a way of loading, of `load_check.py`
MOVED = "training moved outputs by"
LOST = "share of that lost to rounding"
LOST_LIMIT = 0.2
HELD = 16  # tensors read before mapped files are closed: their pages count as memory
LOST_WARNING = (
    "rounding to this type loses a share of {:.2g} of the change that training made to the "
    "outputs; --dtype float32 keeps all of it"
)


@dataclass(frozen=True)
class Verdict:
    """The result of a verification. figures: comparison → its error, or a count."""

    level: str
    figures: Mapping[str, float]
    versions: Mapping[str, str]
    warning: str | None = None


def verify(material: Material, request: Request, written: Written, folder: Path) -> Verdict:
    """Verifies the export in `folder`. Raises ExportError, with figures, where it is not the
    policy."""
    if request.verify == "outputs":
        return _verify_outputs(material, request, written, folder)
    answer = _run_check(material, request, written, folder)
    off = compare_values(material, request, written, folder)
    material.close()
    figures = {"tensors compared": answer["tensors"], "largest error / rounding": off}
    figures |= _check_taken_over(material, request, written, folder)
    return Verdict("tensors", figures, answer["versions"])


def _verify_outputs(
    material: Material, request: Request, written: Written, folder: Path
) -> Verdict:
    with tempfile.TemporaryDirectory() as place:
        outputs = Path(place, "outputs.safetensors")
        answer = _run_check(material, request, written, folder, outputs)
        found = load_file(outputs)
    expected = expected_outputs(material, request, answer)
    tolerance = LOW_TOLERANCE if _is_low(material, request) else TOLERANCE
    figures = {f"{how}: off by": distance(out, expected.of(how)) for how, out in found.items()}
    figures |= expected.further
    wrong = {how: off for how, off in figures.items() if not off <= tolerance}
    if wrong:
        listed = ", ".join(f"{how} {off:.2g}" for how, off in wrong.items())
        raise ExportError(
            f"the export, loaded by {_names(answer)}, is not the policy: outputs differ ({listed} "
            f"of their size; at most {tolerance:g} is rounding); please open an issue"
        )
    if any(torch.equal(out, expected.base_rounded) for out in found.values()):
        raise ExportError(
            "the export's outputs equal the base model's bit for bit: the training has no effect "
            "in it: use --dtype float32, or train longer"
        )
    figures[MOVED] = distance(expected.exact, expected.base)
    figures[LOST] = expected.lost(next(iter(found.values())))
    figures |= _check_taken_over(material, request, written, folder)
    warning = None if figures[LOST] <= LOST_LIMIT else LOST_WARNING.format(figures[LOST])
    return Verdict("outputs", figures, answer["versions"], warning)


def _is_low(material: Material, request: Request) -> bool:
    """True where the export holds a tensor of the policy in a lower type than float32."""
    if request.form == "adapter":
        return request.dtype not in (None, torch.float32)
    names = material.stored.policy_names
    return any(material.dtype(name, request.dtype) != torch.float32 for name in names)


def _names(answer: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in answer["versions"].items())


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference of two outputs, over the root mean square of the second."""
    return float((a - b).abs().max() / b.square().mean().sqrt())


def _run_check(
    material: Material,
    request: Request,
    written: Written,
    folder: Path,
    outputs: Path | None = None,
) -> dict[str, Any]:
    """Runs `load_check.py`; returns its answer. Raises ExportError, with its stderr, where it
    fails."""
    target, dtype = material.target, request.dtype
    material.close()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        save_file(dict(target.inputs), place / "inputs.safetensors")
        job = {
            "mode": request.verify,
            "form": request.form,
            "export": str(folder),
            "base": str(material.folder),
            "library": target.library,
            "model": target.model,
            "component": target.component,
            "stem": target.stem,
            "inputs": str(place / "inputs.safetensors"),
            "dtype": str(dtype or torch.float32),
            "dtypes": {n: str(material.dtype(n, dtype)) for n in material.stored.names()},
            "names": {n: material.stored.class_name(n) for n in material.stored.names()},
            "copied": sorted(material.stored.copied),
            "files": {path: facts.sha256 for path, facts in written.files.items()},
            "outputs": str(outputs),
            "answer": str(place / "answer.json"),
            **layout_of(target).job(target, request.form),
        }
        (place / "job.json").write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-P", str(SCRIPT), str(place / "job.json")],
            capture_output=True,
            text=True,
            env=environment(),
        )
        if done.returncode:
            raise ExportError(
                f"the export cannot be used: {SCRIPT.name} ended with {done.returncode}:\n"
                f"{done.stderr.strip()[-2000:]}\nWhere memory is short, "
                "--verify tensors needs little"
            )
        answer = json.loads((place / "answer.json").read_text())
    if "adrpo_scale" in answer["modules"]:
        raise ExportError(
            f"{SCRIPT.name} imported this package, so it proves nothing of the export: take what "
            "imports it out of sitecustomize and PYTHONPATH"
        )
    layout_of(target).check_answer(target, answer)
    return answer


def environment() -> dict[str, str]:
    """The variables of the second process: without network and GPU, and with every check that the
    libraries make by `assert`."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONOPTIMIZE"}
    return kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Expected:
    """Outputs on the target's inputs: of the base model and of the policy (`exact`), each also with
    weights rounded as in the export. merged: of an adapter, `rounded` with the products added to
    the weights. further: errors of the layout's further results."""

    base: Tensor
    base_rounded: Tensor
    exact: Tensor
    rounded: Tensor
    merged: Tensor
    further: Mapping[str, float]

    def of(self, how: str) -> Tensor:
        """The outputs of an export that was loaded in the way `how`."""
        return self.merged if how == ALONE else self.rounded

    def lost(self, found: Tensor) -> float:
        """|moved(found) - moved(policy)| / |moved(policy)|, where `moved` is the difference from
        the base's outputs; of `found`, from the base's rounded to the same type."""
        moved = self.exact - self.base
        return float(((found - self.base_rounded) - moved).norm() / moved.norm())


@torch.no_grad()
def expected_outputs(material: Material, request: Request, answer: Mapping[str, Any]) -> Expected:
    """Computed from the weights of the base and the checkpoint alone, with one model in float32."""
    target = material.target
    inputs = target.inputs if target.policy_inputs is None else target.policy_inputs()
    model = _empty_policy(material)
    state = _state(model)
    _load_base(material, state)
    base = base_rounded = _run(model, inputs)
    if request.form != "adapter" and request.dtype is not None:
        _round_base(state, material, request)
        base_rounded = _run(model, inputs)
        _load_base(material, state)
    _load_trained(material, state)
    exact = _run(model, inputs)
    _round(model, state, material, request)
    rounded = _run(model, inputs)
    further = layout_of(target).further_errors(model, inputs, answer)
    merged = rounded
    if request.form == "adapter":
        _merge(model)
        merged = _run(model, inputs)
    return Expected(base, base_rounded, exact, rounded, merged, further)


def _empty_policy(material: Material) -> nn.Module:
    """The policy without its weights, in eval mode."""
    spec = material.spec
    with init_empty_weights(include_buffers=False):
        model = (material.target.build or spec.build)()
    spec.tie(model)
    if spec.lora is not None:
        add_adapters(model, spec.lora, spec.lora_targets)
    model._apply(lambda t: torch.empty_like(t, device="cpu") if t.is_meta else t)
    spec.tie(model)
    return model.float().eval()


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers, by name."""
    persistent = set(model.state_dict())
    buffers = {n: b for n, b in model.named_buffers() if n in persistent}
    return {**dict(model.named_parameters()), **buffers}


def _load_base(material: Material, state: Mapping[str, Tensor]) -> None:
    """Copies the weights that training started from; adapters become zero, and so add nothing."""
    weights = material.spec.weights
    own = {original_name(name) for name in state if not is_adapter(name)}
    check_coverage(own, weights.names(), weights.folder)
    for number, (name, tensor) in enumerate(state.items()):
        if is_adapter(name):
            tensor.zero_()
        else:
            tensor.copy_(weights.read(original_name(name)))
        if number % HELD == 0:
            material.close()
    material.close()


def _load_trained(material: Material, state: Mapping[str, Tensor]) -> None:
    for number, name in enumerate(material.reader.names(material.part)):
        state[name].copy_(material.reader.whole(name, material.part))
        if number % HELD == 0:
            material.close()
    material.close()


def _round(
    model: nn.Module, state: Mapping[str, Tensor], material: Material, request: Request
) -> None:
    """Rounds the exported weights to the export's types; for merged forms, merges adapters
    first, for adapters moves peft's factor into the tensors first."""
    if request.form == "adapter":
        _move_factors(model)
        for name, tensor in state.items():
            if is_adapter(name):
                tensor.copy_(tensor.to(request.dtype or torch.float32))
        return
    _merge(model)
    _round_base(state, material, request)


def _merge(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()


def _move_factors(model: nn.Module) -> None:
    """Multiplies each B, or A by a factor below 1, by its layer's alpha / rank, which becomes 1."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            for name, factor in [*layer.scaling.items()]:
                part: Any = layer.lora_B if factor >= 1 else layer.lora_A
                part[name].weight.mul_(factor)
                layer.scaling[name] = 1.0


def _round_base(state: Mapping[str, Tensor], material: Material, request: Request) -> None:
    for name, tensor in state.items():
        if not is_adapter(name):
            stored = material.stored.stored_name(original_name(name))
            tensor.copy_(tensor.to(material.dtype(stored, request.dtype)))
    material.close()


def _run(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return model(**inputs, return_dict=False)[0].float()


def _check_taken_over(
    material: Material, request: Request, written: Written, folder: Path
) -> dict[str, float]:
    """The number of tensors copied from the base. Raises ExportError where one of them, or a file
    that a whole model needs, differs from the base's."""
    if request.form == "adapter":
        return {}
    for name in material.target.part.needs if request.form == "whole" else ():
        if not filecmp.cmp(folder / name, material.folder / name, shallow=False):
            raise ExportError(f"{name} differs from the base model's. Please open an issue")
    count = check_copied(material.stored, written.files, folder)
    return {"tensors copied, the same to the byte": count} if count else {}
