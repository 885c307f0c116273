"""Rows of tables with a header: CSV and TSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adrpo_scale.data.lines import lines, read_text, row_error
from adrpo_scale.data.rows import AUTO, TEXTS, Reading, Row, RowReader

PROMPT_COLUMNS = ("prompts", "prompt")
LONGEST_FIELD = 1 << 27  # characters of a field; the library stops at 131,072


def _is_header(cells: list[str]) -> bool:
    return any(cell.strip().lower() in PROMPT_COLUMNS for cell in cells)


def read_table(
    path: Path, quoting: Any, delimiter: str, example: str, reading: Reading
) -> Iterator[Row]:
    """The rows of a table with a header; `where` is the last line of a row."""
    # strict: otherwise one quote that is never closed swallows the rest of the file as one prompt.
    text = io.StringIO(read_text(path), newline="")
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(
        text, delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=delimiter == ","
    )
    header: list[str] | None = None
    rows = RowReader(reading)
    try:
        for cells in reader:
            where = f"line {reader.line_num}"
            if not cells:
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if not set(header) & {*TEXTS, (reading.column or TEXTS[0]).lower()}:
                    expected = f"a header with the column Prompt or Prompts, as in {example!r}"
                    remedy = (
                        "add the header, name its column as prompts.column, or set format = 'txt' "
                        "if this is one prompt a line"
                    )
                    raise row_error(path, where, delimiter.join(cells), expected, remedy)
                continue
            if len(cells) > len(header):
                expected = f"at most {len(header)} fields, as the header has"
                remedy = "put a prompt with commas into double quotes, and no tab inside a field"
                fault = row_error(path, where, delimiter.join(cells), expected, remedy)
                yield Row(where, fault=fault)
                continue
            row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
            yield _table_row(where, header, row, rows, reading)
    except csv.Error as error:
        remedy = "write a quote inside a quoted field twice, and close every quoted field"
        raise row_error(path, f"line {reader.line_num}", str(error), "a CSV row", remedy) from None


def _table_row(
    where: str, header: list[str], row: dict[str, Any], rows: RowReader, reading: Reading
) -> Row:
    column = next((name for name in PROMPT_COLUMNS if name in header), None)
    if column is not None and reading == AUTO:
        prompt = row.pop(column, None)
        return Row(where, prompt, {name: value for name, value in row.items() if name})
    return rows.row(where, {name: value for name, value in row.items() if name})


def starts_with_csv_header(path: Path) -> bool:
    cells = next((line.split(",") for _, line in lines(path)), [])
    # One word, "prompts", may be a prompt; "Prompts,Category" is a header.
    return len(cells) > 1 and _is_header(cells)
