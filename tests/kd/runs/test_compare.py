"""Comparisons: a worked example, who is paired with whom, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from kd.commands import app
from kd.errors import RunError
from kd.reports.tables import differences_table
from kd.runs.arms import arms_of, contrasts_of, twins_of
from kd.runs.compare import compare, lines
from kd.runs.record import read_runs
from tests.kd_runs import ADAMW, MUSGD, OTHER_DATA, write_run

PLAIN, TAUGHT = (0.30, 0.32, 0.34, 0.30, 0.31), (0.33, 0.33, 0.36, 0.29, 0.34)


def write_arm(folder, shares, *, first=0, **options):
    for seed, share in enumerate(shares, first):
        write_run(folder / f"seed{seed}", (share + 0.3, share), seed=seed, **options)
    return folder


@pytest.fixture
def arms(tmp_path):
    """Five pairs whose differences in points are 3, 1, 2, -1, 3."""
    write_arm(tmp_path / "plain", PLAIN)
    write_arm(tmp_path / "fgfi", TAUGHT, teacher="m")
    return tmp_path


def test_a_worked_example(arms):
    found = compare([arms])
    (result,) = found["comparisons"]
    # differences 3 1 2 -1 3: mean 1.6, deviation sqrt((1.96 + 0.36 + 0.16 + 6.76 + 1.96) / 4), t(4) 2.776
    reach = 2.7764451 * math.sqrt(11.2 / 4) / math.sqrt(5)
    assert result["difference"] == pytest.approx(0.016)
    assert result["interval95"] == pytest.approx([(1.6 - reach) / 100, (1.6 + reach) / 100])
    assert result["signs"] == {"up": 4, "down": 1, "same": 0}
    assert result["means"] == pytest.approx({"runs": 0.330, "baseline": 0.314})
    assert (result["pairs"], result["seeds"], result["split"]) == (5, [0, 1, 2, 3, 4], "test")
    assert result["map50"]["difference"] == pytest.approx(0.016)
    assert result["per_class"]["relevant"]["map50_95"]["interval95"] == pytest.approx(result["interval95"])
    assert result["per_class"]["not_relevant"]["map50"]["difference"] is None  # no score on either side
    assert (result["warnings"], found["warnings"], result["left_out"]) == ([], [], [])
    assert result["verdict"] == "+1.6 points mAP50-95 [-0.5, +3.7], 4 of 5 pairs up: the interval holds zero, " \
        "nothing is shown"  # fmt: skip
    assert found["interval95"] == result["interval95"]  # a sole comparison's keys are at hand
    assert compare([arms / "fgfi"], [arms / "plain"])["comparisons"] == [result]


def test_the_verdict_follows_the_interval(tmp_path):
    write_arm(tmp_path / "plain", (0.30, 0.31, 0.32, 0.33, 0.34))
    write_arm(tmp_path / "up", (0.32, 0.33, 0.34, 0.35, 0.365), teacher="m")
    (up,) = compare([tmp_path])["comparisons"]
    assert up["verdict"] == "+2.1 points mAP50-95 [+1.8, +2.4], 5 of 5 pairs up: better"
    down = compare([tmp_path / "plain"], [tmp_path / "up"])
    assert down["verdict"].endswith("0 of 5 pairs up: worse")
    assert down["difference"] == pytest.approx(-up["difference"])


def test_the_last_checkpoint_counts_unless_the_best_is_asked_for(arms):
    assert compare([arms], checkpoint="best")["means"]["runs"] == pytest.approx(0.34)  # 0.01 above the last


def test_few_pairs_are_warned_of_and_one_has_no_interval(tmp_path):
    write_arm(tmp_path / "plain", PLAIN[:1])
    write_arm(tmp_path / "fgfi", TAUGHT[:1], teacher="m")
    found = compare([tmp_path])
    assert found["interval95"] is None
    assert found["comparisons"][0]["warnings"] == ["1 pair: fewer than 5 prove nothing"]
    assert "no interval" in found["verdict"]


def test_seeds_without_a_partner_are_named_and_left_out(tmp_path):
    write_arm(tmp_path / "plain", PLAIN[:3])
    write_arm(tmp_path / "fgfi", TAUGHT[:3], first=1, teacher="m")
    for found in (compare([tmp_path]), compare([tmp_path / "fgfi"], [tmp_path / "plain"])):
        assert found["seeds"] == [1, 2]
        assert str(tmp_path / "fgfi" / "seed3") in found["left_out"]
        warned = " ".join(found["comparisons"][0]["warnings"])
        assert "fgfi/seed3: seed 3 has no partner" in warned
    assert "plain/seed0: seed 0 has no partner" in warned
    assert found["means"]["baseline"] == pytest.approx((0.32 + 0.34) / 2)  # of the pairs alone


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("data", {"data": OTHER_DATA}), ("epochs", {"epochs": 31}), ("imgsz", {"imgsz": 320}),
        ("student", {"student": "yolov5m"}),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared_are_refused_with_the_first_difference(tmp_path, name, other):
    write_arm(tmp_path / "plain", PLAIN, **other)
    write_arm(tmp_path / "fgfi", TAUGHT, teacher="m")
    for arguments in (([tmp_path],), ([tmp_path / "fgfi"], [tmp_path / "plain"])):
        with pytest.raises(RunError, match=rf"fgfi/seed\d: {name}: got .+, expected .+ as in .+plain/seed\d"):
            compare(*arguments)


@pytest.mark.parametrize("other", [MUSGD, {**ADAMW, "lr0": 0.001666}, {**ADAMW, "momentum": 0.937}])
def test_runs_of_unequal_optimizers_are_refused(tmp_path, other):
    write_arm(tmp_path / "plain", PLAIN, optimizer=other)
    write_arm(tmp_path / "fgfi", TAUGHT, teacher="m", optimizer=ADAMW)
    for arguments in (([tmp_path],), ([tmp_path / "fgfi"], [tmp_path / "plain"])):
        with pytest.raises(RunError, match=rf"fgfi/seed\d: optimizer: got AdamW, lr0 .+ expected {other['name']}, lr"):
            compare(*arguments)
    assert not twins_of(read_runs(tmp_path)[0])


def test_a_run_that_does_not_say_its_optimizer_is_none_of_kd_train(arms):
    path = arms / "plain" / "seed0" / "run.json"
    record = json.loads(path.read_text())
    del record["optimizer"]
    path.write_text(json.dumps(record))
    found = compare([arms])
    assert found["pairs"] == 4
    assert "seed0 is not finished and left out: run.json is none of kd train" in found["warnings"][0]


@pytest.mark.parametrize("pairs", range(1, 7))
@pytest.mark.parametrize("gain", [0.02, -0.02, 0.0])
def test_a_comparison_and_a_report_come_to_the_same_verdict(tmp_path, pairs, gain):
    """Two pairs far from zero prove nothing in either, five do in both."""
    shares = [0.30 + 0.01 * seed for seed in range(pairs)]
    write_arm(tmp_path / "plain", shares)
    noise = [0.001 * (-1) ** seed for seed in range(pairs)]
    write_arm(tmp_path / "fgfi", [s + gain + n for s, n in zip(shares, noise, strict=True)], teacher="m")
    said = compare([tmp_path])["verdict"].rpartition(": ")[2]
    (row,) = differences_table(contrasts_of(arms_of(read_runs(tmp_path)[0])[0])).splitlines()[2:]
    reported = row.split(" | ")[8]
    proven = pairs >= 5 and gain != 0
    assert (said in ("better", "worse")) == (reported in ("better", "worse")) == proven
    if proven:
        assert said == reported == ("better" if gain > 0 else "worse")
    else:
        assert said.endswith("nothing is shown")
        assert reported.startswith("unproven")


def test_an_optimizer_asked_for_by_name_is_the_one_that_auto_chose(tmp_path):
    pinned = {"optimizer": "AdamW", **{key: ADAMW[key] for key in ("lr0", "momentum", "warmup_bias_lr")}}
    write_arm(tmp_path / "longer", PLAIN, epochs=36, optimizer=ADAMW, settings={"cos_lr": True, **pinned})
    write_arm(tmp_path / "fgfi", TAUGHT, teacher="m", optimizer=ADAMW, settings={"cos_lr": True})
    found = compare([tmp_path / "fgfi"], [tmp_path / "longer"], any_epochs=True)["comparisons"][0]
    assert (found["pairs"], [line for line in found["warnings"] if "settings" in line]) == (5, [])
    (contrast,) = contrasts_of(arms_of(read_runs(tmp_path)[0])[0])
    assert contrast.longer
    write_arm(tmp_path / "pinned", PLAIN, optimizer=ADAMW, settings={"cos_lr": True, **pinned})
    assert compare([tmp_path / "fgfi", tmp_path / "pinned"])["pairs"] == 5  # a comparison's rule is the report's


def test_other_epochs_are_compared_when_asked_to_and_said(tmp_path):
    write_arm(tmp_path / "longer", PLAIN, epochs=36)
    write_arm(tmp_path / "fgfi", TAUGHT, teacher="m")
    found = compare([tmp_path / "fgfi"], [tmp_path / "longer"], any_epochs=True)
    assert found["pairs"] == 5
    assert found["mean_wall_time_s"] == {"runs": pytest.approx(61.4), "baseline": pytest.approx(61.4)}


def test_settings_that_differ_are_warned_of(tmp_path):
    write_arm(tmp_path / "plain", PLAIN, batch=8)
    write_arm(tmp_path / "fgfi", TAUGHT, teacher="m")
    warned = compare([tmp_path / "fgfi"], [tmp_path / "plain"])["comparisons"][0]["warnings"]
    assert len(warned) == 1
    assert "fgfi/seed0: batch: 16, but 8 in" in warned[0]
    with pytest.raises(RunError, match="batch: got 16, expected 8"):
        compare([tmp_path])


def test_every_distilled_arm_is_held_against_its_own_twins(arms):
    write_arm(arms / "cwd", (0.5,) * 5, teacher="m", methods={"cwd": 1.0})
    write_arm(arms / "small" / "plain", PLAIN, student="yolov5s")
    found = compare([arms])
    assert [(row["runs"], row["baseline"]) for row in found["comparisons"]] == [
        ("yolov5n from m, cwd 1", "yolov5n, plain"), ("yolov5n from m, fgfi 0.01", "yolov5n, plain"),
    ]  # fmt: skip
    assert "difference" not in found  # of which?
    with pytest.raises(RunError, match=r"method: got fgfi 0\.01, expected cwd 1 as in"):
        compare([arms / "cwd", arms / "fgfi"], [arms / "plain"])


def test_two_runs_of_one_seed_are_refused_and_one_named_twice_is_one(arms):
    assert compare([arms, arms / "fgfi"])["pairs"] == 5
    write_arm(arms / "again", TAUGHT, teacher="m")
    with pytest.raises(RunError, match=r"seed 0: got it in .+ too, expected a run per seed"):
        compare([arms])


def test_nothing_to_compare_is_one_line(tmp_path, arms):
    with pytest.raises(RunError, match="got no runs, expected finished runs"):
        compare([tmp_path / "missing"])
    with pytest.raises(RunError, match="got plain runs alone"):
        compare([arms / "plain"])
    with pytest.raises(RunError, match="got distilled runs alone"):
        compare([arms / "fgfi"])
    with pytest.raises(RunError, match="seeds: got 0, expected some of the baseline's 1"):
        compare([arms / "fgfi" / "seed0"], [arms / "plain" / "seed1"])
    (arms / "plain" / "seed0" / "run.json").unlink()
    assert "seed0 is not finished and left out: 0 of 30" in compare([arms / "fgfi"], [arms / "plain"])["warnings"][0]


def test_the_command_takes_patterns_on_both_sides_and_warns_on_stderr(arms):
    runs, baseline = (sorted(map(str, (arms / name).iterdir()))[:3] for name in ("fgfi", "plain"))
    done = CliRunner().invoke(app, ["compare", *runs, "--baseline", *baseline, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["pairs"], found["signs"]) == (3, {"up": 3, "down": 0, "same": 0})
    assert done.stderr == "warning: 3 pairs: fewer than 5 prove nothing\n"
    assert CliRunner().invoke(app, ["compare", *runs, "--baseline"]).exit_code == 2


def test_the_text_is_a_table_and_a_verdict(arms):
    text = lines(compare([arms]))
    assert text[:2] == [
        "yolov5n from m, fgfi 0.01, against yolov5n, plain",
        "test, last checkpoint, seeds 0, 1, 2, 3, 4",
    ]
    assert text[3].split() == ["mAP50-95", "all", "31.4", "33.0", "+1.6", "[-0.5,", "+3.7]", "4", "of", "5"]
    assert len({len(line) for line in text[2:8]}) == 1  # aligned
    assert text[-1].startswith("+1.6 points mAP50-95")
