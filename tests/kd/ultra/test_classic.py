"""Classic YOLOv5: sizes, outputs and loss as the official repository has them, and its checkpoints read and written."""

from __future__ import annotations

import math
import os
import pickle
import sys
from types import ModuleType, SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra kd")

import numpy as np
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from ultralytics.utils import ASSETS, ROOT
from ultralytics.utils.torch_utils import get_flops

from kd.distillation.teacher import Teacher
from kd.errors import ModelError
from kd.ultra import classic, model_files, models
from kd.ultra.classic.files import read_checkpoint
from kd.ultra.classic.loss import ClassicLoss, match
from tests.kd_fixtures import shared_weights
from tests.kd_models import tiny_classic

TINY = tiny_classic()


@pytest.fixture(scope="module")
def tiny():
    """A small classic model whose batch norms are not the identity."""
    torch.manual_seed(0)
    model = classic.Model(TINY)
    model.names = {0: "red", 1: "green"}
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """It, in the official form."""
    path = tmp_path_factory.mktemp("classic") / "yolov5n.pt"  # a name that Ultralytics reads as yolov5nu.pt
    with classic.official_names():
        torch.save({"model": tiny, "ema": None, "epoch": -1, "best_fitness": np.array([0.3])}, path)
    return path


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize(
    ("scale", "params", "paper"),  # the official repository's counts; GFLOPs as the paper's Table 2 has them
    [("n", 1872157, 4.5), ("s", 7235389, 16.5), ("m", 21190557, 49.0), ("l", 46563709, 109.1), ("x", 86749405, 205.7)],
)
def test_sizes_are_the_papers(scale, params, paper):
    name = f"classic/yolov5{scale}"
    model = model_files.meta_model(classic.read_architecture(name), name)
    assert sum(p.numel() for p in model.parameters()) == params
    with torch.device("meta"):
        assert get_flops(model.fuse(verbose=False), 640) == pytest.approx(paper, rel=0.008)


def test_the_plain_name_stays_anchor_free():
    assert not classic.is_classic("yolov5n")
    assert not classic.is_classic("yolov5n.yaml")
    with pytest.raises(ModelError, match=r"^classic/yolov5q: got no classic model .* classic/yolov5n, .*yolov5x$"):
        models.load_model("classic/yolov5q")


def test_it_begins_with_few_objects_as_the_official_one_does():
    head = classic.Model({**TINY, "nc": 80}).model[-1]
    for layer, stride in zip(head.m, (8, 16, 32), strict=True):
        bias = layer.bias.view(3, 85).detach()
        spread = 1 / math.sqrt(layer.in_channels)  # of a convolution's own first biases
        assert (bias[:, 4] - math.log(8 * (stride / 640) ** 2)).abs().max() <= spread
        assert (bias[:, 5:] - math.log(0.6 / 79.00001)).abs().max() <= spread
        assert bias[:, :4].abs().max() <= spread


def test_a_box_is_decoded_as_the_formula_says():
    head = classic.Model(TINY).model[-1].eval()
    raw = [torch.full((1, 3, 1, 2, 7), -100.0) for _ in range(3)]
    raw[1][0, 2, 0, 1] = torch.tensor([0.0, math.log(3), 0.0, math.log(3), 0.0, math.log(3), -100])
    found = head.decode(raw)[0].T  # [N, 6]; level after level, anchor after anchor
    assert found.shape == (18, 6)
    # x = (2/2 - 0.5 + 1) 16, y = (2 * 3/4 - 0.5 + 0) 16, w = 1^2 * 59, h = 1.5^2 * 119; objectness 1/2, class 3/4
    assert found[6 + 5].tolist() == pytest.approx([24, 16, 59, 267.75, 0.375, 0])
    assert (found[:, 4:].sum(1) > 1e-3).nonzero().flatten().tolist() == [11]


def test_the_heads_anchors_are_a_buffer_that_moves_with_the_model(tiny):
    head = tiny.model[-1]
    assert "model.24.anchors" in tiny.state_dict()
    assert head.priors[16] == ((30, 61), (62, 45), (59, 119))
    half = classic.Model(TINY).half().model[-1]
    assert half.anchors.dtype == torch.float16
    assert half.priors == head.priors


