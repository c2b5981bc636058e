"""Files of measured step times: read for the command line, and for the clusters that name them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hexagent.core.errors import InvalidArgument
from hexagent.core.estimate.measured import tables_from_csv
from hexagent.core.estimate.tables import Engine, StepTable
from hexagent.core.instance.spec import InstanceSpec

BYTES_MAX: Final = 16 * 1024 * 1024


def read_measured(path: Path) -> tuple[StepTable, ...]:
    """The tables of a file. InvalidArgument: NO_TABLE_FILE, TABLE_FILE_TOO_LARGE, or what `tables_from_csv` raises."""
    try:
        if path.stat().st_size > BYTES_MAX:
            text = f"{path} has more than {BYTES_MAX} bytes"
            raise InvalidArgument(text, reason="TABLE_FILE_TOO_LARGE", field="tables")
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets mark the encoding
            return tables_from_csv(file, str(path))
    except (OSError, UnicodeDecodeError) as error:
        text = f"cannot read the measurements {path}: {error}"
        raise InvalidArgument(text, reason="NO_TABLE_FILE", field="tables") from None


def cluster_tables(names: Sequence[str], instances: Sequence[InstanceSpec], source: str) -> tuple[StepTable, ...]:
    """Of the files that the cluster file `source` names, relative to its folder, what its instances are.

    InvalidArgument: DUPLICATE_TABLE, or what `read_measured` raises.
    """
    used = {(i.gpu_type, i.model, i.tp, i.precision) for i in instances}
    found: dict[Engine, StepTable] = {}
    for index, name in enumerate(names):
        for table in read_measured(Path(source).parent / name):
            if table.engine in found:
                text = f"{source}: tables[{index}]: {name} has {' '.join(map(str, table.engine))} once more"
                raise InvalidArgument(text, reason="DUPLICATE_TABLE", field=f"tables[{index}]")
            found[table.engine] = table
    return tuple(found[engine] for engine in sorted(used & set(found)))
