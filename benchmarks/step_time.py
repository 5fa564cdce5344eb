"""What the training loop costs, against loops that do less.

    python benchmarks/step_time.py
    python benchmarks/step_time.py --tables loop workers
    python benchmarks/step_time.py --tables gpu --device cuda

- *loop*: a loop written by hand for one model: forward, loss, backward, clipping, optimiser; no metrics, no records,
  no checkpoints. Then where the difference goes.
- *hugging-face*: `transformers.Trainer` on a small VideoMAE.
- *workers*: one and two workers, by hand joined by DDP, beside two that know nothing of each other: more than that, the
  machine does not allow.
- *gpu*: precision, memory format and compilation, and whether the input keeps up.

All loops start from the same weights and take the same batches from memory in the same order; one worker on a CPU must
arrive at the same bits with each. They take turns within one run; figures are medians over the turns. The table
*hugging-face* needs `accelerate`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from contest import RECIPE, Contest, Time, Turn, take_turns
from rich import box
from rich.console import Console
from rich.table import Table

from raylab.config import Experiment
from raylab.data.dataset import Batch
from raylab.training import loop

RESNET = {**RECIPE, "model.name": "resnet18_avg", "model.dropout": 0.0, "data.frames": 4, "data.batch_size": 4}
VIDEO_MAE = {**RECIPE, "model.name": "small_videomae", "data.frames": 16, "data.batch_size": 4, "data.size": 96}
GPU = {**RECIPE, "model.name": "resnet50_transformer", "data.kitchen": "small", "data.augment": "aggressive"}
COLUMNS = ("loop", "wall ms/step", "ratio", "CPU ms/step", "ratio")
STEPS = 4  # of an epoch, where there are several workers
CLIPS = STEPS * RESNET["data.batch_size"]
INPUTS = ("one batch that stays on the device", "batches in page-locked memory", "videos, decoded")


def compare(turns: Mapping[str, Turn], steps: int, repeats: int) -> Iterator[tuple[str, ...]]:
    """Rows of milliseconds a step, each with its ratio to the last contestant, taken turn by turn."""
    times = take_turns(turns, repeats)
    *_, least = times.values()
    for name, own in times.items():
        columns = []
        for clock in ("wall", "cpu"):
            step = median(getattr(t, clock) for t in own) / steps
            ratio = median(getattr(t, clock) / getattr(o, clock) for t, o in zip(own, least, strict=True))
            columns += [f"{1000 * step:.1f}", f"{ratio:.3f}"]
        yield name, *columns


def new_table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=box.MARKDOWN)


def loop_tables(options: argparse.Namespace, folder: Path) -> Iterator[Table | str]:
    contest = Contest(Experiment().override({**RESNET, "data.size": options.size}), folder, options.device)
    turns = {"raylab": contest.raylab(), "by hand": contest.bare()}
    for turn in turns.values():
        turn()
    yield f"After one epoch, raylab and the loop by hand have the same bits: {contest.agree(contest.bare_model)}"
    table = new_table("ResNet-18, average over 4 frames", *COLUMNS)
    for row in compare(turns, len(contest.batches), options.repeats):
        table.add_row(*row)
    yield table
    yield parts_table(contest, options.repeats)
    contest.close()


def parts_table(contest: Contest, repeats: int) -> Table:
    """What a step spends outside forward, backward and optimiser, and in parts that the loop by hand has too."""
    trainer, state = contest.trainer, contest.trainer.state
    parts: list[tuple[str, Any, str]] = [
        ("crop and normalise", trainer, "train_transform"),
        ("step: clip, optimiser, schedule", trainer, "step"),
        ("  of it the gradient norm", torch.nn.utils, "clip_grad_norm_"),
        ("  of it the optimiser", state.optimizer, "step"),
        ("  of it the schedule", state.schedule, "step"),
        ("seeds", loop, "seed_step"),
        ("running metrics", state.metric, "update"),
        ("running losses", state.loss, "update"),
        ("read the loss, record it", trainer, "read_loss"),
    ]
    spent = dict.fromkeys((name for name, *_ in parts), 0.0)

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return result

        return watch

    originals = [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute in parts]
    for name, owner, attribute in parts:
        setattr(owner, attribute, watched(name, getattr(owner, attribute)))
    times = take_turns({"raylab": contest.raylab()}, repeats)["raylab"]
    for owner, attribute, original in originals:
        setattr(owner, attribute, original)
    total, steps = sum(t.wall for t in times), repeats * len(contest.batches)
    table = new_table("Of raylab's step, on the host", "part", "ms a step", "share")
    for name, seconds in {**spent, "all": total}.items():
        table.add_row(name, f"{1000 * seconds / steps:.3f}", f"{100 * seconds / total:.2f} %")
    return table


def hugging_face_tables(options: argparse.Namespace, folder: Path) -> Iterator[Table | str]:
    contest = Contest(Experiment().override(VIDEO_MAE), folder / "run", options.device)
    try:
        turns = {"raylab": contest.raylab(), "transformers.Trainer": contest.hugging_face(folder / "hugging-face")}
    except ImportError as error:
        contest.close()
        yield f"transformers.Trainer: {error}"
        return
    turns["by hand"] = contest.bare()
    for turn in turns.values():
        turn()
    for name, model in (("transformers.Trainer", contest.hugging_face_model), ("by hand", contest.bare_model)):
        yield f"After one epoch, raylab and {name} have the same bits: {contest.agree(model)}"
    table = new_table("VideoMAE, 192 wide, 16 frames of 96 pixels", *COLUMNS)
    for row in compare(turns, len(contest.batches), options.repeats):
        table.add_row(*row)
    yield table
    contest.close()


def train_in_a_group(
    rank: int, workers: int, rendezvous: str | None, folder: Path, size: int, start: Any, results: Any
) -> None:
    """One process of several that `start` each turn together, joined where there is a `rendezvous`."""
    torch.set_num_threads(1)
    if rendezvous:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    clips = CLIPS * (workers if rendezvous else 1)
    experiment = Experiment().override({**RESNET, "data.size": size, "data.max_clips": clips})
    contest = Contest(experiment, folder if rendezvous else folder / str(rank), torch.device("cpu"))

    def together(turn: Turn) -> Turn:
        def wait_and_turn() -> Time:
            start.wait()
            return turn()

        return wait_and_turn

    turns = {"raylab": together(contest.raylab()), "by hand": together(contest.bare())}
    take_turns(turns, 1)
    results.put(take_turns(turns, 2))
    contest.close()
    if rendezvous:
        dist.destroy_process_group()


def start_group(workers: int, joined: bool, folder: Path, size: int) -> dict[str, Time]:
    """Loop → the time of an epoch, mean over the workers."""
    context = multiprocessing.get_context("spawn")
    results, start = context.Queue(), context.Barrier(workers)
    rendezvous = str(folder / "rendezvous") if joined else None
    processes = [
        context.Process(target=train_in_a_group, args=(rank, workers, rendezvous, folder / "run", size, start, results))
        for rank in range(workers)
    ]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()

    def epoch(name: str) -> Time:
        workers = [Time(*map(median, zip(*outcome[name], strict=True))) for outcome in outcomes]
        return Time(*map(mean, zip(*workers, strict=True)))

    return {name: epoch(name) for name in outcomes[0]}


def workers_tables(options: argparse.Namespace, folder: Path) -> Iterator[Table | str]:
    groups = {"1 worker": (1, False), "2 apart": (2, False), "2 joined": (2, True)}
    epochs: dict[tuple[str, str], list[Time]] = {}
    for turn in range(options.rounds):
        for group, (workers, joined) in groups.items():
            place = folder / f"{turn}-{workers}-{joined}"
            place.mkdir()
            for name, epoch in start_group(workers, joined, place, options.size).items():
                epochs.setdefault((group, name), []).append(epoch)
    columns = ("workers", "loop", "clips/s", "of perfect", "of apart", "of by hand", "CPU ms/step", "of apart")
    table = new_table("ResNet-18, one thread a worker, gloo", *columns)
    for (group, name), own in epochs.items():

        def ratio(clock: str, of: list[Time], own: list[Time] = own) -> float:
            return median(getattr(b, clock) / getattr(a, clock) for a, b in zip(own, of, strict=True))

        workers, apart = groups[group][0], epochs["2 apart", name]
        table.add_row(
            group,
            name,
            f"{workers * CLIPS / median(t.wall for t in own):.2f}",
            f"{100 * ratio('wall', epochs['1 worker', name]):.1f} %",
            f"{100 * ratio('wall', apart):.1f} %",
            f"{100 * ratio('wall', epochs[group, 'by hand']):.1f} %",
            f"{1000 * median(t.cpu for t in own) / STEPS:.1f}",
            f"{100 / ratio('cpu', apart):.1f} %",
        )
    yield table
    yield "Of perfect: of one worker's rate, times the workers. Apart, two workers share the machine and nothing else."


class Variant(NamedTuple):
    """How a model is run on a GPU."""

    precision: str
    channels_last: bool = False
    compiled: bool = False

    def contest(self, experiment: Experiment, folder: Path, device: torch.device) -> Contest:
        contest = Contest(experiment.override({"train.precision": self.precision}), folder, device)
        model = contest.trainer.state.task.model
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        if self.compiled:
            model.compile()
        return contest

    def __str__(self) -> str:
        return self.precision + ", channels last" * self.channels_last + ", compiled" * self.compiled


VARIANTS = [Variant("fp32"), Variant("bf16"), Variant("bf16", True), Variant("bf16", True, True)]


def gpu_tables(options: argparse.Namespace, folder: Path) -> Iterator[Table | str]:
    speeds = new_table("ResNet-50 and Transformer, 16 × 224 × 224", "variant", "clips/s", "of fp32", "peak GiB")
    inputs = new_table("Is the input the bottleneck? (bf16, channels last)", "input", "clips/s", "of on the device")
    if options.device.type != "cuda":
        for variant in VARIANTS:
            speeds.add_row(str(variant), *["no GPU"] * 3)
        for name in INPUTS:
            inputs.add_row(name, *["no GPU"] * 2)
        yield from (speeds, inputs)
        return
    base = Experiment().override({**GPU, "data.loader_workers": options.loaders})
    fastest, slowest = 0.0, 0.0
    for number, variant in enumerate(VARIANTS):
        torch.cuda.reset_peak_memory_stats()
        contest = variant.contest(base, folder / str(number), options.device)
        turn = contest.raylab()
        turn()
        fastest = contest.clips / median(t.wall for t in take_turns({"": turn}, options.repeats)[""])
        slowest = slowest or fastest
        peak = torch.cuda.max_memory_allocated() / 2**30
        speeds.add_row(str(variant), f"{fastest:.1f}", f"{fastest / slowest:.2f}", f"{peak:.1f}")
        contest.close()
        del contest, turn  # and with them the GPU's memory
    yield speeds

    contest = Variant("bf16", True).contest(base, folder / "inputs", options.device)
    first = contest.batches[0]
    labels = {head: value.to(options.device) for head, value in first["labels"].items()}
    resident: Batch = {**first, "video": first["video"].to(options.device), "labels": labels}
    sources = dict(zip(INPUTS, ([resident] * len(contest.batches), contest.batches, contest.loader), strict=True))
    turns = {name: contest.raylab(source) for name, source in sources.items()}
    for turn in turns.values():
        turn()
    times = take_turns(turns, options.repeats)
    rates = {name: contest.clips / median(t.wall for t in own) for name, own in times.items()}
    for name, rate in rates.items():
        inputs.add_row(name, f"{rate:.1f}", f"{100 * rate / rates[INPUTS[0]]:.0f} %")
    yield inputs
    contest.close()


TABLES = {
    "loop": loop_tables,
    "hugging-face": hugging_face_tables,
    "workers": workers_tables,
    "gpu": gpu_tables,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What the training loop costs, against loops that do less.")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), metavar="TABLE")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; a worker of the table `workers` has one")
    parser.add_argument("--size", type=int, default=112, help="pixels of the ResNet-18's frames")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--rounds", type=int, default=3, help="times that each group of workers is started")
    parser.add_argument("--loaders", type=int, default=8, help="decoding processes of the table `gpu`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    console.print(f"PyTorch {torch.__version__}, {options.device}, {options.threads} threads", highlight=False)
    for name in options.tables:
        with TemporaryDirectory() as folder:
            for shown in TABLES[name](options, Path(folder)):
                console.print(shown, highlight=False)
                console.print()


if __name__ == "__main__":
    main()