def test_the_official_nano_finds_what_it_finds_there():
    """Its own code gave these scores on Ultralytics' picture, with these weights."""
    yolo = models.load_model(shared_weights("yolov5n.pt"))
    (found,) = yolo.predict(str(ASSETS / "bus.jpg"), imgsz=640, device="cpu", verbose=False)
    names = [found.names[int(label)] for label in found.boxes.cls]
    assert names == ["person"] * 4 + ["bus"]
    assert found.boxes.conf.tolist() == pytest.approx([0.86651, 0.76569, 0.76177, 0.47861, 0.43479], abs=1e-4)


def test_methods_on_heads_compare_what_is_decoded(tiny, written):
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        found, preds = tiny(image)
    teacher = Teacher(str(written), torch.device("cpu"), with_head=True)
    features, (by_stride,) = teacher(image)
    for own, (stride, theirs) in zip(tiny.model[-1].predictions(preds["raw"]), by_stride.items(), strict=True):
        height, width = features[stride].shape[2:]
        row, column = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        centre = torch.stack((column, row)).repeat(1, 3, 1)  # of each anchor's cells
        left_top, right_bottom = own.boxes.split(2, 1)
        sides = (left_top + right_bottom) * stride
        boxes = torch.cat(((centre + (right_bottom - left_top) / 2) * stride, sides), 1)
        scores = own.scores.sigmoid() * own.objectness.sigmoid()
        expected, found = found.split([3 * height * width, found.shape[2] - 3 * height * width], 2)
        torch.testing.assert_close(torch.cat((boxes, scores), 1).flatten(2), expected, rtol=1e-5, atol=1e-4)
        for maps in zip(own, theirs, strict=True):
            torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-4)  # the teacher is folded


def test_an_official_model_yaml_is_an_architecture(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({**TINY, "nc": 3, "anchors": [[4, 9], [8, 18], [16, 36]]}))
    yolo = models.load_model(str(path))
    models.require_student(yolo, str(path))
    assert yolo.model.model[-1].priors == {8: ((4, 9),), 16: ((8, 18),), 32: ((16, 36),)}
    assert yolo.model.yaml["nc"] == 3


# ---------------------------------------------------------------- the loss


def matched(box, anchors=((2.0, 2.0),), height=4, width=4):
    """The (anchor, row, column) that answer for a box, xywh in cells."""
    share = torch.tensor([[0, 1, *box]]) / torch.tensor([1, 1, width, height, width, height])
    found = match(share, torch.tensor(anchors), height, width)
    return list(zip(found.anchor.tolist(), found.row.tolist(), found.column.tolist(), strict=True)), found


@pytest.mark.parametrize(
    ("centre", "places"),
    [
        ((1.3, 1.2), [(1, 1), (1, 0), (0, 1)]),  # left and above are nearer
        ((1.7, 1.2), [(1, 1), (0, 1), (1, 2)]),
        ((1.7, 2.8), [(2, 1), (2, 2), (3, 1)]),
        ((0.3, 3.7), [(3, 0)]),  # at a corner there are none
        ((1.5, 1.5), [(1, 1)]),  # in the very middle neither
        ((4.0, 4.0), [(3, 3), (3, 3), (3, 3)]),  # at the very end
    ],
)
def test_a_box_is_learned_in_its_cell_and_the_two_nearest(centre, places):
    found, _ = matched((*centre, 2.0, 2.0))
    assert [place[1:] for place in found] == places


def test_an_anchor_answers_for_boxes_up_to_four_times_its_sides():
    anchors = ((1.0, 1.0), (2.0, 2.0), (7.9, 2.0), (8.0, 2.0))
    found, level = matched((0.3, 0.3, 2.0, 2.0), anchors)
    assert [place[0] for place in found] == [0, 1, 2]
    assert level.boxes.tolist() == [pytest.approx([0.3, 0.3, 2, 2])] * 3
    assert level.label.tolist() == [1, 1, 1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0.01, 0.99)] * 4), max_size=6))
