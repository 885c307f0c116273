"""The rows of a parquet file, read in bounded pieces.

A few kilobytes of parquet can stand for a billion rows, or for one text of a gigabyte in each of a
million rows: the format counts repetitions. The footer states how many rows there are and how long
the values of a column are together, so that limits hold before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import PromptError

MOST_ROWS = 10_000_000  # as prompts they take some 10 GB on every rank
MOST_CELLS = 200_000_000
MOST_BYTES = 1 << 32  # of all values, decoded
_AT_ONCE = 1 << 28  # bytes decoded at once
_MOST_AT_ONCE = 4096  # rows


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows by column. Raises PromptError for a file that is not there or no parquet, and for
    one of more rows, cells or bytes than a prompt file has."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _check_counts(path, file.metadata)
            yield from _decoded(path, file)
    except FileNotFoundError:
        raise PromptError(f"{path}: no such prompt file; correct the path") from None
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise PromptError(
            f"{path}: cannot be read as parquet ({error}); was it copied completely?"
        ) from None


def _check_counts(path: Path, facts: Any) -> None:
    rows, cells = facts.num_rows, facts.num_rows * facts.num_columns
    if rows > MOST_ROWS or cells > MOST_CELLS:
        raise PromptError(
            f"{path}: has {rows:,} rows of {facts.num_columns:,} columns, expected at most "
            f"{MOST_ROWS:,} rows and {MOST_CELLS:,} values in all; split it, or leave columns out"
        )


def _decoded(path: Path, file: Any) -> Iterator[dict[str, Any]]:
    facts = file.metadata
    # No value is longer than all of its group of rows, so many rows have at most _AT_ONCE bytes.
    # (Of a column, pyarrow's facts end the process where the footer is damaged.)
    sizes = [facts.row_group(n).total_byte_size for n in range(facts.num_row_groups)]
    longest = max(sizes, default=0)
    at_once = min(_MOST_AT_ONCE, max(1, _AT_ONCE // max(1, longest)))
    repeats = "dictionary<" in str(file.schema_arrow)  # its bytes do not count repetitions
    left = MOST_BYTES
    for batch in file.iter_batches(at_once):
        rows = batch.to_pylist()
        left -= _size(rows) if repeats else batch.nbytes
        if left < 0:
            raise PromptError(
                f"{path}: its values have more than {MOST_BYTES / 1e9:.1f} GB, expected those of a "
                "prompt file; split it, or leave columns out"
            )
        yield from rows


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 8
