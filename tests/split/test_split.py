"""A model trained in two parts learns what it learns as one; the processes that train it end together."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback, TrainingArguments, get_scheduler

from architectures import BLOCKS, WIDTH, natural_task, tiny
from frostline.checkpoints import trained_tensors
from frostline.core.errors import TrainingError, UserError
from frostline.engine import Trainer
from frostline.plan import Frozen, Full, Lora, Plan, Split
from frostline.run import make_schedule
from frostline.split import SplitTrainer
from frostline.split._client import run_client
from frostline.split._job import ClientRows, rounds_of, share_rows
from frostline.split._parts import LowerPart, UpperPart, save_parts
from frostline.split._protocol import Peer
from frostline.split._server import run_server
from frostline.surgery import apply
from tolerances import LOSS, assert_same_steps

IGNORED = -100
ROUNDS = 6
EPSILON = 0.1  # AdamW's, so large that it does not make a step of a gradient that is rounding alone


def plan(task: str = "causal", gate: bool = False) -> Plan:
    head, lora = Full() if task == "classification" else Frozen(), Lora(dropout=0.0, gate=gate)
    return Plan(strategy="splitlora", blocks=(lora,) * BLOCKS, final_norm=Frozen(), head=head)


def rows_of(count: int, task: str = "causal", seed: int = 0) -> list[dict[str, Any]]:
    """Rows of 4 to 9 tokens; the first two of a decoder's rows carry no label."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        ids = torch.randint(3, 128, (int(torch.randint(4, 10, (), generator=random)),), generator=random)
        labels = ids.tolist()
        labels[:2] = [IGNORED, IGNORED]
        rows.append({"input_ids": ids.tolist(), "labels": labels if task == "causal" else int(ids[-1] > 64)})
    return rows


def collate(rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Padded on the right to the longest row."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    per_token = labels[0].dim() == 1
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED) if per_token else torch.stack(labels),
    }


def trainer_of(
    folder: Path, model: Any, split: Split, rows: list[dict[str, Any]], *, gate: bool = False, **changes: Any
) -> SplitTrainer:
    options: dict[str, Any] = {
        "use_cpu": True,
        "max_steps": ROUNDS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }
    args = TrainingArguments(output_dir=str(folder / "out"), **options | changes)
    task = "classification" if "Classification" in type(model).__name__ else "causal"
    return SplitTrainer(model, args, split=split, plan=plan(task, gate), train_dataset=rows, data_collator=collate)


class QueueWire:
    """A wire between two threads."""

    def __init__(self, out: queue.Queue[Tensor], back: queue.Queue[Tensor]) -> None:
        self._out, self._back = out, back

    def send(self, data: Tensor) -> None:
        self._out.put(data.clone())

    def receive(self, size: int) -> Tensor:
        data = self._back.get(timeout=600)
        assert data.numel() == size
        return data


def in_threads(trainer: SplitTrainer, folder: Path) -> tuple[list[float], dict[str, Tensor], dict[str, int]]:
    """The training of `trainer` with threads in the place of processes: losses, what was trained, bytes sent."""
    job, own_rows = trainer._work(folder)
    save_parts(trainer.model, folder)
    ups, downs = ([queue.Queue() for _ in own_rows] for _ in range(2))
    to_clients = [Peer(QueueWire(down, up)) for up, down in zip(ups, downs, strict=True)]
    to_server = [Peer(QueueWire(up, down)) for up, down in zip(ups, downs, strict=True)]
    parts = [LowerPart(job) for _ in own_rows]
    upper, losses = UpperPart(job), []
    with ThreadPoolExecutor(len(own_rows)) as pool:
        others = [pool.submit(run_client, job, *each) for each in zip(own_rows, parts, to_server, strict=True)]
        trained = run_server(job, upper, to_clients, losses.append)
        for other in others:
            other.result()
    sent = sum((peer.sent for peer in (*to_clients, *to_server)), start=Counter[str]())
    return losses, trained, dict(sent)


