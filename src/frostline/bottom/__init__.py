"""The frozen bottom: it runs once, and its boundary states are kept in an activation cache."""

from frostline.bottom._cache import ActivationCache, check_room
from frostline.bottom._caching_pass import (
    BATCH_TOKENS,
    Passage,
    batches_by_length,
    caching_pass,
    pass_rows,
    same_states,
)
from frostline.bottom._cut import CannotCut, Cut, crossing, cut_boundary, find_cut
from frostline.bottom._feed import (
    CACHED_ROWS,
    CachedRows,
    CachingCollator,
    ReadAhead,
    cached_rows,
    rows_of,
    stored_states,
)
from frostline.bottom._identity import buffers_below, hashes_of, identity, names_below
from frostline.bottom._rows import AlteredRow, find_spans, row_key, row_length
from frostline.bottom._shards import Stream, row_bytes
from frostline.bottom._standins import StandIns
from frostline.bottom._streaming import Load, Streaming, drop_tensors, names_above, put_tensors
from frostline.bottom._weights import come_back, leave_memory

__all__ = [
    "BATCH_TOKENS",
    "CACHED_ROWS",
    "ActivationCache",
    "AlteredRow",
    "CachedRows",
    "CachingCollator",
    "CannotCut",
    "Cut",
    "Load",
    "Passage",
    "ReadAhead",
    "StandIns",
    "Stream",
    "Streaming",
    "batches_by_length",
    "buffers_below",
    "cached_rows",
    "caching_pass",
    "check_room",
    "come_back",
    "crossing",
    "cut_boundary",
    "drop_tensors",
    "find_cut",
    "find_spans",
    "hashes_of",
    "identity",
    "leave_memory",
    "names_above",
    "names_below",
    "pass_rows",
    "put_tensors",
    "row_bytes",
    "row_key",
    "row_length",
    "rows_of",
    "same_states",
    "stored_states",
]
