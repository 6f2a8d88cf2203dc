"""Arms and twins: what tells arms apart, which of several plain runs is the twin, and that a report takes the same."""

from __future__ import annotations

import json

import pytest

from kd.runs.arms import TWINS, arms_of, contrasts_of, pair_by_seed, twins_of, unlike
from kd.runs.record import read_runs
from tests.kd_runs import MUSGD, OTHER_DATA, write_run

OTHERS = {
    "data": {"data": OTHER_DATA}, "epochs": {"epochs": 31}, "imgsz": {"imgsz": 320}, "student": {"student": "yolov5m"},
    "optimizer": {"optimizer": MUSGD}, "batch": {"batch": 8}, "freeze": {"freeze": 3},
    "settings": {"settings": {"cos_lr": True}}, "anchors": {"anchors": {"8": [[4, 9]]}}, "seed": {"seed": 7},
}  # fmt: skip


def test_nothing_to_pair_is_no_pair():
    assert (twins_of([]), arms_of([]), contrasts_of([]), pair_by_seed([], [])) == ([], ([], {}), [], [])


@pytest.mark.parametrize("key", TWINS)
def test_a_key_of_twins_that_differs_is_named_and_makes_other_arms(tmp_path, key):
    write_run(tmp_path / "kd", (0.5, 0.3), teacher="t")
    write_run(tmp_path / "other", (0.5, 0.3), **OTHERS[key])
    taught, other = read_runs(tmp_path)[0]
    assert [name for name, _, _ in unlike(taught, other)] == [key]
    assert twins_of([taught, other]) == []
    pairs = [pair for one in contrasts_of(arms_of([taught, other])[0]) if not one.longer for pair in one.pairs]
    assert pairs == []


def test_the_first_of_equal_plain_runs_is_the_twin_here_and_in_a_report(tmp_path):
    for name, share in (("a", 0.2), ("b", 0.25)):
        write_run(tmp_path / name, (0.5, share))
    write_run(tmp_path / "kd", (0.5, 0.3), teacher="t")
    runs, _ = read_runs(tmp_path)
    (contrast,) = contrasts_of(arms_of(runs)[0])
    assert [pair.baseline.name for pair in twins_of(runs)] == [pair.baseline.name for pair in contrast.pairs] == ["a"]


def test_seeds_taught_by_other_weights_of_one_name_are_other_arms(tmp_path):
    for seed in range(2):
        folder = write_run(tmp_path / "fgfi" / f"seed{seed}", (0.5, 0.3), seed=seed, teacher="t")
        if seed:
            text = (folder / "run.json").read_text()
            (folder / "run.json").write_text(json.dumps(json.loads(text.replace("c" * 64, "d" * 64))))
    assert [len(arm) for arm in arms_of(read_runs(tmp_path)[0])[0]] == [1, 1]


def test_a_run_from_inherited_weights_is_an_arm_of_its_own_and_has_the_plain_twin(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "plain" / f"seed{seed}", (0.5, 0.3), seed=seed)
        write_run(tmp_path / "inherit" / f"seed{seed}", (0.6, 0.4), seed=seed, inherit="t")
        write_run(tmp_path / "both" / f"seed{seed}", (0.6, 0.4), seed=seed, inherit="t", teacher="t")
        write_run(tmp_path / "two" / f"seed{seed}", (0.6, 0.4), seed=seed, inherit="t", teacher="n")
    runs, _ = read_runs(tmp_path)
    arms, _ = arms_of(runs)
    assert [len(arm) for arm in arms] == [2, 2, 2, 2]
    assert arms[0][0].method == "plain"
    assert {(arm[0].method, arm[0].teacher) for arm in arms[1:]} == {
        ("inherited", "t"), ("inherited + fgfi 0.01", "t"), ("inherited from t + fgfi 0.01", "n")
    }  # fmt: skip
    assert {pair.baseline.method for pair in twins_of(runs)} == {"plain"}
    assert [len(one.pairs) for one in contrasts_of(arms)] == [2, 2, 2]


def test_an_account_of_inherited_weights_and_the_option_go_together(tmp_path):
    folder = write_run(tmp_path / "run", (0.6, 0.4), inherit="t")
    record = json.loads((folder / "run.json").read_text())
    del record["inherited"]
    (folder / "run.json").write_text(json.dumps(record))
    _, unfinished = read_runs(tmp_path)
    assert "config.inherit: got /somewhere/t/weights/best.pt, and no account" in unfinished["run"]


def test_where_a_cache_lies_makes_no_other_arm(tmp_path):
    soft = {"teacher": "t", "methods": {"soft-labels": 0.5}}
    write_run(tmp_path / "a", (0.5, 0.3), seed=0, **soft)
    write_run(tmp_path / "b", (0.5, 0.3), seed=1, **soft, teacher_cache="/somewhere/t.npz")
    (arm,) = arms_of(read_runs(tmp_path)[0])[0]
    assert [run.method for run in arm] == ["soft-labels 0.5", "soft-labels 0.5"]