def test_no_box_is_learned_far_from_its_centre(boxes):
    share = torch.tensor([[i, 0, *box] for i, box in enumerate(boxes)]).reshape(-1, 6)
    anchors = torch.tensor([[1.0, 1.0], [3.0, 2.0]])
    found = match(share, anchors, 5, 7)
    for i, box in enumerate(boxes):
        sides = torch.tensor(box[2:]) * torch.tensor([7.0, 5.0])
        ratios = [sides / anchor for anchor in anchors]
        fitting = [k for k, ratio in enumerate(ratios) if ratio.maximum(1 / ratio).max() < 4]
        mine = found.image == i
        assert sorted(set(found.anchor[mine].tolist())) == fitting
        places = torch.stack(found.place, 1)[mine].unique(dim=0)  # a centre between cells names its own twice
        assert len(fitting) <= len(places) <= 3 * len(fitting)
    assert (found.boxes[:, :2] >= -0.5 - 1e-5).all()
    assert (found.boxes[:, :2] <= 1.5 + 1e-5).all()  # within what the head can say


def loss_of(model, targets, side=64, imgsz=640):
    """The loss and its items on two noisy images; targets [T, 6] image, class, xywh as shares."""
    torch.manual_seed(1)
    targets = torch.tensor(targets).reshape(-1, 6)
    model.args = {"imgsz": imgsz}
    batch = {"batch_idx": targets[:, 0], "cls": targets[:, 1:2], "bboxes": targets[:, 2:]}
    preds = model.train()(torch.rand(2, 3, side, side))
    return (*ClassicLoss(model)(preds, batch), preds)


def naive_loss(raw, head, targets):
    """The published formula, box by box."""
    box, objectness, label = 0.0, 0.0, 0.0
    for output, anchors, balance in zip(raw, head.anchors, (4.0, 1.0, 0.4), strict=True):
        height, width = output.shape[2:4]
        aims, boxes, labels = torch.zeros(output.shape[:4]), [], []
        for image, kind, x, y, w, h in targets:
            x, y, w, h = x * width, y * height, w * width, h * height
            for k, (aw, ah) in enumerate(anchors.tolist()):
                if max(w / aw, aw / w, h / ah, ah / h) >= 4:
                    continue
                cells = {(int(x), int(y))}
                cells |= {(int(x) - 1, int(y))} if x % 1 < 0.5 and x > 1 else set()
                cells |= {(int(x), int(y) - 1)} if y % 1 < 0.5 and y > 1 else set()
                cells |= {(int(x) + 1, int(y))} if x % 1 > 0.5 and x < width - 1 else set()
                cells |= {(int(x), int(y) + 1)} if y % 1 > 0.5 and y < height - 1 else set()
                for column, row in cells:
                    out = output[int(image), k, row, column].detach()
                    px, py = (2 * out[:2].sigmoid() - 0.5 + torch.tensor([column, row])).tolist()
                    pw, ph = ((2 * out[2:4].sigmoid()) ** 2 * torch.tensor([aw, ah])).tolist()
                    iou = complete_iou((px, py, pw, ph), (x, y, w, h))
                    boxes.append(1 - iou)
                    aims[int(image), k, row, column] = max(iou, 0)
                    for j, score in enumerate(out[5:].sigmoid().tolist()):
                        labels.append(-math.log(score if j == kind else 1 - score))
        box += sum(boxes) / len(boxes) if boxes else 0
        label += sum(labels) / len(labels) if labels else 0
        entropy = nn.functional.binary_cross_entropy_with_logits(output[..., 4].detach(), aims)
        objectness += balance * float(entropy)
    return 0.05 * box, objectness, 0.5 * head.nc / 80 * label


def complete_iou(a, b):
    """IoU less the squared distance of the centres and what the aspect ratios differ by (Zheng et al., AAAI 2020)."""
    corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b)]
    low, high = [[f(one[i] for one in corners) for i in range(4)] for f in (min, max)]
    overlap = max(0, low[2] - high[0]) * max(0, low[3] - high[1])
    iou = overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
    diagonal = (high[2] - low[0]) ** 2 + (high[3] - low[1]) ** 2
    distance = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    v = 4 / math.pi**2 * (math.atan(b[2] / b[3]) - math.atan(a[2] / a[3])) ** 2
    return iou - distance / diagonal - v * v / (1 - iou + v + 1e-12)