def in_one_process(trainer: SplitTrainer) -> tuple[list[float], dict[str, Tensor]]:
    """The same protocol, slowly: the whole model for each client in turn, its lower tensors put in before."""
    args, split, rows, model = trainer.args, trainer.split, trainer.train_dataset, trainer.model
    own_rows = [
        ClientRows(client, [rows[index] for index in indices], collate, args.per_device_train_batch_size)
        for client, indices in enumerate(share_rows(len(rows), split.clients, args.seed))
    ]
    batches = [own.batches(args.seed) for own in own_rows]
    blocks = tuple(f"{block.name}." for block in trainer.applied.anatomy.blocks[: split.cut])
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    lower = {name: p for name, p in parameters.items() if name.startswith(blocks)}
    upper = {name: p for name, p in parameters.items() if name not in lower}
    own = [{name: torch.nn.Parameter(p.detach().clone()) for name, p in lower.items()} for _ in own_rows]
    optimizer_class = torch.optim.SGD if args.optim == "sgd" else torch.optim.AdamW
    optimizers = [optimizer_class(part.values(), lr=args.learning_rate, weight_decay=0.0) for part in (upper, *own)]
    schedules = [get_scheduler("cosine", optimizer, 0, ROUNDS) for optimizer in optimizers]
    losses = []
    model.train()
    for step in range(ROUNDS):
        drawn = [next(each) for each in batches]
        counts = [int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in drawn]
        losses.append(0.0)
        for mine, batch, count in zip(own, drawn, counts, strict=True):
            with torch.no_grad():
                for name, parameter in lower.items():
                    parameter.copy_(mine[name])
                    parameter.grad = None
            loss = model(**batch).loss * (count / sum(counts))
            loss.backward()
            losses[-1] += loss.item()
            for name, parameter in lower.items():
                mine[name].grad = parameter.grad
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], args.max_grad_norm or torch.inf)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if (step + 1) % split.average_every == 0 or step + 1 == ROUNDS:
            for name in lower:
                mean = sum(len(s.rows) * mine[name].detach() for s, mine in zip(own_rows, own, strict=True)) / len(rows)
                for mine in own:
                    mine[name].data.copy_(mean)
    return losses, {**{name: p.detach() for name, p in own[0].items()}, **{n: p.detach() for n, p in upper.items()}}


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor), name


@pytest.mark.parametrize(
    ("name", "gate", "optim"),
    [
        ("llama", False, "sgd"),
        ("llama", True, "sgd"),
        ("llama", True, "adamw_torch"),
        ("gpt2", False, "sgd"),
        ("opt", False, "sgd"),
        ("gemma2", False, "sgd"),
        ("gptj", False, "sgd"),
        ("bert", False, "sgd"),
    ],
)
def test_one_client_learns_what_an_ordinary_loop_learns(tmp_path: Path, name: str, gate: bool, optim: str) -> None:
    task = natural_task(name)
    rows = rows_of(7, task)
    changes = {"optim": optim, "learning_rate": 1.0 if optim == "sgd" else 0.1, "adam_epsilon": EPSILON}
    trainer = trainer_of(tmp_path, tiny(name), Split(cut=1, clients=1, average_every=2), rows, gate=gate, **changes)
    begun = trained_tensors(trainer.model)
    losses, trained, _ = in_threads(trainer, tmp_path)

    model = tiny(name)
    apply(plan(task, gate), model, seed=trainer.args.seed)
    assert_equal(begun, trained_tensors(model))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = {"lr": 1.0} if optim == "sgd" else {"lr": 0.1, "eps": EPSILON, "weight_decay": 0.0}
    optimizer = (torch.optim.SGD if optim == "sgd" else torch.optim.AdamW)(parameters, **options)
    schedule, largest = get_scheduler("cosine", optimizer, 0, ROUNDS), 0.0
    batches = ClientRows(0, [rows[i] for i in share_rows(7, 1, trainer.args.seed)[0]], collate, 2).batches(
        trainer.args.seed
    )
    for loss in losses:
        optimizer.zero_grad()
        expected = model.train()(**next(batches)).loss
        assert loss == pytest.approx(expected.item(), rel=LOSS)
        expected.backward()
        largest = max(largest, *(float(parameter.grad.abs().max()) for parameter in parameters))
        optimizer.step()
        schedule.step()
    amplified = 1.0 if optim == "sgd" else 2 * (1 + largest / EPSILON)
    assert_same_steps(begun, trained_tensors(model), trained, ROUNDS, amplified)
    assert all(not torch.equal(tensor, begun[name]) for name, tensor in trained.items())


