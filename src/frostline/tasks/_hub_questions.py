"""Rows of the question data sets on the hub, in the form of the local copies.

Each function makes `instruction`, `output` and `answer` from one of the hub's rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Make = Callable[[Mapping[str, Any]], dict[str, Any]]


def gsm8k(row: Mapping[str, Any]) -> dict[str, Any]:
    """openai/gsm8k: the calculator's marks are removed, and the last line becomes a sentence."""
    solution, answer = re.sub(r"<<.*?>>", "", row["answer"]).split("\n#### ")
    answer = answer.replace(",", "").strip()
    return {"instruction": row["question"], "output": f"{solution} The answer is {answer}.", "answer": answer}


def boolq(row: Mapping[str, Any]) -> dict[str, Any]:
    """google/boolq, without the passage, as published."""
    question = f"Please answer the following question with true or false, question: {row['question']}?"
    return _said(f"{question}\n\nAnswer format: true/false", str(row["answer"]).lower())


def piqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """ybisk/piqa."""
    return _said(
        f"Please choose the correct solution to the question: {row['goal']}\n\n"
        f"Solution1: {row['sol1']}\n\nSolution2: {row['sol2']}\n\nAnswer format: solution1/solution2",
        f"solution{int(row['label']) + 1}",
    )


def siqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """allenai/social_i_qa."""
    return _chosen(f"{row['context']} {row['question']}", [row[f"answer{c}"] for c in "ABC"], int(row["label"]))


def winogrande(row: Mapping[str, Any]) -> dict[str, Any]:
    """allenai/winogrande."""
    return _said(
        f"Please choose the correct answer to fill in the blank to complete the given sentence: {row['sentence']}\n\n"
        f"Option1: {row['option1']} Option2: {row['option2']} Answer format: option1/option2",
        f"option{row['answer']}",
    )


def arc(row: Mapping[str, Any]) -> dict[str, Any]:
    """allenai/ai2_arc. Its options are labelled by letters or by numbers."""
    choices = row["choices"]
    return _chosen(row["question"], choices["text"], choices["label"].index(row["answerKey"]) + 1)


def openbookqa(row: Mapping[str, Any]) -> dict[str, Any]:
    """allenai/openbookqa."""
    return arc({**row, "question": row["question_stem"]})


def _chosen(question: str, options: Sequence[str], right: int) -> dict[str, Any]:
    listed = " ".join(f"Answer{i}: {option}" for i, option in enumerate(options, start=1))
    names = "/".join(f"answer{i}" for i in range(1, len(options) + 1))
    return _said(
        f"Please choose the correct answer to the question: {question}\n\n{listed}\n\nAnswer format: {names}",
        f"answer{right}",
    )


def _said(instruction: str, answer: str) -> dict[str, Any]:
    return {"instruction": instruction, "output": f"the correct answer is {answer}", "answer": answer}
