"""Evaluation: models × metrics → rows in `eval.jsonl`; tables, grids and figures from the rows."""
