"""Every internal of Ultralytics that kd leans on, by name: an update that moves one fails here and says why."""

from __future__ import annotations

import inspect
import subprocess
import sys
from copy import copy, deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs the extra kd")

import numpy as np
import torch
import ultralytics.utils as utils
from torch import nn
from ultralytics.data.augment import Albumentations, Format, Mosaic, v8_transforms
from ultralytics.data.base import BaseDataset
from ultralytics.data.build import build_dataloader
from ultralytics.data.dataset import YOLODataset
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.rtdetr import RTDETRValidator
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn import tasks
from ultralytics.nn.modules.block import SPPF
from ultralytics.nn.modules.head import Detect, v10Detect
from ultralytics.nn.tasks import BaseModel, DetectionModel, RTDETRDetectionModel, _initialize_yolo_model
from ultralytics.utils import dist, loss, torch_utils
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.instance import Instances
from ultralytics.utils.tqdm import TQDM

from kd.methods.heads import distances
from kd.options import DECIDED, OPTION_OF_SETTING
from kd.training.trainer import RTDETRStudentTrainer, Trainer
from kd.ultra import models, session


@pytest.fixture(scope="module")
def student():
    return models.load_model("yolov5n").model


def source(function):
    return inspect.getsource(function)


def test_version_is_of_the_series_that_was_tried():
    assert utils.__version__.startswith("8.4."), "kd's seam was tried on Ultralytics 8.4 only"


@pytest.mark.parametrize(
    "name",
    [
        "set_model_attributes", "_setup_train", "save_model", "save_metrics", "resume_training",
        "_load_checkpoint_state", "_handle_nan_recovery", "_build_train_pipeline", "optimizer_step", "final_eval",
    ],
)  # fmt: skip
def test_the_trainer_has_the_methods_that_are_overridden(name):
    assert callable(getattr(DetectionTrainer, name))


def test_the_world_is_a_trainers_attribute_that_its_ranks_are_counted_by():
    assert "self.world_size = world_size" in source(BaseTrainer.__init__)
    assert "world_size=self.world_size" in source(BaseTrainer._setup_ddp)
    code = source(BaseTrainer._setup_train)  # on a CPU kd wraps the model in the next step, for torch refuses this
    assert_in_order(code, "if self.world_size > 1:", "device_ids=[self.device.index]", "self._build_train_pipeline()")
    assert "WORLD_SIZE > 1 else -1" in source(utils)  # who is a rank is decided by the import


def test_a_trainer_goes_to_another_process_as_a_file_of_its_own():
    code = source(dist.generate_ddp_command)
    assert_in_order(code, "if not trainer.resume:", "shutil.rmtree(trainer.save_dir)", "generate_ddp_file(trainer)")
    assert callable(dist.ddp_cleanup)


def test_attributes_are_set_before_optimizer_and_ema_are_made():
    code = source(BaseTrainer._setup_train)
    steps = ("self.set_model_attributes()", "self._build_train_pipeline()", "ModelEMA(", "self.resume_training(ckpt)")
    assert sorted(steps, key=code.index) == list(steps)


def test_the_optimizer_takes_every_module_of_the_model():
    assert "named_modules()" in source(BaseTrainer.build_optimizer)


def test_auto_changes_the_optimizer_above_ten_thousand_iterations(student):
    trainer = SimpleNamespace(args=copy(utils.DEFAULT_CFG), data={"nc": 2})
    for iterations, name in ((1, "AdamW"), (10_000, "AdamW"), (10_001, "MuSGD")):
        optimizer = BaseTrainer.build_optimizer(trainer, student, iterations=iterations)
        assert type(optimizer).__name__ == trainer.args.optimizer == name
        assert {"betas", "momentum"} & optimizer.param_groups[0].keys() == {"betas" if name == "AdamW" else "momentum"}
    assert trainer.args.warmup_bias_lr == 0.0
    assert '"momentum" in x' in source(BaseTrainer._do_train)  # the warm-up leads to the argument
    assert "self.args.warmup_momentum, self.args.momentum" in source(BaseTrainer._do_train)


def test_an_architecture_is_parsed_without_its_values():
    model = BaseModel()
    with torch.device("meta"):
        _initialize_yolo_model(model, tasks.yaml_model_load("yolov8n.yaml"), 3, 7, False)
    assert isinstance(model.model, nn.Sequential)
    assert (len(model.names), model.model[-1].nc, next(model.parameters()).device.type) == (7, 7, "meta")


