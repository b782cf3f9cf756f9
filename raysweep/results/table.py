"""The tables of a sweep's records as Parquet files, written and read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from raysweep.results.columns import STAGE_REQUIRED, TRIAL_REQUIRED
from raysweep.store import Store
from raysweep.store.sweepfolder import SweepFolder

if TYPE_CHECKING:
    import pandas as pd

Table = Literal["records", "stages"]
_REQUIRED: dict[Table, frozenset[str]] = {"records": TRIAL_REQUIRED, "stages": STAGE_REQUIRED}


def read_table(store: Store, place: str, which: Table) -> pd.DataFrame | None:
    """Return records or stages as they were written; none if they are not there, or damaged."""
    import pandas as pd

    raw = store.read(SweepFolder(store, place).path(f"{which}.parquet"))
    if raw is None:
        return None
    try:
        frame = pd.read_parquet(io.BytesIO(raw), page_checksum_verification=True)
    except Exception:  # noqa: BLE001  whatever Parquet's reader thinks of damaged bytes
        return None
    return frame if set(frame.columns) >= _REQUIRED[which] else None


def write_tables(store: Store, name: str, rows: pd.DataFrame, stages: pd.DataFrame) -> None:
    """Store the records of a sweep as Parquet, records last."""
    for which, frame in (("stages", stages), ("records", rows)):
        store.write(SweepFolder(store, name).path(f"{which}.parquet"), packed(frame), durable=True)


def packed(frame: pd.DataFrame) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    uniform(frame).to_parquet(buffer, index=False, write_page_checksum=True)
    return buffer.getvalue()


def uniform(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with columns of mixed kinds (a parameter of several methods) as text."""
    import pandas as pd

    fixed = frame.copy()
    for column in fixed.select_dtypes(object).columns:
        present = fixed[column].dropna()
        kinds = {type(value) for value in present}
        if kinds <= {int, float}:
            fixed[column] = pd.to_numeric(fixed[column])
        elif len(kinds) > 1:
            fixed[column] = present.map(str).reindex(fixed.index)
    return fixed
