"""The text of a model card: what the model is, what trained, on what, how good it became, what it cost, how to load it.

The names of models, tasks and labels come from users and their files: they are escaped, and stay in one line.
"""

from __future__ import annotations

from pathlib import Path

from frostline.core.shown import markdown_text, one_line, shortened
from frostline.model_card._about import Form, ModelCard
from frostline.model_card._cost import cost_lines
from frostline.model_card._loading import how_to_load
from frostline.model_card._metadata import is_hub_id, metadata
from frostline.model_card._table import code, markdown_table
from frostline.plan import Plan, strip
from frostline.records import RunRecord
from frostline.report import count_text, mean_text, share_text

LIBRARIES: dict[Form, str] = {"run": "frostline", "merged": "transformers", "lora": "peft"}
SHOWN_LABELS = 20
SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "optim",
    "bf16",
    "frozen_bits",
)


def card_text(card: ModelCard) -> str:
    """The whole README.md: metadata and Markdown."""
    title, hub = _title(card), is_hub_id(card.base) and not _was_local(card)
    data = metadata(title, LIBRARIES[card.form], card.base if hub else None, card.plan, card.record, card.licence)
    parts = [f"---\n{data.to_yaml()}\n---", f"# {markdown_text(title)}", _what(card)]
    finished = card.record is None or card.record.status == "finished"
    if finished and card.model_class.isidentifier():
        parts.append(how_to_load(card))
    if card.plan is not None:
        parts.append(_what_trained(card.plan, card.record))
    if card.record is not None:
        parts += [_data(card.record), *_results(card), *cost_lines(card.record, card.beside)]
        parts += [*_notes(card.record), _settings(card.record)]
    parts.append(_licence(card))
    return "\n\n".join(parts) + "\n"


def _was_local(card: ModelCard) -> bool:
    return card.record is not None and card.base in card.record.places


def _short(name: str) -> str:
    """A hub id, or the last part of a path, which is nobody else's business."""
    return one_line(name if is_hub_id(name) else Path(name).name or name, 100)


def _title(card: ModelCard) -> str:
    base = _short(card.base).rpartition("/")[2] or card.model_class
    if card.record is None:
        return f"{base}, {'LoRA' if card.form == 'lora' else 'fine-tuned'}"
    return f"{base} on {_short(card.record.data.task)}: {one_line(_strategy(card.record), 60)}"


def _strategy(record: RunRecord) -> str:
    return str(record.plan.get("strategy") or record.config.get("strategy") or "custom")


def _base(card: ModelCard) -> str:
    if not card.base:
        return "a base model that was made in memory"
    name = markdown_text(_short(card.base))
    if is_hub_id(card.base) and not _was_local(card):
        return f"[{name}](https://huggingface.co/{card.base})"
    return f"**{name}** (a local folder)"


_FORMS: dict[Form, str] = {
    "run": "This folder holds the *delta*: only the tensors that training changed. It needs its base model, "
    "and frostline to load it.",
    "merged": "This folder holds the whole model, as transformers saves it. Nothing needs frostline.",
    "lora": "An ordinary LoRA folder of PEFT, which needs its base model. Nothing needs frostline.",
}


def _what(card: ModelCard) -> str:
    record, base = card.record, _base(card)
    trained = f"{base}, as {markdown_text(card.model_class)}, trained with frostline"
    if record is None:
        return f"{trained}. {_FORMS[card.form]}"
    trained += f" on {markdown_text(_short(record.data.task))} by the strategy {code(_strategy(record))}."
    if record.status == "running":
        return f"{trained}\n\n**This run has not finished.** `frostline train` with `--resume` goes on with it."
    if record.status == "failed":
        reason = markdown_text(one_line(record.error or "no reason is recorded"))
        return f"{trained}\n\n**This run failed**: {reason}\n\nIts folder holds no trained model."
    return f"{trained} {_FORMS[card.form]}"


def _what_trained(plan: Plan, record: RunRecord | None) -> str:
    lines = ["## What trained"]
    if record is not None and record.strip:
        steps = record.measured.steps if record.measured else None
        over = f" over {steps:,} steps" if steps else ""
        lines += [f"The plan changed while it trained. What trained when, from left to right{over}:"]
        lines += ["```\n" + "\n".join(map(one_line, record.strip)) + "\n```", "At the end:"]
    lines.append(f"```\n{strip(plan).plain}\n```")
    if record is not None:
        share = share_text(record.trainable_parameters / record.total_parameters)
        counts = f"{count_text(record.trainable_parameters)} of {count_text(record.total_parameters)}"
        lines.append(f"{counts} parameters train ({share}).")
    return "\n\n".join(lines)


def _data(record: RunRecord) -> str:
    data = record.data
    lines = [
        f"- task: {markdown_text(_short(data.task))} ({markdown_text(data.kind)})",
        f"- rows: {data.train_rows:,} to train on, {data.eval_rows:,} to evaluate on; {data.truncated_rows:,} were cut",
    ]
    if data.labels:
        shown = ", ".join(markdown_text(shortened(label, 60)) for label in data.labels[:SHOWN_LABELS])
        more = f" and {len(data.labels) - SHOWN_LABELS:,} more" if len(data.labels) > SHOWN_LABELS else ""
        lines.append(f"- labels: {shown}{more}")
    return "## Data\n\n" + "\n".join(lines)


def _notes(record: RunRecord) -> list[str]:
    lines = [f"- {markdown_text(notice)}" for notice in record.notices]
    return ["## Notes of the run\n\n" + "\n".join(lines)] if lines else []


def _results(card: ModelCard) -> list[str]:
    record, beside = card.record, card.beside
    if record is None or record.metrics is None:
        return []
    other = beside.metrics.after if beside is not None and beside.metrics is not None else {}
    heading = ["metric", "before training", "after", *([code(_strategy(beside))] if beside and other else [])]
    rows = [
        [
            f"**{markdown_text(name)}**" if name == record.data.metric else markdown_text(name),
            mean_text(record.metrics.before.get(name)),
            mean_text(value),
            *([mean_text(other.get(name))] if other else []),
        ]
        for name, value in record.metrics.after.items()
    ]
    lines = ["## Results", f"On the {record.data.eval_rows:,} rows to evaluate on.", markdown_table(heading, rows)]
    if record.data.majority_share is not None:
        lines.append(f"Always the most common label: accuracy {mean_text(record.data.majority_share)}.")
    return ["\n\n".join(lines)]


def _settings(record: RunRecord) -> str:
    config = record.config
    unused = "num_train_epochs" if config.get("max_steps") else "max_steps"
    keys = [key for key in SETTINGS if config.get(key) is not None and key != unused]
    given = {"seed": record.seed, **{key: config[key] for key in keys}}
    shown = ", ".join(f"{key} {value}" for key, value in given.items())
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return (
        f"## Settings\n\n{markdown_text(shown)}. Started {markdown_text(record.started)}.\n\n"
        f"Versions: {markdown_text(versions) or 'not recorded'}. `run.json` in the run's folder holds every setting, "
        "measurement and the whole plan."
    )


def _licence(card: ModelCard) -> str:
    if card.licence is not None:
        name = card.licence.name or card.licence.id
        known = f"The card of the base model says: {markdown_text(one_line(name))}. "
    else:
        known = "**The licence is not known.** No model card of the base model was found here. "
    return (
        f"## Licence and limits\n\n{known}The licences of the base model and of the data decide what may be done with "
        "this model: look both up before you share it. Nothing but the results above was measured: not what the model "
        "does on other texts, nor what it learned of the biases of its data."
    )
