"""Time of one training step of ``spackle`` against the released module's, same batch and threads, on the CPU.

The files of the wheel ``spared==2.2.1`` are found with ``--released``; without them ``spackle-released`` of this package
stands in for it (the same layers and loss) and the output says so. The released step starts from a batch that is gathered
already; ours gathers its own.

    PYTHONPATH=. python benchmarks/spackle_step.py --released WHEEL [--genes 128] [--threads 1] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from spared_fm.targets.completion.data import Section
from spared_fm.targets.completion.spackle import BATCH, Spackle, SpackleReleased, batch_rows


def sections(genes: int, slides: int = 4, side: int = 20) -> list[Section]:
    """Synthetic slides on a square grid, a third of the entries missing."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2).astype(np.float64)
    made = []
    for slide in range(slides):
        visible = rng.random((side**2, genes)) > 1 / 3
        values = np.where(visible, rng.uniform(1, 12, visible.shape), 0).astype(np.float32)
        made.append(Section(str(slide), values, visible, xy, np.ones(side**2, np.float32), k=8))
    return made


def ours(method: Spackle | SpackleReleased, train: list[Section], genes: int) -> Callable[[int], None]:
    """Gather, hide, forward, loss, backward, Adam: as ``fit`` does it."""
    chance = torch.full((genes,), 0.45)
    table, net = method._table(train), method._make(genes).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step(number: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        rows = torch.from_numpy(batch_rows(len(table.index), BATCH, number, 0))
        method._loss(net, table, rows, chance).backward()
        optimizer.step()

    return step


def released(wheel: Path, train: list[Section], genes: int) -> Callable[[int], None]:
    """Run the released Lightning module's own ``training_step``, backward, Adam."""
    from tests.targets.completion.record_spackle import released as module_of

    args = {
        "use_visual_features": False,
        "optim_metric": "MSE",
        "transformer_heads": 1,
        "transformer_encoder_layers": 2,
        "momentum": 0.9,
    }
    module = module_of(wheel).GeneImputationModel(args, genes, 1e-3, "Adam", torch.full((genes,), 0.45))
    module.device, module.log_dict = torch.device("cpu"), lambda *_, **__: None
    module.train()
    optimizer = module.configure_optimizers()
    table = SpackleReleased()._table(train)

    def step(number: int) -> None:
        around = table.index[:BATCH]
        batch = {"exp_matrix_gt": table.values[around], "real_missing": table.visible[around], "split_name": "train"}
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        module.training_step(batch).backward()
        optimizer.step()
        module.training_step_outputs.clear()
        step.seconds = time.perf_counter() - started  # type: ignore[attr-defined]  # without the gathering above

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", type=Path, help="unpacked wheel spared==2.2.1")
    parser.add_argument("--genes", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    train = sections(asked.genes)
    there = asked.released is not None and (asked.released / "spared" / "spackle" / "model.py").is_file()
    rivals = {
        "released": released(asked.released, train, asked.genes)
        if there
        else ours(SpackleReleased(), train, asked.genes),
        "spackle": ours(Spackle(), train, asked.genes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for repeat in range(asked.repeats + 2):  # by turns, so that load on the machine meets both; two to warm up
        for name, step in rivals.items():
            started = time.perf_counter()
            step(repeat)
            took = getattr(step, "seconds", time.perf_counter() - started)
            if repeat >= 2:
                seconds[name].append(took)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    print(
        json.dumps(
            {
                "released_is": "package spared 2.2.1" if there else "stand-in: spackle-released of this package",
                "seconds": {name: round(value, 4) for name, value in medians.items()},
                "all": {name: [round(value, 4) for value in each] for name, each in seconds.items()},
                "ratio": round(medians["spackle"] / medians["released"], 3),
                "batch": BATCH,
                "genes": asked.genes,
                "threads": asked.threads,
                "torch": torch.__version__,
                "cpu": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
