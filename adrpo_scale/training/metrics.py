"""The output of a run: JSONL files, TensorBoard, samples, and a progress line on the terminal.

Only rank 0 writes; on other ranks `MetricsLog` does nothing, so the loop has no conditionals.
`metrics.jsonl` has one JSON object per iteration, `eval.jsonl` one per evaluated number. A number
that is not finite or was not measured is null.
"""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL.PngImagePlugin import PngInfo
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from adrpo_scale.core import dist, python_warnings
from adrpo_scale.core.bounds import COUNT
from adrpo_scale.core.console import console, note_losses, say, warnings_on_screen
from adrpo_scale.core.errors import DiskSpaceError, RunFolderError
from adrpo_scale.core.files import own, replace_file, sync_file
from adrpo_scale.core.printable import Formatter
from adrpo_scale.core.run_rows import EVALUATIONS, METRICS, PROMPTS
from adrpo_scale.core.settings import Effect, Section, setting

log = logging.getLogger(__name__)
JSONL = (METRICS, EVALUATIONS, PROMPTS)
SHOWN = 32  # completions in TensorBoard
_BAR, _BESIDE, _WIDE = 21, 12, 120  # columns: bar, spaces and time left, a terminal with a bar


class LoggingConfig(Section):
    EFFECT: ClassVar[Effect] = "none"

    pictures_every: int = setting(
        20, "iterations between picture grids of rollouts in TensorBoard; 0: never", ge=0, le=COUNT
    )
    completions_every: int = setting(
        10,
        "tokens: iterations between records of every completion in samples/; 0: never",
        ge=0,
        le=COUNT,
    )
    completions_megabytes: float = setting(
        200.0, "tokens: the oldest of these records are removed beyond this size", gt=0, le=COUNT
    )
    histograms_every: int = setting(
        5, "iterations between histograms of advantages and betas; 0: never", ge=0, le=COUNT
    )
    divergence_every: int = setting(
        10,
        "where no beta needs the reference, iterations between passes that log it; 0: never",
        ge=0,
        le=COUNT,
    )


def is_due(every: int, iteration: int) -> bool:
    """True at each multiple of `every`; never where it is 0."""
    return every > 0 and iteration % every == 0


def setup_logging(run: Path) -> None:
    """Sends warnings of rank 0 to the terminal, and each rank's messages to `logs/rank-NNN.log`."""
    path = run / "logs" / f"rank-{dist.rank():03d}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written ({error.strerror}): make room, or remove what is in its "
            "place, and start again"
        ) from error
    file.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handlers: list[logging.Handler] = [file]
    if dist.is_main():
        handlers.append(warnings_on_screen())
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    python_warnings.as_lines()
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.disable_progress_bar()  # they would break the progress line


class _LogFile(logging.FileHandler):
    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=own)


