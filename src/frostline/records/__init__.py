"""The run record: versioned JSON, written whole. Imports no torch."""

from frostline.records._record import (
    RECORD_FILE,
    DataFacts,
    Measured,
    Metrics,
    ModelFacts,
    RunMetrics,
    RunRecord,
    now,
    read_record,
    write_record,
)

__all__ = [
    "RECORD_FILE",
    "DataFacts",
    "Measured",
    "Metrics",
    "ModelFacts",
    "RunMetrics",
    "RunRecord",
    "now",
    "read_record",
    "write_record",
]