@pytest.mark.parametrize(
    ("name", "optim", "clip"), [("llama", "sgd", 0), ("gpt2", "sgd", 5e-3), ("opt", "adamw_torch", 0)]
)
def test_several_clients_learn_what_one_process_learns_in_turn(
    tmp_path: Path, name: str, optim: str, clip: float
) -> None:
    split, rows = Split(cut=2, clients=3, average_every=4), rows_of(13)
    changes = {"optim": optim, "max_grad_norm": clip, "learning_rate": 1.0 if optim == "sgd" else 1e-2}
    trainer = trainer_of(tmp_path, tiny(name), split, rows, **changes)
    begun = trained_tensors(trainer.model)
    losses, trained, _ = in_threads(trainer, tmp_path)
    expected, tensors = in_one_process(trainer_of(tmp_path, tiny(name), split, rows, **changes))
    assert losses == pytest.approx(expected, rel=LOSS)
    if optim == "sgd":  # AdamW would make a large step of a gradient that is rounding alone
        assert_same_steps(begun, tensors, trained, ROUNDS)
    moved = {name: (tensor - begun[name]).abs().max() for name, tensor in trained.items() if "lora_B" in name}
    assert min(moved.values()) > 1e-4


def test_a_decoder_that_classifies_finds_the_ends_of_its_rows(tmp_path: Path) -> None:
    rows, split = rows_of(8, "classification"), Split(cut=1, clients=1)
    trainer = trainer_of(tmp_path, tiny("llama", "classification"), split, rows, max_steps=1)
    losses, *_ = in_threads(trainer, tmp_path)
    batch = next(ClientRows(0, [rows[i] for i in share_rows(8, 1, 42)[0]], collate, 2).batches(42))
    assert losses == pytest.approx([trainer.model.train()(**batch).loss.item()], rel=LOSS)


def test_processes_train_as_threads_do_and_count_their_bytes(tmp_path: Path) -> None:
    split, rows = Split(cut=1, clients=2, average_every=4), rows_of(9)
    trainer = trainer_of(tmp_path, tiny("llama"), split, rows)
    trainer.train()
    report = trainer.report
    assert report is not None
    losses, trained, sent = in_threads(trainer_of(tmp_path, tiny("llama"), split, rows), tmp_path)
    assert [entry["loss"] for entry in trainer.state.log_history] == losses
    assert_equal(trained, trained_tensors(trainer.model))

    tokens = matrices = 0
    for client, indices in enumerate(share_rows(9, 2, 42)):
        batches = ClientRows(client, [rows[index] for index in indices], collate, 2).batches(42)
        tokens += sum(next(batches)["input_ids"].numel() for _ in range(ROUNDS))
        matrices += sum(tensor.numel() for name, tensor in trained.items() if ".layers.0." in name)
    averages = 2  # after the fourth round, and the last
    assert (
        report.bytes
        == sent
        == {
            "activations": 4 * WIDTH * tokens,
            "gradients": 4 * WIDTH * tokens,
            "labels": (4 + 1) * tokens + 2 * ROUNDS * 5 * 4,
            "matrices_up": averages * 4 * matrices,
            "matrices_down": averages * 4 * matrices,
        }
    )
    assert report.rows == (5, 4)
    assert report.rounds == trainer.state.global_step == ROUNDS
    assert set(report.peak_memory_bytes) == {"the server", "client 1 of 2", "client 2 of 2"}
    assert not multiprocessing.active_children()


