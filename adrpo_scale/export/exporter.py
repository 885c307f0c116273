"""The command `export`: writes an export of a checkpoint, verifies it and describes it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.checkpoint.locate import open_checkpoint, origin_of
from adrpo_scale.checkpoint.named import set_of, stated_weights
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.whole import require_whole
from adrpo_scale.core.console import console
from adrpo_scale.core.disk_space import disk_space, size_text
from adrpo_scale.core.errors import CheckpointError, DiskSpaceError, ExportError, given
from adrpo_scale.core.run_rows import EVALUATIONS, evaluation_rows
from adrpo_scale.core.settings import leaves
from adrpo_scale.export.adapter import adapter_bytes, write_adapter
from adrpo_scale.export.base import Copy, Form, Material, Request, Written, base_of
from adrpo_scale.export.card import Metric, Provenance, Story, base_licence, write_card
from adrpo_scale.export.copies import bytes_of, write_copies
from adrpo_scale.export.folder import weight_headers, write_weights
from adrpo_scale.export.layouts import layout_of
from adrpo_scale.export.place import (
    check_target,
    finish,
    kept,
    record,
    recorded,
    temporary,
    unverified,
)
from adrpo_scale.export.stored import StoredTensors
from adrpo_scale.export.verify import Verdict, verify
from adrpo_scale.run.build import build_domain, specs_of
from adrpo_scale.run.compare import base_fault
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import overridden, parse_config
from adrpo_scale.run.prompt_sets import sets_text
from adrpo_scale.run.tables import metric_order

_SLACK = 4 << 20  # bytes of configs, card and folders
_RIGHT = {True: "adapter or --as merged", False: "full"}  # by whether adapters were trained


@dataclass(frozen=True)
class Exported:
    """A finished export. verdict: None where no verification was requested."""

    folder: Path
    written: Written
    verdict: Verdict | None
    seconds_conversion: float
    seconds_verification: float


def export(name: str, request: Request, base: str | None = None) -> Exported:
    """Exports RUN, RUN@iteration or a checkpoint folder. base: folder or hub id of the base model,
    if it has moved since training.

    Needs no GPU and no process group, and holds one tensor at a time, apart from verification.
    Raises CheckpointError for a broken checkpoint, DiskSpaceError before anything is written, and
    ExportError where the request does not fit the checkpoint, the verification fails or a file
    cannot be written; `request.to` is then unchanged, and an export that was written is kept beside
    it, unverified.
    """
    check_target(request.to)
    reader = open_checkpoint(name)
    _check_form(reader, request)
    config = parse_config(reader.manifest.document["config"])
    if base is not None:
        config = overridden(config, [f"domain.model={json.dumps(base)}"])
    require_whole(reader, remembered=False)
    material = _material(reader, config, request)
    _check_part(material, request.form)
    layout, facts = layout_of(material.target), _facts(reader, request)
    layout.check(material, request.form)
    if request.recheck:
        written = recorded(request.to, facts)
        return _finished(material, request, written, unverified(request.to), 0.0)
    copies = layout.copies(material, request.form)
    _check_room(material, request, copies)
    with temporary(request.to) as folder:
        start = time.perf_counter()
        _say(f"exporting {stated_weights(reader, request.weights)}, from {reader.folder}")
        written = _convert(material, request, copies, folder)
        record(folder, facts, written)
        return _finished(material, request, written, folder, time.perf_counter() - start)


def _facts(reader: Reader, request: Request) -> dict[str, Any]:
    """What an export is of: a recheck compares it."""
    return {
        "checkpoint": reader.sha256,
        "iteration": reader.iteration,
        "--as": request.form,
        "--ema": _part(reader, request) == "ema",
        "--dtype": None if request.dtype is None else str(request.dtype).removeprefix("torch."),
    }


def _finished(
    material: Material, request: Request, written: Written, folder: Path, converted: float
) -> Exported:
    """Verifies and describes the export in `folder`, which then becomes `request.to`. converted:
    seconds of the conversion."""
    start, verdict = time.perf_counter(), None
    if request.verify != "none":
        _say("verifying in another process")
        with kept(folder, request.to):
            verdict = verify(material, request, written, folder)
    verified = time.perf_counter() - start
    write_card(_story(material, request, written, verdict), folder)
    finish(folder, request.to)
    return Exported(request.to, written, verdict, converted, verified)


def show(exported: Exported) -> None:
    """Prints sizes, times and the verification's figures."""
    written, verdict = exported.written, exported.verdict
    lines = [
        f"{size_text(written.bytes)} of weights in {exported.seconds_conversion:.1f} s; "
        f"{written.changed} of {written.trained} trained tensors differ from the base model's"
    ]
    if verdict is None:
        lines.append("not verified (--verify none)")
    else:
        figures = "; ".join(f"{name} {value:.3g}" for name, value in verdict.figures.items())
        seconds = exported.seconds_verification
        lines.append(f"verified ({verdict.level}) in {seconds:.1f} s: {figures}")
        lines += [f"warning: {verdict.warning}"] if verdict.warning else []
    for line in [*lines, f"export: {exported.folder}"]:
        _say(line)


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _check_form(reader: Reader, request: Request) -> None:
    """Raises ExportError where the checkpoint does not hold the requested form or set."""
    document = reader.manifest.document
    is_lora = document["lora"] is not None
    if request.form != "whole" and is_lora != (request.form in ("adapter", "merged")):
        trained = "LoRA adapters" if is_lora else "all parameters"
        raise ExportError(
            f"--as {request.form}, but {reader.folder} has trained {trained}: "
            f"use --as {_RIGHT[is_lora]}"
        )
    _part(reader, request)
    if request.form == "adapter" and document["config"]["rebase_reference"]:
        raise ExportError(
            "--as adapter, but the run's reference was rebased: its adapters belong on top of the "
            "weights that it started from, which are no published model; use --as merged"
        )


