"""Model cards: what stands in run.json, for a reader; and nothing of the machine's paths."""

from __future__ import annotations

import json

from markdown_it import MarkdownIt

from kd.reports.model_card import model_card
from tests.kd_runs import ADAMW, write_run


def card_of(folder):
    return model_card(json.loads((folder / "run.json").read_text()))


def test_a_card_tells_what_a_plain_run_is(tmp_path):
    card = card_of(write_run(tmp_path / "my_run", (0.6, 0.3)))
    assert card.startswith("---\nlicense: agpl-3.0\n")
    assert "\n# my_run\n" in card
    assert "yolov5n, trained without a teacher, on tiles/data.yaml: 30 epochs at 640 px, batch 16, seed 0." in card
    assert 'YOLO("weights/best.pt").predict("image.jpg", imgsz=640)' in card
    assert "| test | all | 60.0 | 30.0 | 50.0 | 50.0 |" in card
    assert "| val | relevant | 11.0 | 5.0 | - | - |" in card
    assert "train 80, val 10, test 20" in card
    assert "a" * 64 in card
    assert "cpu x86_64, 2 threads, 61 s; dtld-kd 0.1.0, python 3.11, torch 2.15, ultralytics 8.4.190." in card
    assert "AGPL-3.0, which Ultralytics" in card
    assert "Teachers" not in card
    assert "\n## Settings\n\nlr0 0.001667, momentum 0.9, optimizer AdamW, warmup_bias_lr 0.0\n" in card  # no other


def test_a_card_of_a_classic_model_says_what_loads_it(tmp_path):
    card = card_of(write_run(tmp_path / "my_run", (0.6, 0.3), student="classic/yolov5n", anchors={"8": [[4, 9]]}))
    assert 'torch.hub.load("ultralytics/yolov5", "custom", "weights/best.pt")("image.jpg", size=640)' in card
    assert "classic/yolov5n, trained without a teacher" in card
    assert "from ultralytics" not in card


def test_a_card_names_teachers_methods_and_settings_but_no_path(tmp_path):
    folder = tmp_path / "yolov5n" / "fgfi" / "seed3"
    faster = {"settings": {"lr0": 0.1}, "optimizer": {**ADAMW, "lr0": 0.1}}
    card = card_of(write_run(folder, (0.6, 0.3), teacher="big", seed=3, freeze=2, **faster))
    assert "\n# yolov5n/fgfi/seed3\n" in card
    assert "distilled from big" in card
    assert "Methods and weights: fgfi 0.01." in card
    assert f"| big | 100 % | 80.0 | `{'c' * 64}` |" in card
    assert "freeze 2, lr0 0.1" in card
    assert "/somewhere" not in card
    assert str(tmp_path) not in card


def test_a_card_says_where_the_first_weights_are_from(tmp_path):
    card = card_of(write_run(tmp_path / "run", (0.6, 0.3), inherit="big"))
    assert "yolov5n, trained without a teacher, from first weights of big, on tiles/data.yaml" in card
    assert (
        f"Solved from those of big (SHA-256 `{'c' * 64}`), on 80 training images without their labels in 9 s." in card
    )
    assert "the student scored 40.0 mAP50, 20.0 mAP50-95 on val images" in card


def test_a_card_names_the_optimizer_that_was_chosen(tmp_path):
    card = card_of(write_run(tmp_path / "run", (0.6, 0.3), settings={"optimizer": "auto"}, optimizer=ADAMW))
    assert "lr0 0.001667, momentum 0.9, optimizer AdamW, warmup" in card


def test_a_card_is_well_formed_markdown(tmp_path):
    card = card_of(write_run(tmp_path / "run", (0.6, 0.3), teacher="t")).split("---\n", 2)[2]
    tags = [token.type for token in MarkdownIt("commonmark").enable("table").parse(card)]
    assert (tags.count("table_open"), tags.count("fence"), tags.count("heading_open")) == (2, 1, 7)