class AfterStep(TrainerCallback):
    """Does something to the first client after a step."""

    def __init__(self, step: int, act: Callable[[int], None]) -> None:
        self._step, self._act = step, act

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            (client,) = (each for each in multiprocessing.active_children() if each.name.startswith("client 1"))
            assert client.pid is not None
            self._act(client.pid)


@pytest.mark.parametrize(
    ("sent", "timeout", "told"),
    [
        (signal.SIGKILL, 600, "client 1 of 1 was killed by SIGKILL, and split training cannot continue without it"),
        (signal.SIGSTOP, 8, "the server gets no answer from another process: .*"),
    ],
    ids=["killed", "stopped"],
)
def test_a_client_that_is_gone_ends_all(tmp_path: Path, sent: signal.Signals, timeout: float, told: str) -> None:
    split = Split(cut=1, clients=1, timeout=timeout)
    trainer = trainer_of(tmp_path, tiny("llama"), split, rows_of(4), max_steps=1_000_000)
    before = trained_tensors(trainer.model)
    trainer.add_callback(AfterStep(2, lambda process: os.kill(process, sent)))
    with pytest.raises(TrainingError, match=f"^{told}$"):
        trainer.train()
    assert not multiprocessing.active_children()
    assert_equal(before, trained_tensors(trainer.model))


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    model = tiny("llama")
    model.lm_head.weight.data[0] = torch.nan
    trainer = trainer_of(tmp_path, model, Split(cut=1, clients=1), rows_of(4))
    with pytest.raises(TrainingError, match="the loss is nan at step 1: use a lower learning_rate or check the data"):
        trainer.train()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("split", "changes", "told"),
    [
        (Split(cut=4), {}, "cut: 4 of 4 blocks: each part needs at least one block: use 1 to 3"),
        (
            Split(cut=1),
            {"save_strategy": "steps"},
            "save_strategy: split training does not support steps: use save_strategy=no",
        ),
        (
            Split(cut=1),
            {"gradient_accumulation_steps": 2},
            "gradient_accumulation_steps: .* use gradient_accumulation_steps=1",
        ),
        (
            Split(cut=1),
            {"optim": "adafactor"},
            "optim: split training does not support adafactor: use one of adamw_torch,",
        ),
    ],
)
def test_what_it_refuses(tmp_path: Path, split: Split, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        trainer_of(tmp_path, tiny("llama"), split, rows_of(4), **changes)


def test_it_refuses_models_and_plans_with_more_than_one_state_at_the_cut(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, save_strategy="no", report_to="none")
    t5 = Plan(strategy="lora", blocks=(Lora(),) * 7, final_norm=Frozen(), head=Frozen())
    with pytest.raises(UserError, match="a t5 model would have to send more than one state at the cut"):
        SplitTrainer(tiny("t5"), args, split=Split(cut=2), plan=t5, train_dataset=rows_of(4))
    top = Plan(strategy="bot50", blocks=(Frozen(), Frozen(), Full(), Full()), head=Frozen())
    with pytest.raises(UserError, match=r"cut: 2: the plan trains nothing below block 2, .*: use 3 or more"):
        SplitTrainer(tiny("gpt2"), args, split=Split(cut=2), plan=top, train_dataset=rows_of(4))
    assert isinstance(Trainer(tiny("gpt2"), args, plan=top, train_dataset=rows_of(4)), Trainer)
    model = tiny("llama")
    schedule = make_schedule(model, "adt-l50")
    with pytest.raises(UserError, match=r"^schedule: split training cannot change its plan during training"):
        SplitTrainer(model, args, split=Split(cut=2), schedule=schedule, train_dataset=rows_of(4))


def test_rows_are_shared_once_each_and_by_the_seed() -> None:
    shares = share_rows(11, 3, seed=5)
    assert sorted(index for own in shares for index in own) == list(range(11))
    assert [len(own) for own in shares] == [4, 4, 3]
    assert share_rows(11, 3, seed=5) == shares != share_rows(11, 3, seed=6)
    assert rounds_of([4, 4, 3], batch_size=3, epochs=1.5) == 3
    with pytest.raises(UserError, match="clients: 2 training rows are too few for 3 clients"):
        share_rows(2, 3, seed=5)
