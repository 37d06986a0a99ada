"""The kinds of tasks."""

from __future__ import annotations

from enum import StrEnum


class TaskKind(StrEnum):
    """The kind of a task. It decides which head the model needs, and how the model is scored.

    - `CLASSIFICATION`: one of the task's labels for a text or a pair of texts; accuracy, macro-F1, loss.
    - `MULTI_LABEL`: any number of the labels for a text or a pair of texts; micro-F1, macro-F1, subset accuracy.
    - `REGRESSION`: a number for a text or a pair of texts; Pearson's and Spearman's correlation, mean squared error.
    - `TAGGING`: a label for each word of a text (token classification); F1 of the entities.
    - `EXTRACTION`: the part of a context that answers a question, or that there is none; exact match and F1 of SQuAD.
    - `CHOICE`: the right one of several texts that may follow a text (multiple choice); accuracy.
    - `GENERATION`: a completion for a prompt; loss on the completion, and scores of generated texts.
    - `LANGUAGE`: plain text or chats; loss and perplexity only.
    """

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi-label"
    REGRESSION = "regression"
    TAGGING = "tagging"
    EXTRACTION = "extraction"
    CHOICE = "multiple-choice"
    GENERATION = "generation"
    LANGUAGE = "language"