def _part(reader: Reader, request: Request) -> str:
    """The exported set. Raises ExportError where the checkpoint does not have it."""
    try:
        return set_of(reader, request.weights)
    except CheckpointError as error:
        raise ExportError(str(error)) from None


def _check_part(material: Material, form: Form) -> None:
    """Raises ExportError where the base's folder lacks the other parts of a whole model."""
    if form != "whole":
        return
    part, folder = material.target.part, material.folder
    if not part.whole:
        raise ExportError(
            f"--as whole, but {folder} holds no other part than --as "
            f"{'full' if material.spec.lora is None else 'merged'} exports: use that form. --as "
            "whole needs a run whose domain.model is the complete model"
        )
    missing = [name for name in part.needs if not (folder / name).is_file()]
    if missing:
        raise ExportError(
            f"--as whole, but {folder} lacks {', '.join(missing)}, without which {part.whole} does "
            "not load: copy it there from the published base model"
        )


def _material(reader: Reader, config: RunConfig, request: Request) -> Material:
    """Opens everything that is read. Raises ExportError where the base model's weights have
    changed."""
    domain, document = build_domain(config, reader), reader.manifest.document
    weights = domain.policy_spec().weights
    stated, fault = document["base"], base_fault(reader, weights)
    if fault is not None:
        raise ExportError(f"{fault}: restore that model, or name its folder with --base")
    origin = None
    if config.rebase_reference:
        origin = given(origin_of(reader))
        require_whole(origin, remembered=False)
    target = domain.export_target()
    stored_names: Mapping[str, str] = getattr(weights, "stored_names", {})
    tied = {name: n for name, n in stored_names.items() if target.part.name(n) != name}
    return Material(
        reader=reader,
        part=_part(reader, request),
        spec=specs_of(domain, config, origin)[0],
        target=target,
        stored=StoredTensors(
            domain.folder, target, weights.names(), tied, is_whole=request.form == "whole"
        ),
        folder=domain.folder,
        base=base_of(stated["model"], stated["revision"], stated["sha256"]),
    )


def _check_room(material: Material, request: Request, copies: list[Copy]) -> None:
    """Raises DiskSpaceError where the disk of `request.to` has too little space."""
    if request.form == "adapter":
        needed = adapter_bytes(material, request.dtype or torch.float32)
    else:
        needed = sum(header.bytes for header in weight_headers(material, request.dtype))
    needed += _SLACK + (0 if request.link else bytes_of(copies))
    free = disk_space(request.to).free_bytes
    if free < needed:
        raise DiskSpaceError(
            f"no room for the export in {request.to.parent}: it needs {size_text(needed)}, and "
            f"{size_text(free)} are free. Delete what is not needed, choose another --to, or "
            "--link what the base model has on the same disk"
        )


def _convert(material: Material, request: Request, copies: list[Copy], folder: Path) -> Written:
    """Writes the weights first, because they may be refused, then the copies."""
    if request.form == "adapter":
        written = write_adapter(material, request.dtype or torch.float32, folder)
    else:
        written = write_weights(material, request, folder)
    texts = layout_of(material.target).texts(material, request)
    material.close()
    write_copies(copies, texts, folder, request.link)
    return written


def _story(
    material: Material, request: Request, written: Written, verdict: Verdict | None
) -> Story:
    if request.form == "adapter":
        dtypes = {request.dtype or torch.float32}
    else:
        dtypes = {material.dtype(name, request.dtype) for name in material.stored.names()}
    return Story(
        form=request.form,
        dtype=" and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)),
        base=material.base,
        licence=base_licence(material.folder),
        target=material.target,
        provenance=_provenance(material, request),
        written=written,
        verdict=verdict,
        lora=material.reader.manifest.document["lora"],
    )


def _provenance(material: Material, request: Request) -> Provenance:
    document = material.reader.manifest.document
    origin = document["origin"]
    metrics, evaluated = _metrics(material.reader)
    return Provenance(
        run=document["run"],
        iteration=material.reader.iteration,
        package=document["package"],
        world_size=document["world_size"],
        is_ema=material.part == "ema",
        settings=dict(leaves(document["config"])) | {"domain.model": material.base.name},
        metrics=metrics,
        evaluated=evaluated,
        rewards=document["rewards"],
        origin=origin and f"iteration {origin['iteration']} of {Path(origin['run']).name}",
        prompts=sets_text(material.reader.folder.parent.parent) if evaluated is not None else "",
    )


def _metrics(reader: Reader) -> tuple[list[Metric], int | None]:
    """Rows of the run's eval.jsonl at iteration 0 and at the last iteration up to the checkpoint's,
    and that iteration; no rows where the checkpoint was copied without its run."""
    there = evaluation_rows(reader.folder.parent.parent / EVALUATIONS)
    rows = [row for row in there if row["iteration"] <= reader.iteration]
    if not rows:
        return [], None
    last = max(row["iteration"] for row in rows)
    at = {(row["metric"], row["split"], row["iteration"]): row["value"] for row in rows}
    keys = [
        (metric, split)
        for metric in metric_order({row["metric"] for row in rows})
        for split in ("train", "held_out")
        if (metric, split, last) in at
    ]
    return [(m, s, at.get((m, s, 0)), at[m, s, last]) for m, s in keys], last
