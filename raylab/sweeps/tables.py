"""A sweep's leaderboard for the terminal."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from raylab.sweeps.space import SearchSpace


def leaderboard_table(board: pd.DataFrame, space: SearchSpace) -> Table:
    """The leaderboard of `SweepFolder.leaderboard` for the terminal; a failed trial shows its cause."""
    columns = [name for name in board.columns if name != "error"]
    table = Table("#", *(heading(column) for column in columns))
    table.title = f"{space.name}: {space.description}"
    for rank, row in enumerate(board.to_dict("records"), start=1):
        table.add_row(str(rank), *(number(row[column]) for column in columns))
        if row.get("error"):
            table.add_row("", f"[red]{escape(row['error'])}")
    return table


def heading(column: str) -> str:
    """A column's name, short: `optim.lr` → `lr`, `train.stages.0.lr` → `0.lr`, `val/loss` → `val loss` on two lines."""
    parent, _, name = column.rpartition(".")
    number = parent.rpartition(".")[2]
    return (f"{number}.{name}" if number.isdecimal() else name).replace("/", "\n")


def number(value: Any) -> str:
    """A cell: four significant digits for a float, a dash for what is not known."""
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