def test_the_trainer_builds_a_checkpoints_yaml_and_loads_what_fits():
    code = source(BaseTrainer.setup_model)
    assert_in_order(code, "weights, ckpt = load_checkpoint(self.model)", "cfg = weights.yaml", "self.get_model(cfg=cfg")
    assert "model.load(weights)" in source(DetectionTrainer.get_model)


def test_image_sides_are_rounded_up_to_the_largest_stride():
    assert [check_imgsz(side, stride=32, floor=32, max_dim=1) for side in (32, 33, 640)] == [32, 64, 640]
    assert "check_imgsz(self.args.imgsz, stride=gs, floor=gs, max_dim=1)" in source(BaseTrainer._setup_train)


def test_a_name_of_before_is_read_as_a_p6_model():
    assert tasks.yaml_model_load("yolov8n6.yaml")["yaml_file"].endswith("yolov8n-p6.yaml")


def test_checkpoints_are_read_restricted_by_a_name_in_tasks():
    assert tasks.SAFE_LOAD is True
    assert "safe_only = SAFE_LOAD" in source(tasks.torch_safe_load)


def test_checkpoints_null_the_criterion():
    assert "ema.criterion = None" in source(BaseTrainer.save_model)
    assert 'x["model"].criterion = None' in source(torch_utils.strip_optimizer)


def test_checkpoints_are_written_to_last_and_best():
    code = source(BaseTrainer.save_model)
    assert "self.last.write_bytes(" in code
    assert "self.best.write_bytes(" in code


def test_the_ema_is_a_deep_copy():
    assert "deepcopy(unwrap_model(model))" in source(torch_utils.ModelEMA.__init__)


def test_a_module_whose_copy_is_none_vanishes_from_the_copy(student):
    class Gone(nn.Conv2d):
        def __deepcopy__(self, memo):
            return None

    student.add_module("gone", Gone(1, 1, 1))
    try:
        assert not [key for key in deepcopy(student).state_dict() if key.startswith("gone")]
    finally:
        del student.gone


def test_the_model_calls_the_criterion_that_is_put_on_it(student):
    student.criterion = lambda preds, batch: ("called", sorted(preds))
    try:
        called, keys = student({"img": torch.zeros(1, 3, 64, 64)})
    finally:
        del student.criterion
    assert called == "called"
    assert "feats" in keys


@pytest.mark.parametrize("name", ["yolov10n", "yolo26n"])
def test_dual_heads_give_their_features_with_the_one_to_many_branch(name):
    preds = models.load_model(name).model.train()(torch.zeros(2, 3, 64, 64))
    assert [f.shape[-1] for f in preds["one2many"]["feats"]] == [8, 4, 2]


@pytest.mark.parametrize(
    ("name", "reg_max", "dual"), [("yolov5n", 16, False), ("yolov10n", 16, True), ("yolo26n", 1, True)]
)
def test_heads_tell_their_branches_and_distributions(name, reg_max, dual):
    head = models.load_model(name).model.model[-1]
    assert type(head) in (Detect, v10Detect)
    assert head.reg_max == reg_max
    assert (getattr(head, "one2one_cv2", None) is not None) == dual
    for branch in [head.one2many, head.one2one] if dual else [head.one2many]:
        assert branch.keys() == {"box_head", "cls_head"}
        assert len(branch["box_head"]) == len(branch["cls_head"]) == 3


def test_predictions_are_rows_of_cells_level_by_level(student):
    head = student.eval().model[-1]
    with torch.no_grad():
        preds = student(torch.rand(1, 3, 64, 64))[1]
        level = head.cv2[1](preds["feats"][1])
    student.train()
    assert preds["boxes"].shape == (1, 4 * head.reg_max, 64 + 16 + 4)
    assert preds["scores"].shape == (1, head.nc, 64 + 16 + 4)
    torch.testing.assert_close(preds["boxes"][:, :, 64:80].unflatten(2, (4, 4)), level)


def test_distributions_are_by_side_and_then_by_bin(student):
    student.args = utils.DEFAULT_CFG
    criterion = loss.v8DetectionLoss(student)
    rows, anchors = torch.randn(1, 5, 64), torch.zeros(5, 2)
    x1, y1, x2, y2 = criterion.bbox_decode(anchors, rows)[0].unbind(1)
    torch.testing.assert_close(distances(rows[0]), torch.stack((-x1, -y1, x2, y2), 1))


