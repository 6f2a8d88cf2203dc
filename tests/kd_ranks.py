"""Two ranks on a CPU, for the tests of kd: gloo in place of NCCL, and what Ultralytics does for GPUs alone."""

from __future__ import annotations

import os
from functools import partial

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from ultralytics.utils import LOCAL_RANK, RANK

from kd.training.trainer import Trainer

RANKS = 2


class GlooTrainer(Trainer):
    """kd's trainer, started as Ultralytics starts one on two GPUs; what a rank saw and has learned is left in files."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.world_size, self.ddp = RANKS, LOCAL_RANK == -1

    def _setup_ddp(self):
        distributed.init_process_group("gloo", rank=RANK, world_size=RANKS)

    def _setup_train(self):
        # On a GPU Ultralytics passes device_ids=[index], which torch refuses on a CPU.
        torch.nn.parallel.DistributedDataParallel = _on_cpu
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
        distributed.destroy_process_group()


def _on_cpu(model, device_ids, **options):
    return DistributedDataParallel(model, **options)


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
