"""Tasks: data, prompts and metrics. A task is read from a name or a file, and gives a model's scores."""

from __future__ import annotations

from frostline.rows import Columns, TaskKind, TaskOptions
from frostline.tasks._catalog import TASKS
from frostline.tasks._chat import chat_prompt, turn_end
from frostline.tasks._chat_file import read_chats
from frostline.tasks._collate import Collator, pad_rows
from frostline.tasks._decoding import Decoding
from frostline.tasks._encode import Encoded, able_models, encode
from frostline.tasks._entities import entities, entity_scores
from frostline.tasks._eval_batches import MOST_ROWS, eval_batch_size, rows_that_fit
from frostline.tasks._evaluate import Evaluation, evaluate, generation_examples
from frostline.tasks._generate import generate_texts
from frostline.tasks._load import load_task
from frostline.tasks._metrics import (
    accuracy,
    bleu,
    chrf,
    exact_match,
    label_set_scores,
    macro_f1,
    mean_squared_error,
    pearson,
    perplexity,
    rouge,
    spearman,
    text_scores,
)
from frostline.tasks._model_labels import with_model_labels
from frostline.tasks._packing import PackingCollator
from frostline.tasks._predict import ModelAnswer
from frostline.tasks._splits import draw_rows
from frostline.tasks._squad import answer_scores
from frostline.tasks._task import METRICS, Example, Message, Scores, Task, majority_share, score_texts
from frostline.tasks._tokenize import ModelKind, Tokens, model_kind, prepare_tokenizer

__all__ = [
    "METRICS",
    "MOST_ROWS",
    "TASKS",
    "Collator",
    "Columns",
    "Decoding",
    "Encoded",
    "Evaluation",
    "Example",
    "Message",
    "ModelAnswer",
    "ModelKind",
    "PackingCollator",
    "Scores",
    "Task",
    "TaskKind",
    "TaskOptions",
    "Tokens",
    "able_models",
    "accuracy",
    "answer_scores",
    "bleu",
    "chat_prompt",
    "chrf",
    "draw_rows",
    "encode",
    "entities",
    "entity_scores",
    "eval_batch_size",
    "evaluate",
    "exact_match",
    "generate_texts",
    "generation_examples",
    "label_set_scores",
    "load_task",
    "macro_f1",
    "majority_share",
    "mean_squared_error",
    "model_kind",
    "pad_rows",
    "pearson",
    "perplexity",
    "prepare_tokenizer",
    "read_chats",
    "rouge",
    "rows_that_fit",
    "score_texts",
    "spearman",
    "text_scores",
    "turn_end",
    "with_model_labels",
]