BOXES = [[0, 1, 0.4, 0.55, 0.3, 0.5], [1, 0, 0.9, 0.05, 0.2, 0.3]]  # far enough apart to share no place


def test_the_loss_is_the_published_formula_summed_box_by_box():
    torch.manual_seed(0)
    model = classic.Model(TINY)
    loss, items, preds = loss_of(model, BOXES)
    assert list(items) == ["box_loss", "obj_loss", "cls_loss"]
    expected = naive_loss(preds["raw"], model.model[-1], BOXES)
    assert [float(item) for item in items.values()] == pytest.approx(expected, rel=1e-4)
    assert loss.tolist() == pytest.approx([2 * float(item) for item in items.values()])


def test_objectness_counts_by_the_area_of_the_training_image():
    torch.manual_seed(0)
    model = classic.Model(TINY)
    (_, whole, _), (_, half, _) = (loss_of(model, BOXES, imgsz=imgsz) for imgsz in (640, 320))
    assert float(half["obj_loss"]) == pytest.approx(float(whole["obj_loss"]) / 4)
    assert float(half["box_loss"]) == pytest.approx(float(whole["box_loss"]))


def test_without_boxes_only_objectness_is_learned():
    model = classic.Model(TINY)
    loss, items, _ = loss_of(model, [])
    assert items["box_loss"] == items["cls_loss"] == 0 < items["obj_loss"]
    loss.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_fourth_level_is_weighted_as_there():
    """The official P6 models, whose layers Ultralytics has too."""
    content = yaml.safe_load((ROOT / "cfg" / "models" / "v5" / "yolov5-p6.yaml").read_text())
    *rows, (source, repeats, _, _) = content["head"]
    anchors = [[4 * 2**i, 5 * 2**i, 9 * 2**i, 7 * 2**i] for i in range(4)]
    small = {"depth_multiple": 0.1, "width_multiple": 0.125, "scales": None, "nc": 2, "anchors": anchors}
    model = classic.Model({**content, **small, "head": [*rows, [source, repeats, "Detect", ["nc", "anchors"]]]})
    assert list(model.model[-1].priors) == [8, 16, 32, 64]
    criterion = ClassicLoss(SimpleNamespace(model=model.model, args={"imgsz": 1280}))
    assert criterion.balance == (4.0, 1.0, 0.25, 0.06)
    assert criterion.gains == pytest.approx((0.05 * 3 / 4, 4 * 3 / 4, 0.5 * 3 / 4 * 2 / 80))
    _, items, _ = loss_of(model, BOXES)
    assert all(item > 0 for item in items.values())


def test_one_class_needs_no_class_loss():
    _, items, _ = loss_of(classic.Model({**TINY, "nc": 1}), [[0, 0, *BOXES[0][2:]]])
    assert items["cls_loss"] == 0 < items["box_loss"]


# ---------------------------------------------------------------- checkpoints


def test_what_is_written_is_read_again(tiny, written):
    assert "models.yolo" not in sys.modules
    yolo = models.load_model(str(written))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(yolo.model(image)[0], tiny(image)[0])
    assert yolo.names == {0: "red", 1: "green"}
    models.require_student(yolo, str(written))


def test_a_pruned_one_is_no_student(tiny, tmp_path):
    path = tmp_path / "pruned.pt"
    model = classic.Model(TINY)
    model.model[13].m = nn.Sequential()
    with classic.official_names():
        torch.save({"model": model}, path)
    with pytest.raises(ModelError, match=r"parameters that is not what its own yaml makes .*, expected an unchanged"):
        models.require_student(models.load_model(str(path)), str(path))


def test_a_users_own_package_of_that_name_comes_back(monkeypatch):
    own = ModuleType("models")
    monkeypatch.setitem(sys.modules, "models", own)
    with classic.official_names():
        assert sys.modules["models"] is not own
        assert sys.modules["models.yolo"].DetectionModel is classic.Model
    assert sys.modules["models"] is own
    assert "models.yolo" not in sys.modules


