"""Two ranks on a CPU, for the tests of kd: gloo in place of NCCL, and ranks that leave what they saw and learned.

As a script, the command `kd` with such ranks: `python -m tests.kd_ranks train ...` in a process that torchrun started.
"""

from __future__ import annotations

import os
from functools import partial

from kd.environment import lead_ranks

if __name__ == "__main__":
    lead_ranks()  # before Ultralytics is imported

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from ultralytics.utils import LOCAL_RANK, RANK

from kd.training.trainer import Trainer

RANKS = 2


class GlooTrainer(Trainer):
    """kd's trainer, over two ranks without --device 0,1; what a rank saw and has learned is left in files."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.world_size, self.ddp = RANKS, LOCAL_RANK == -1

    def _setup_train(self):
        super()._setup_train()
        assert type(self.model) is DistributedDataParallel
        (link,) = self.distillation.links
        assert not {id(p) for p in link.teacher.model.parameters()} & {id(p) for p in self.model.parameters()}

    def preprocess_batch(self, batch):
        with (self.save_dir / f"seen{RANK}.txt").open("a") as file:
            names = ",".join(sorted(os.path.basename(path) for path in batch["im_file"]))
            file.write(f"{self.epoch} {names} {float(batch['img'].float().mean()):.6f}\n")
        return super().preprocess_batch(batch)

    def _do_train(self):
        if os.environ.get("KD_TEST_DIES") == "1":
            self.add_callback("on_model_save", lambda _: os._exit(9))  # rank 0, after the first epoch
        super()._do_train()
        torch.save(self.model.module.state_dict(), self.save_dir / f"end{RANK}.pt")


def gloo_class(config, logs):
    """What `kd.training.trainer.trainer_class` makes, over two ranks on this CPU."""
    return type("Trainer", (GlooTrainer,), {"config": config, "logs": logs})


def two_ranks(work, *arguments):
    """Run ``work(rank, *arguments)`` in two processes under gloo."""
    store = arguments[0] / "store"
    torch.multiprocessing.spawn(partial(_rank, work, store), args=arguments, nprocs=RANKS)


def _rank(work, store, rank, *arguments):
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    work(rank, *arguments)
    distributed.destroy_process_group()


if __name__ == "__main__":
    import cli
    from kd.training import build
    from tests.kd_ranks import gloo_class as importable

    build.trainer_class = importable
    cli.kd()
