"""The frozen bottom runs once for each row. Its boundary states go to an activation cache, and training reads them."""

from frostline.bottom._bottom import Amount, Bottom, Declined, Training, not_possible
from frostline.bottom._cache import ActivationCache, check_room
from frostline.bottom._caching_pass import (
    BATCH_TOKENS,
    CachingPass,
    Chunk,
    Passage,
    batches_by_length,
    pass_rows,
    same_states,
)
from frostline.bottom._contents import Contents
from frostline.bottom._cut import CannotCut, Cut, cut_boundary, find_cut, last_blocks
from frostline.bottom._feed import ReadAhead, RowsInBatch, rows_in_batch, rows_of, stored_states
from frostline.bottom._filling import FillingCache
from frostline.bottom._identity import buffers_below, hashes_of, identity, names_below
from frostline.bottom._loop import LoopSession
from frostline.bottom._report import CacheReport
from frostline.bottom._rows import AlteredRow, find_spans, holds_several, row_key, row_length
from frostline.bottom._session import CacheMode, CacheSession, check_mode
from frostline.bottom._shards import Stream, row_bytes
from frostline.bottom._standins import StandIns
from frostline.bottom._streaming import Load, Streaming, drop_tensors, names_above, put_tensors
from frostline.bottom._weights import OffloadedWeights

__all__ = [
    "BATCH_TOKENS",
    "ActivationCache",
    "AlteredRow",
    "Amount",
    "Bottom",
    "CacheMode",
    "CacheReport",
    "CacheSession",
    "CachingPass",
    "CannotCut",
    "Chunk",
    "Contents",
    "Cut",
    "Declined",
    "FillingCache",
    "Load",
    "LoopSession",
    "OffloadedWeights",
    "Passage",
    "ReadAhead",
    "RowsInBatch",
    "StandIns",
    "Stream",
    "Streaming",
    "Training",
    "batches_by_length",
    "buffers_below",
    "check_mode",
    "check_room",
    "cut_boundary",
    "drop_tensors",
    "find_cut",
    "find_spans",
    "hashes_of",
    "holds_several",
    "identity",
    "last_blocks",
    "names_above",
    "names_below",
    "not_possible",
    "pass_rows",
    "put_tensors",
    "row_bytes",
    "row_key",
    "row_length",
    "rows_in_batch",
    "rows_of",
    "same_states",
    "stored_states",
]