def test_folding_drops_a_branch_of_a_dual_head_and_only_that_of_a_detect():
    assert "isinstance(m, Detect)" in source(BaseModel.fuse)
    assert "one2one_" in source(Detect.fuse)


def test_a_model_hands_over_whatever_its_last_layer_gives(student):
    class Last(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.f, self.i = head.f, head.i

        def forward(self, features):
            return features, "said"

    model = deepcopy(student)
    model.model[-1] = Last(model.model[-1])
    features, said = model.eval()(torch.zeros(1, 3, 64, 64))
    assert (len(features), said) == (3, "said")


def test_the_students_classes_are_named_before_the_criterion_is_set():
    assert 'self.model.names = self.data["names"]' in source(DetectionTrainer.set_model_attributes)


def test_resuming_replaces_the_criterion_of_dual_heads():
    code = source(BaseTrainer.resume_training)
    assert "model.criterion = model.init_criterion()" in code
    assert "model.criterion.updates = " in code


def test_the_epoch_ends_with_an_update_of_the_criterion():
    assert "criterion.update()" in source(BaseTrainer._do_train)


def test_nan_recovery_loads_strictly_and_then_the_checkpoint_state():
    code = source(BaseTrainer._handle_nan_recovery)
    assert code.index("model.load_state_dict(ema_state)") < code.index("self._load_checkpoint_state(ckpt)")


def test_a_batch_is_halved_until_three_retries_are_counted_and_an_epoch_that_ends_counts_them_anew():
    code = source(BaseTrainer._do_train)
    assert "if epoch > self.start_epoch or self._oom_retries >= 3 or RANK != -1:\n                        raise" in code
    assert_in_order(code, 'self.run_callbacks("on_train_epoch_start")', "self._oom_retries >= 3")
    assert_in_order(code, "self._oom_retries = 0  # reset OOM", "if self._oom_retries and not self.stop:")


def test_images_of_a_batch_are_collated_by_the_loaders_function():
    assert 'collate_fn=getattr(dataset, "collate_fn", None)' in source(build_dataloader)


def assert_in_order(code, *parts):
    assert sorted(parts, key=code.index) == list(parts)


def test_an_epoch_begins_after_the_gradients_are_dropped_and_before_the_loader_is_asked():
    assert_in_order(
        source(BaseTrainer._do_train),
        "acc0 = self.accumulate", 'self.run_callbacks("on_train_start")', "self.optimizer.zero_grad()  # zero any",
        'self.run_callbacks("on_train_epoch_start")', "self.train_loader.reset()", "TQDM(enumerate(self.train_loader)",
        'self.run_callbacks("on_train_batch_start")', "if ni - last_opt_step >= self.accumulate:",
    )  # fmt: skip


def test_batches_are_counted_from_the_start_of_training_and_after_a_recovery():
    code = source(BaseTrainer._do_train)
    assert_in_order(
        code, "last_opt_step = -1\n        acc0", "self.optimizer_step()\n                    last_opt_step = ni"
    )
    assert "if self._handle_nan_recovery(epoch):\n                last_opt_step = -1" in code


def test_a_checkpoint_is_saved_after_the_decision_to_stop():
    assert_in_order(
        source(BaseTrainer._do_train), "criterion.update()", "self.stop |= self.stopper(", "self.save_model()"
    )


def test_nan_recovery_refuses_the_first_epoch_of_a_process():
    assert "if epoch == self.start_epoch:" in source(BaseTrainer._handle_nan_recovery)


def test_the_final_evaluation_strips_and_validates_and_no_more():
    code = source(BaseTrainer.final_eval)
    assert "strip_optimizer(self.last)" in code
    assert "self.validator(model=model)" in code
    assert "self.best.write" not in code


def test_the_loader_starts_anew_after_a_reset_with_the_generator_it_has():
    loader = build_dataloader(list(range(20)), batch=4, workers=0, device="cpu")
    assert loader.sampler.generator is loader.generator
    orders = []
    for _ in range(2):
        loader.generator.manual_seed(1)
        loader.reset()
        orders.append([batch.tolist() for batch in loader])
    assert orders[0] == orders[1] != [batch.tolist() for batch in loader]


def test_images_are_kept_for_mosaics_by_loading_them():
    code = source(BaseDataset.load_image)
    assert_in_order(code, "self.buffer.append(i)", "self.buffer.pop(0)")
    assert "self.dataset.buffer" in source(Mosaic.get_indexes)


def test_albumentations_are_seeded_by_torch():
    assert "set_random_seed(torch.initial_seed())" in source(Albumentations.__call__)


def test_augmentation_that_mixes_nothing_needs_no_dataset_but_its_meta_data():
    class Dataset:
        data, cache = {}, None  # and no images

    args = copy(utils.DEFAULT_CFG)
    vars(args).update(mosaic=0.0, mixup=0.0, cutmix=0.0, copy_paste=0.0)
    transforms = v8_transforms(Dataset(), 64, args)
    transforms.append(Format())
    nothing = Instances(np.zeros((0, 4), np.float32), np.zeros((0, 1000, 2), np.float32))
    image = np.full((40, 64, 3), 90, np.uint8)
    labels = transforms({"img": image, "cls": np.zeros((0, 1), np.float32), "instances": nothing})
    assert (labels["img"].shape, labels["img"].dtype) == ((3, 64, 64), torch.uint8)


def test_labelled_images_are_augmented_by_it():
    assert "v8_transforms(self, self.imgsz, hyp)" in source(YOLODataset.build_transforms)
    assert {"cv2_flag"} <= set(BaseDataset.__init__.__code__.co_names)


def test_losses_are_items_by_name_times_the_batch_size(student):
    student.args = utils.DEFAULT_CFG
    criterion = student.init_criterion()
    batch = {
        "img": torch.zeros(2, 3, 64, 64), "batch_idx": torch.tensor([0.0]), "cls": torch.tensor([[0.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]),
    }  # fmt: skip
    loss, items = criterion(student.train()(batch["img"]), batch)
    assert list(items) == ["box_loss", "cls_loss", "dfl_loss"]
    torch.testing.assert_close(loss.detach(), 2 * torch.stack(list(items.values())))


def test_layers_know_their_inputs_and_place(student):
    head = student.model[-1]
    assert (list(head.f), head.i) == ([17, 20, 23], 24)
    assert student.stride.tolist() == [8, 16, 32]


def test_activations_are_shared_between_models(student):
    other = models.load_model("yolov5n").model
    assert {id(m) for m in student.modules() if isinstance(m, nn.SiLU)} & {
        id(m) for m in other.modules() if isinstance(m, nn.SiLU)
    }, "the check of the teacher's mode passes over SiLU for this reason alone"


def test_models_fold_their_batch_norms(student):
    fused = deepcopy(student).fuse(verbose=False)
    assert isinstance(fused, DetectionModel)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


def test_a_head_with_anchors_passes_for_one_of_ultralytics():
    """What kd.ultra.classic.network takes on: a Detect without branches, whose anchors are a buffer."""
    assert_in_order(source(BaseModel._apply), "fn(m.stride)", "m.anchors = fn(m.anchors)", "m.strides = fn(m.strides)")
    assert "[m[0].conv.in_channels for m in head.cv2]" in source(BaseModel.load)
    assert 'm.cv2 is not None and getattr(m, "one2one_cv2", None) is not None' in source(BaseModel.is_fused)
    assert isinstance(Detect.anchors, torch.Tensor)  # of the class: register_buffer refuses the name
    assert "self.cv1 = Conv(c1, c_, 1, 1, act=False)" in source(SPPF.__init__)  # SiLU is put back


@pytest.fixture(scope="module")
def decoding():
    """An RT-DETR in training mode, with the classes that its trainer gives it, and a batch of two images and a box."""
    model = models.load_model("rtdetr-p").model.train()
    model.nc = 2
    batch = {
        "img": torch.zeros(2, 3, 64, 64), "batch_idx": torch.tensor([0.0]), "cls": torch.tensor([[0.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]),
    }  # fmt: skip
    return model, batch


def test_the_trainer_of_rtdetr_goes_between_kds_and_that_of_detectors():
    order = RTDETRStudentTrainer.__mro__
    assert order.index(Trainer) < order.index(RTDETRTrainer) < order.index(DetectionTrainer)
    assert {"get_model", "build_dataset", "get_validator"} <= vars(RTDETRTrainer).keys()
    assert not {"train", "set_model_attributes", "preprocess_batch", "_setup_train"} & vars(RTDETRTrainer).keys()
    assert "RTDETRDetectionModel(" in source(RTDETRTrainer.get_model)


def test_rtdetr_sees_squares_in_training_and_in_validation():
    assert all("rect=False" in source(maker.build_dataset) for maker in (RTDETRTrainer, RTDETRValidator))
    assert "rect_mode=False" in source(RTDETRDataset.load_image)


def test_a_training_step_calls_the_model_with_the_batch_and_takes_loss_and_items():
    assert "loss, self.loss_items = self.model(batch)" in source(BaseTrainer._do_train)
    assert "self.loss = loss.sum()" in source(BaseTrainer._do_train)


def test_the_criterion_of_rtdetr_gets_neither_images_nor_features_and_knows_no_gains(decoding):
    model, batch = decoding
    seen = {}
    model.criterion = lambda *given, **named: seen.update(given=given, named=named) or RTDETRDetectionLoss(2)(*given)
    try:
        loss, items = model(batch)
    finally:
        del model.criterion
    (boxes, scores), targets = seen["given"]
    assert (boxes.shape, scores.shape) == ((4, 2, 84, 4), (4, 2, 84, 2))  # the encoder's choice and three layers'
    assert targets.keys() == {"cls", "bboxes", "batch_idx", "gt_groups"}
    assert seen["named"].keys() == {"dn_bboxes", "dn_scores", "dn_meta"}
    assert loss.shape == ()
    assert list(items) == ["giou_loss", "cls_loss", "l1_loss"]
    assert not {"args", "hyp", "class_weights"} & set(RTDETRDetectionModel.init_criterion.__code__.co_names)


def test_the_loss_of_rtdetr_is_a_mean_and_not_multiplied_by_the_batch_size(decoding):
    model, batch = decoding
    model.model[-1].num_denoising, before = 0, model.model[-1].num_denoising
    twice = {key: torch.cat((batch[key], batch[key])) for key in ("img", "cls", "bboxes")}
    try:
        (once, _), (two, _) = model(batch), model({**twice, "batch_idx": torch.tensor([0.0, 2.0])})
    finally:
        model.model[-1].num_denoising = before
    torch.testing.assert_close(two, once)


def test_a_decoder_reads_the_features_and_says_queries_those_for_denoising_first(decoding):
    model, batch = decoding
    seen = []
    hook = model.model[-1].register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs)))
    try:
        model(batch)
        model(batch["img"])
        model.eval()(batch["img"])
    finally:
        hook.remove()
        model.train()
    assert [features.shape[1:] for features in seen[0][0]] == [(64, 8, 8), (64, 4, 4), (64, 2, 2)]
    boxes, logits, _, _, denoising = seen[0][1]
    first, own = denoising["dn_num_split"]
    assert (own, boxes.shape[:3], logits.shape[:3]) == (84, (3, 2, first + 84), (3, 2, first + 84))
    assert seen[1][1][4] is None  # without labels no denoising
    assert seen[1][1][0].shape == (3, 2, 84, 4)
    _, (boxes, logits, *_) = seen[2][1]  # in evaluation the last layer alone
    assert (boxes.shape, logits.shape) == ((1, 2, 84, 4), (1, 2, 84, 2))


def test_rtdetr_knows_no_strides_but_one(decoding):
    assert decoding[0].stride.tolist() == [32]


def test_selecting_the_cpu_sets_torch_threads():
    assert "torch.set_num_threads(NUM_THREADS)" in source(torch_utils.select_device)


def test_the_environment_is_read_at_import():
    # In a process of its own: another test may have imported Ultralytics before kd set anything.
    code = (
        "import kd.ultra; import ultralytics.utils as u; home = kd.ultra.cache_dir() / 'Ultralytics'\n"
        "assert u.SAFE_LOAD and not u.ONLINE and not u.AUTOINSTALL and u.SETTINGS['sync'] is False\n"
        "assert u.USER_CONFIG_DIR == home and (home / 'Arial.ttf').is_file()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_log_level_silences_progress_bars():
    with session.silence():
        assert TQDM(range(1)).disable


def test_the_settings_that_kd_keeps_to_itself_exist():
    assert OPTION_OF_SETTING.keys() | DECIDED <= utils.DEFAULT_CFG_DICT.keys() | {"save_dir"}