class _Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("wants", ["models.common.GhostConv", "models.experimental.Ensemble", "models.yolo.Segment"])
def test_another_class_is_refused_by_its_name(tmp_path, wants):
    module, _, name = wants.rpartition(".")
    stranger = type(name, (nn.Module,), {"__module__": module})
    path = tmp_path / "x.pt"
    with classic.official_names():
        sys.modules.setdefault(module, ModuleType(module))
        setattr(sys.modules[module], name, stranger)
        torch.save({"model": classic.Model(TINY), "ema": stranger()}, path)
        sys.modules.pop("models.experimental", None)
    with pytest.raises(ModelError, match=rf"^{path}: got a checkpoint of the official .* that wants {wants}, expected"):
        models.load_model(str(path))


def test_nothing_in_a_checkpoint_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with classic.official_names():
        torch.save({"model": classic.Model(TINY), "opt": _Runs()}, "x.pt")
    with pytest.raises(ModelError, match=r"wants posix.mkdir"):
        models.load_model("x.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"epoch": 1}, {"model": {"a": 1}}, {"model": nn.Conv2d(1, 1, 1)}])
def test_a_checkpoint_without_a_detector_is_no_model(tmp_path, content):
    path = tmp_path / "x.pt"
    with classic.official_names():
        torch.save({**content, "also": classic.Model(TINY).model[0]}, path)
    with pytest.raises(ModelError, match=r"got no usable model .*, expected a checkpoint of the official YOLOv5"):
        read_checkpoint(str(path))


class StandIn(nn.Module):
    """What a module of that form does, from its attributes alone: written after the format, not after kd's code."""

    def forward(self, x):
        return getattr(self, f"as_{type(self).__name__.lower()}")(x)

    def as_conv(self, x):
        return self.act(self.bn(self.conv(x)))

    def as_bottleneck(self, x):
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y

    def as_c3(self, x):
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))

    def as_sppf(self, x):
        pools = [self.cv1(x)]
        for _ in range(3):
            pools.append(self.m(pools[-1]))
        return self.cv2(torch.cat(pools, 1))

    def as_concat(self, x):
        return torch.cat(x, self.d)

    def as_detect(self, x):
        assert (self.no, self.nl, self.na) == (self.nc + 5, len(x), 3)
        assert len(self.grid) == len(self.anchor_grid) == self.nl
        sizes = self.anchors * self.stride.view(-1, 1, 1)
        assert sizes.flatten(1).tolist() == TINY["anchors"]
        return [conv(level) for conv, level in zip(self.m, x, strict=True)]

    def as_model(self, x):
        outputs = []
        for layer in self.model:
            sources = [layer.f] if isinstance(layer.f, int) else layer.f
            inputs = [x if source == -1 else outputs[source] for source in sources]
            x = layer(inputs[0] if isinstance(layer.f, int) else inputs)
            outputs.append(x if layer.i in self.save else None)
        return x


def test_the_official_form_needs_the_formats_classes_alone(tiny, written, monkeypatch):
    for module, names in (
        ("models", ()),
        ("models.common", ("Conv", "Bottleneck", "C3", "SPPF", "Concat")),
        ("models.yolo", ("Detect", "Model")),
    ):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        for name in names:
            setattr(sys.modules[module], name, type(name, (StandIn,), {"__module__": module}))
    found = torch.load(written, weights_only=False)["model"].eval()
    assert type(found).__mro__[1] is StandIn
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        raw = [level.permute(0, 2, 3, 1).flatten() for level in found(image)]
        own = [level.permute(0, 2, 3, 1, 4).flatten() for level in tiny(image)[1]["raw"]]
    assert all(torch.equal(*pair) for pair in zip(raw, own, strict=True))
    assert found.names == {0: "red", 1: "green"}
    assert found.yaml["anchors"] == TINY["anchors"]  # the official trainer builds from it
    assert found.yaml["head"][-1][2:] == ["Detect", ["nc", "anchors"]]


def test_pickle_finds_the_classes_nowhere_else():
    with pytest.raises((pickle.PicklingError, ModuleNotFoundError)):
        pickle.dumps(classic.Model(TINY))
