"""Records as the columns of an Arrow table: one copy on a node, mapped from its file, whatever reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa

from raylab.errors import RaylabError
from raylab.storage import replacing

if TYPE_CHECKING:
    from typing_extensions import Self

R = TypeVar("R")

KEYED = pa.struct([])
"""Stands for a dictionary of whole numbers that has the same keys in every record: a struct of int64."""


class RecordTable(Sequence[R], Generic[R]):
    """An immutable sequence of records (dataclass instances), kept as columns and made when they are asked for.

    A table that was opened from a file is mapped into memory: processes that open it share one copy, and pickling
    passes on the path alone. Any other table is pickled with its content.

    Attributes:
        record: the dataclass.
        columns: field → Arrow type, of each field of the record.
        table: the columns, without nulls, each in one piece.
        path: the file that is mapped; None for a table in memory.
    """

    record: ClassVar[type]
    columns: ClassVar[dict[str, pa.DataType]]

    def __init__(self, table: pa.Table, path: Path | None = None) -> None:
        found = {field.name: KEYED if _is_keyed(field.type) else field.type for field in table.schema}
        if list(found.items()) != list(self.columns.items()):
            raise ValueError(f"columns {_listed(found)}, where {type(self).__name__} has {_listed(self.columns)}")
        if any(column.null_count for column in table.flatten().columns):
            raise ValueError(f"{type(self).__name__} has no nulls")
        self.table = table.combine_chunks()
        self.path = path
        self._getters = [_getter(self.column(name)) for name in self.columns]

    @classmethod
    def of(cls, records: Iterable[R]) -> Self:
        """A table of these records, in memory; a table is returned as it is."""
        if isinstance(records, cls):
            return records
        rest = iter(records)
        chunks = iter(lambda: list(islice(rest, 16_384)), [])  # columns take a tenth of the memory of the objects
        first = next(chunks, [])
        schema = pa.schema([(name, _fitting(kind, name, first)) for name, kind in cls.columns.items()])
        batches = [
            pa.record_batch([pa.array([getattr(r, f.name) for r in chunk], f.type) for f in schema], schema=schema)
            for chunk in chain([first], chunks)
        ]
        return cls(pa.Table.from_batches(batches, schema))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map a file that `write` has written. It may be deleted or replaced while tables are open.

        Raises:
            RaylabError: the file cannot be read, is damaged, or holds something else.
        """
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
            table.validate(full=True)  # or a damaged offset would end the process when it is used
            return cls(table, path.absolute())
        except (OSError, ValueError, pa.ArrowException) as error:
            raise RaylabError(f"{path}: not a table of {cls.record.__name__} ({error}); write it again") from None

    def write(self, path: Path) -> None:
        """Write an Arrow IPC file, which readers see whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with replacing(path) as writing, pa.ipc.new_file(str(writing), self.table.schema) as writer:
            writer.write_table(self.table)

    def take(self, indices: Sequence[int]) -> Self:
        """The records at these positions, in this order, in memory.

        Raises:
            IndexError: a position is negative or past the end.
        """
        return type(self)(self.table.take(pa.array(indices, pa.int64())))

    def column(self, name: str) -> pa.Array:
        """One column, in one piece and not copied, as `ChunkedArray.combine_chunks` would."""
        chunks = self.table[name]
        return chunks.chunk(0) if chunks.num_chunks else pa.nulls(0, chunks.type)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> R: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> R | Self:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        return self.record(*[get(index) for get in self._getters])

    def __eq__(self, other: object) -> bool:
        return self.table.equals(other.table) if type(other) is type(self) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self).open, (self.path,)) if self.path else (type(self), (self.table,))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self):,} of {self.record.__name__}>"


def _fitting(kind: pa.DataType, name: str, records: Sequence[Any]) -> pa.DataType:
    """The type of a column for these records: `kind`, or a struct with the keys of the first."""
    return pa.struct([(key, pa.int64()) for r in records[:1] for key in getattr(r, name)]) if kind == KEYED else kind


def _is_keyed(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and all(field.type == pa.int64() for field in kind)


def _listed(columns: dict[str, pa.DataType]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns.items()) or "none"


def _getter(column: pa.Array) -> Callable[[int], Any]:
    """What reads one value of a column."""
    if pa.types.is_struct(column.type):
        getters = {field.name: _getter(column.field(field.name)) for field in column.type}
        return lambda index: {name: get(index) for name, get in getters.items()}
    if pa.types.is_string(column.type):
        return lambda index: column[index].as_py()
    return np.from_dlpack(column).item  # `to_numpy` would import pandas, in every loader process