class MetricsLog:
    """The writer of a run's output. As a context manager, it shows the progress line inside."""

    def __init__(self, run: Path, iterations: int) -> None:
        self.run, self.iterations, self.start = run, iterations, 0
        self.keep_pictures = False  # True: each picture also becomes a file
        self._on = dist.is_main()
        self._live = self._on and console.is_terminal

    def resumed_at(self, iteration: int) -> None:
        """Drops TensorBoard's points after this iteration. Called before the `with`."""
        self.start = iteration

    def __enter__(self) -> MetricsLog:
        if not self._on:
            return self
        # Imported here: other ranks save the second that it takes.
        from torch.utils.tensorboard import SummaryWriter

        self._tensorboard: Any = SummaryWriter(
            self.run / "tensorboard", purge_step=self.start + 1 if self.start else 0
        )
        self._progress = Progress(
            TextColumn("iteration {task.completed}/{task.total}"),
            *([BarColumn(bar_width=_BAR - 1)] if console.width >= _WIDE else []),
            TextColumn("{task.fields[line]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not self._live,
            refresh_per_second=2,
        )
        self._task = self._progress.add_task(
            "", total=self.iterations, completed=self.start, line=""
        )
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._on:
            self._progress.stop()
            self._curves("close")

    def iteration(
        self, record: Mapping[str, Any], histograms: Mapping[str, np.ndarray] | None = None
    ) -> None:
        """Writes a line of `metrics.jsonl`. record: has `iteration`. histograms: by name."""
        if not self._on:
            return
        self._append(METRICS, [record])
        step = int(record["iteration"])
        for name, value in record.items():
            if isinstance(value, int | float) and name != "iteration" and math.isfinite(value):
                self._curves("add_scalar", f"train/{name}", value, step)
        for name, values in (histograms or {}).items():
            self._curves("add_histogram", f"train/{name}", values, step)
        place = f"iteration {step}/{self.iterations}"
        beside = len(place) + _BESIDE + (_BAR if console.width >= _WIDE else 0)
        line = progress_line(record, console.width - beside)
        self._progress.update(self._task, completed=step, line=line)
        text = f"{place}  {progress_line(record)}"
        if self._live:
            log.info("%s", text)
        else:
            say(text)
        note_losses()

    def evaluation(
        self, rows: Sequence[Mapping[str, Any]], by_prompt: Sequence[Mapping[str, Any]]
    ) -> None:
        """Writes rows of `eval.jsonl`, and those of `eval_prompts.jsonl`."""
        if not self._on:
            return
        self._append(EVALUATIONS, rows)
        self._append(PROMPTS, by_prompt)
        for row in rows:
            if row["value"] is not None and math.isfinite(row["value"]):
                name = f"eval_{row['split']}/{row['metric']}"
                self._curves("add_scalar", name, row["value"], row["iteration"])
        self._curves("flush")

    def picture(self, tag: str, picture: Any, iteration: int, file: str | None = None) -> None:
        """Writes a PIL image to TensorBoard, and to `samples/<file>` where a name is given."""
        if not self._on or picture is None:
            return
        self._curves("add_image", tag, np.asarray(picture), iteration, dataformats="HWC")
        if file is None and self.keep_pictures:
            file = f"{tag}-{iteration:06d}.png"
        if file is not None:
            with _writing(self.run / "samples" / file):
                (self.run / "samples").mkdir(exist_ok=True)
                write_picture(picture, self.run / "samples" / file)

    def completions(
        self, table: Sequence[Mapping[str, Any]] | None, iteration: int, megabytes: float
    ) -> None:
        """Writes all completions to `samples/completions-NNNNNN.parquet`, and the first ones as
        text to TensorBoard. Beyond `megabytes`, the oldest files are removed."""
        if not self._on or not table:
            return
        import pyarrow
        from pyarrow import parquet

        folder = self.run / "samples"
        path = folder / f"completions-{iteration:06d}.parquet"
        with _writing(path):
            folder.mkdir(exist_ok=True)
            content = io.BytesIO()
            parquet.write_table(pyarrow.Table.from_pylist([finite(r) for r in table]), content)
            replace_file(path, content.getvalue(), durable=False)
            files = sorted(folder.glob("completions-*.parquet"))
            while len(files) > 1 and sum(f.stat().st_size for f in files) > 1e6 * megabytes:
                files.pop(0).unlink()
        self._curves("add_text", "completions", text_table(table[:SHOWN]), iteration)

    def sync(self) -> None:
        """Forces all lines written so far to the disk (fsync)."""
        if not self._on:
            return
        for name in JSONL:
            if (self.run / name).exists():
                sync_file(self.run / name)

    def _curves(self, method: str, *arguments: Any, **options: Any) -> None:
        """Calls TensorBoard until its first OSError: after a full disk its thread stays broken. The
        run continues, because the JSONL files have every number."""
        if self._tensorboard is None:
            return
        try:
            getattr(self._tensorboard, method)(*arguments, **options)
        except OSError as error:
            self._tensorboard = None
            log.warning("TensorBoard's files cannot be written any more: %s", error)

    def _append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(finite(record), allow_nan=False) + "\n" for record in records)
        with _writing(self.run / name), open(self.run / name, "a", opener=own) as file:
            file.write(text)


def write_picture(picture: Any, path: Path) -> None:
    """Writes a PIL image as a PNG file, in one step; texts of ours in its `info` are kept."""
    content, kept = io.BytesIO(), PngInfo()
    for name, text in picture.info.items():
        if str(name).startswith("adrpo_scale"):
            kept.add_text(name, text, zip=True)
    picture.save(content, "PNG", pnginfo=kept)
    replace_file(path, content.getvalue(), durable=False)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turns an OSError of writing `path` into a DiskSpaceError with the remedy."""
    try:
        yield
    except OSError as error:
        raise DiskSpaceError(
            f"{path} cannot be written: {error}. Make room and start again: the run resumes from "
            "its last checkpoint"
        ) from error


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with None for floats that are not finite, which JSON does not have."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a Markdown table; characters that would break it are escaped."""

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|").replace("\n", "⏎ ").replace("<", "&lt;")

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(v) for v in r.values()] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def progress_line(record: Mapping[str, Any], width: int | None = None) -> str:
    """The numbers of the progress line: reward, betas, divergence, entropy, samples per second.

    width: the columns that it may take; the least important numbers are left out beyond it.
    """

    def shown(name: str, digits: int, kind: str = "f") -> str:
        value = record.get(name)
        return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}{kind}}"

    parts = {
        "reward": f"reward {shown('reward', 2)}",
        "beta": f"beta {shown('beta_min', 2)}…{shown('beta_max', 2)}",
        "divergence": f"divergence {shown('divergence', 3, 'g')}",
        "entropy": f"entropy {shown('entropy', 3)}" if "entropy" in record else "",
        "speed": f"{shown('samples_per_second', 1)} samples/s",
    }
    for least in ("speed", "beta", "entropy", "divergence"):
        line = "  ".join(text for text in parts.values() if text)
        if width is None or len(line) <= width:
            return line
        parts[least] = ""
    return parts["reward"]
