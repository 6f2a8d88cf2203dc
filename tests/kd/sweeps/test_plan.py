"""Plans: what they expand to, what they may not say, and which plan may continue another one's folder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra kd")
import yaml

from kd.errors import PlanError, UsageError
from kd.reports.published import read_published
from kd.sweeps.plan import SHIPPED, arguments, expand, read_plan, require_extends, student_name
from kd.sweeps.sweep import sweep

PLAN = {
    "data": "data.yaml",
    "settings": {"epochs": 30, "imgsz": 320, "set": {"lr0": 0.01, "optimizer": "AdamW"}},
    "teachers": {
        "m": {"student": "yolov5m", "epochs": 40, "set": {"lr0": 0.02}},
        "given": {"weights": "given.pt"},
        "s": {"plain": "yolov5s"},
    },
    "students": ["yolov5n", "yolov5s"],
    "arms": {
        "plain": {},
        "fgfi": {"teacher": "m", "method": {"fgfi": 0.1, "cwd": 1}},
        "given": {"teacher": "given", "method": "built-in", "students": ["yolov5n"]},
        "taught": {"teacher": "s", "inherit": "m", "students": ["yolov5n"]},
        "control": {"inherit": {"random": "yolov5m"}, "students": ["yolov5n"]},
        "random": {"teacher": {"random": "yolov5m"}, "students": ["yolov5n"]},
        "longer": {"wall_time_of": "fgfi", "students": ["yolov5n"]},
    },
    "seeds": [3, 1],
}


@pytest.fixture
def write(tmp_path):
    """Write a plan beside the files that it names; the answer is its path."""
    (tmp_path / "data.yaml").touch()
    (tmp_path / "given.pt").touch()

    def write(plan):
        path = tmp_path / "plan.yaml"
        path.write_text(plan if isinstance(plan, str) else yaml.safe_dump(plan, sort_keys=False))
        return path

    return write


def changed(**keys):
    """The plan with other values at dotted keys (``__`` for a dot); None takes the key away."""
    plan = copy.deepcopy(PLAN)
    for key, value in keys.items():
        *path, last = key.split("__")
        at = plan
        for step in path:
            at = at[step]
        if value is None:
            del at[last]
        else:
            at[last] = value
    return plan


def test_a_worked_example(write, tmp_path):
    jobs = {job.name: job for job in expand(read_plan(write(PLAN)))}
    arms = ["plain", "fgfi", "given", "taught", "control", "random", "longer"]
    assert jobs.keys() == {
        "teachers/m",
        *(f"runs/yolov5n/{arm}/seed{seed}" for arm in arms for seed in (3, 1)),
        *(f"runs/yolov5s/{arm}/seed{seed}" for arm in arms[:2] for seed in (3, 1)),
    }
    data = {"data": str(tmp_path / "data.yaml"), "imgsz": 320}
    own = {"lr0": 0.02, "optimizer": "AdamW"}
    assert jobs["teachers/m"].options == {**data, "epochs": 40, "set": own, "student": "yolov5m", "seed": 0}
    common = {**data, "epochs": 30, "set": {"lr0": 0.01, "optimizer": "AdamW"}, "student": "yolov5n", "seed": 1}
    run = {arm: jobs[f"runs/yolov5n/{arm}/seed1"] for arm in arms}
    assert run["plain"].options == common
    assert run["fgfi"].options == {**common, "method": {"fgfi": 0.1, "cwd": 1}}
    assert (run["fgfi"].models, run["fgfi"].resumable) == ({"teacher": "teachers/m"}, True)
    assert run["given"].options == {**common, "method": "built-in", "teacher": str(tmp_path / "given.pt")}
    assert (run["given"].models, run["given"].resumable) == ({}, False)
    assert run["taught"].models == {"teacher": "runs/yolov5s/plain/seed3", "inherit": "teachers/m"}  # the first seed's
    assert run["taught"].options_in(tmp_path)["inherit"] == str(tmp_path / "teachers/m/weights/best.pt")
    assert run["control"].options == {**common, "inherit": "yolov5m", "allow-weak-teacher": True}
    assert run["random"].options == {**common, "teacher": "yolov5m", "allow-weak-teacher": True}
    assert run["longer"].options == common
    assert run["longer"].time_of == ("runs/yolov5n/fgfi/seed1", "runs/yolov5n/plain/seed1")


def test_every_run_comes_after_those_it_needs_and_seeds_are_finished_one_by_one(write):
    jobs = expand(read_plan(write(PLAN)))
    place = {job.name: i for i, job in enumerate(jobs)}
    assert all(place[other] < place[job.name] for job in jobs for other in job.after)
    assert any(job.after for job in jobs)
    assert [job.name[-5:] for job in jobs[1:]] == ["seed3"] * 9 + ["seed1"] * 9


def test_options_become_words():
    options = {"epochs": 3, "set": {"cos_lr": True, "betas": [1, 2]}, "method": ["cwd", "pkd=2"], "quiet": False}
    words = "--epochs 3 --set cos_lr=True --set betas=[1, 2] --method cwd --method pkd=2"
    assert " ".join(arguments(options)) == words
    assert student_name("a/b/yolov8p.yaml") == "yolov8p"
    assert student_name("yolov5n") == "yolov5n"


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_shipped_plans_hold(write, tmp_path, name):
    jobs = expand(read_plan(name, tmp_path / write(PLAN).with_name("data.yaml")))
    count = {"paper": 2 * (5 + 2 + 3 + 3), "cpu": 1 + 4 * 5, "gpu": 1 + 4 * 3, "demo": 1 + 2 * 2}
    assert len(jobs) == count[name]
    assert all(not path.endswith(".yaml") or Path(path).is_file() for path in (job.options["student"] for job in jobs))


def test_the_papers_plan_has_the_rows_of_its_tables(tmp_path, write):
    jobs = expand(read_plan("paper", tmp_path / write(PLAN).with_name("data.yaml")))
    found = {(job.options["student"], job.models.get("teacher")) for job in jobs}
    rows = {
        (f"classic/{row.model}", row.teacher and f"runs/classic-{row.teacher}/plain/seed0")
        for row in read_published("paper")
    }
    assert found == rows
    assert all(job.options["epochs"] == 30 and job.options["imgsz"] == 640 for job in jobs)


def test_models_start_from_the_checkpoints_of_their_names_in_a_folder(tmp_path, write, monkeypatch):
    (tmp_path / "w").mkdir()
    for name in ("yolov5n", "p", "yolov8s"):
        (tmp_path / "w" / f"{name}.pt").touch()
    (tmp_path / "p.yaml").write_text("")
    (tmp_path / "own.pt").touch()
    plan = {
        **PLAN,
        "pretrained": "w",
        "students": ["classic/yolov5n", "p.yaml", "own.pt"],
        "teachers": {"s": {"student": "yolov8s"}, "other": {"student": "yolov8s", "set": {"pretrained": False}}},
        "arms": {"plain": {}, "born": {"inherit": "s"}, "told": {"teacher": "s"}},
        "seeds": [0],
    }
    monkeypatch.setattr("kd.sweeps.plan._check_runs", lambda *_: None)  # the files are empty
    from_folder = {
        job.name: job.options.get("set", {}).get("pretrained") for job in expand(read_plan(write(plan), None))
    }
    folder = str(tmp_path / "w")
    assert from_folder == {
        "teachers/s": f"{folder}/yolov8s.pt",
        "teachers/other": False,
        **{f"runs/classic-yolov5n/{arm}/seed0": f"{folder}/yolov5n.pt" for arm in ("plain", "told")},
        **{f"runs/p/{arm}/seed0": f"{folder}/p.pt" for arm in ("plain", "told")},
        **{f"runs/own/{arm}/seed0": None for arm in ("plain", "told")},
        **{f"runs/{name}/born/seed0": None for name in ("classic-yolov5n", "p", "own")},
    }
    monkeypatch.chdir(tmp_path)
    del plan["pretrained"]
    assert read_plan(write(plan), None, ["pretrained=w"])["pretrained"] == folder
    (tmp_path / "w" / "p.pt").unlink()
    with pytest.raises(PlanError, match=r"pretrained: got no .*p\.pt, expected the weights of .*p\.yaml there"):
        read_plan(write(plan), None, ["pretrained=w"])


def test_published_rows_are_looked_at_before_the_first_run(write, tmp_path):
    (tmp_path / "rows.yaml").write_text("- {model: x, map50_95: 31, source: s}")
    assert read_plan(write({**PLAN, "published": "rows.yaml"}))["published"] == str(tmp_path / "rows.yaml")
    assert read_plan("paper", tmp_path / "data.yaml")["published"] == "paper"
    with pytest.raises(PlanError, match=r"published: none\.yaml: got No such file"):
        read_plan(write({**PLAN, "published": "none.yaml"}))


def test_changes_go_before_the_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.pt").touch()
    changes = ["settings.epochs=3", "teachers.m.student=other.pt", "seeds=[7]", "settings.set.mosaic=0"]
    jobs = {job.name: job for job in expand(read_plan(write(PLAN), changes=changes))}
    assert jobs["teachers/m"].options["student"] == str(tmp_path / "other.pt")
    assert jobs["runs/yolov5n/plain/seed7"].options["epochs"] == 3
    assert jobs["runs/yolov5n/plain/seed7"].options["set"]["mosaic"] == 0
    assert len(jobs) == 10
    for change, message in (
        ("epochs", "expected KEY=VALUE"),
        ("seeds.a=1", "got a key below seeds"),
        ("a=[", "a YAML"),
    ):
        with pytest.raises(UsageError, match=message):
            read_plan(write(PLAN), changes=[change])


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("train: images/train\nval: images/val\nnames: {0: red, 1: green}\n", "the keys train, val, names"),
        ("[1, 2]", r"\[1, 2\]"),
        ("", "None"),
    ],
)
def test_what_is_no_plan_at_all_is_told_from_one(tmp_path, text, got):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(PlanError, match=rf"data\.yaml: got {got}, expected a plan, .+ data\.yaml is given by --data"):
        read_plan(tmp_path / "data.yaml")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"students": None}, r"plan.yaml: the plan: got .+ must contain \['students'"),
        ({"seeds": [0, 0]}, r"seeds: got \[0, 0\]"),
        ({"seeds": ["a"]}, r"seeds\.0: got a"),
        ({"settings__epochs": "many"}, r"settings\.epochs: got many"),
        ({"settings__epocs": 3}, "settings: got epocs, expected an option of kd train such as epochs"),
        ({"arms__fgfi__seed": 3}, "arms.fgfi: got seed, expected an option"),
        ({"arms__fgfi__method": {"fgfi": "a"}}, r"arms\.fgfi\.method\.fgfi: got a"),
        ({"arms__fgfi__method": "fgfj"}, r"runs/yolov5n/fgfi/seed3: --method: got 'fgfj', expected fgfi"),
        ({"arms__fgfi__schedule": "linear"}, r"runs/yolov5n/fgfi/seed3: --schedule: got 'linear', expected one of"),
        ({"arms__fgfi__method": "cwd", "arms__fgfi__balance": -3}, r"fgfi/seed3: --balance: got -3, expected a ratio"),
        ({"arms__fgfi__balance": 0.1}, r"--balance: got it with fgfi=0\.1, cwd=1, expected methods without weights"),
        ({"arms__fgfi__fgfi": ["kernel=2"]}, r"fgfi/seed3: --fgfi kernel: got 2, expected 1 or 3"),
        ({"arms__fgfi__priors": "no.json"}, r"fgfi/seed3: no\.json: No such file"),
        ({"arms__plain__epochs": 0}, r"arms\.plain\.epochs: got 0, must be bigger"),
        ({"arms__fgfi__imgsz": 100}, r"--imgsz: got 100, expected a multiple of 32"),
        ({"arms__random__set": {"lr": 1}}, r"--set lr: got no training argument of Ultralytics"),
        ({"arms__taught__teacher": "m", "arms__taught__method": {"built-in": 1, "cwd": 1}}, "expected built-in alone"),
        ({"arms__fgfi__teacher": "x"}, r"arms\.fgfi\.teacher: got x, expected one of m, given, s"),
        ({"arms__taught__inherit": "x"}, r"arms\.taught\.inherit: got x, expected one of m, given, s"),
        ({"arms__plain__inherit": "m"}, r"arms\.plain: got inherit, expected no teacher"),
        ({"settings__inherit": "m.pt"}, "settings: got inherit, expected an option of kd train such as"),
        ({"arms__random__teacher": {"rando": "x"}}, r"arms\.random\.teacher"),
        ({"arms__longer__wall_time_of": "plain"}, r"wall_time_of: got plain, expected an arm with a teacher"),
        ({"arms__longer__wall_time_of": "given", "arms__longer__students": None}, "got yolov5s, expected students of"),
        ({"arms__longer__epochs": 3}, "expected neither teacher nor epochs"),
        ({"arms__plain__teacher": "m"}, r"arms\.plain: got teacher, expected no teacher"),
        ({"arms__plain": None}, r"arms: got .+ must contain \['plain'\]"),
        ({"arms__fgfi__teacher": None}, "a method without a teacher"),
        ({"arms__given__students": ["yolov5x"]}, "got yolov5x, expected one of yolov5n, yolov5s"),
        ({"teachers__m__weights": "given.pt"}, "got student, weights, expected one of"),
        ({"teachers__given__weights": "no.pt"}, r"given\.weights: got no.pt, expected a file"),
        ({"teachers__given__epochs": 3}, "expected weights alone"),
        ({"teachers__s__plain": "yolov5x"}, "got yolov5x, expected a student with a plain run"),
        ({"data": None}, "data: got none, expected a data.yaml"),
        ({"data": "no.yaml"}, "data: got no.yaml, expected a file that is there"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_a_plan_may_not_say(write, keys, message):
    read_plan(write(PLAN))
    with pytest.raises(PlanError, match=message):
        read_plan(write(changed(**keys)))


def test_a_plan_is_refused_whole_before_its_first_run(write, tmp_path):
    """As it was once: found by the child process of the arm, when its teacher had been trained."""
    wrong = {"teacher": "m", "method": "fgfj", "schedule": "linear", "balance": -3}
    with pytest.raises(PlanError, match=r"plan\.yaml: runs/yolov5n/fgfi/seed3: --method: got 'fgfj'"):
        sweep(write(changed(arms__fgfi=wrong)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "a: *b"])
def test_what_is_no_plan(write, text):
    with pytest.raises(PlanError, match=r"plan\.yaml: "):
        read_plan(write(text))


def test_an_unknown_plan_names_the_shipped_ones():
    with pytest.raises(PlanError, match="no such file, expected a plan, or the name of one: cpu, demo, gpu, paper"):
        read_plan("gpus")


def test_a_plan_may_grow_and_nothing_else(write, tmp_path):
    before = expand(read_plan(write(PLAN)))
    for more in ({"seeds": [3, 1, 5]}, {"arms__cwd": {"teacher": "m", "method": "cwd"}}, {"settings__device": "cpu"}):
        require_extends(before, expand(read_plan(write(changed(**more)))), tmp_path)
    for other, message in (
        ({"seeds": [3]}, "without runs/yolov5n/plain/seed1, expected all runs"),
        ({"settings__imgsz": 640}, "teachers/m: imgsz: got 640, expected 320"),
        ({"seeds": [1, 3]}, "teacher: got runs/yolov5s/plain/seed1, expected runs/yolov5s/plain/seed3"),
        ({"arms__longer__wall_time_of": "taught"}, "the time of: got runs/yolov5n/taught/seed3"),
    ):
        with pytest.raises(PlanError, match=message):
            require_extends(before, expand(read_plan(write(changed(**other)))), tmp_path)


def test_options_about_the_data_reach_every_run_of_a_plan(write):
    settings = {**PLAN["settings"], "skip_bad_labels": True, "allow-overlap": True}
    for job in expand(read_plan(write({**PLAN, "settings": settings}))):
        assert {"--skip-bad-labels", "--allow-overlap"} <= set(arguments(job.options)), job.name


def test_runs_share_what_one_teacher_says_at_one_size_of_the_same_images(write, tmp_path):
    soft = {"teacher": "given", "method": "soft-labels"}
    arms = {
        "plain": {}, "soft": soft, "weighed": {**soft, "method": {"soft-labels": 0.2}}, "own": {**soft, "imgsz": 192},
        "other": {**soft, "teacher": "m"}, "fewer": {**soft, "set": {"fraction": 0.5}},
        "named": {**soft, "teacher-cache": "mine.npz"},
    }  # fmt: skip
    jobs = expand(read_plan(write(changed(arms=arms, students=["yolov5n"], teachers__s=None))))
    options = {job.name.removeprefix("runs/yolov5n/"): job.options_in(tmp_path) for job in jobs}
    caches = {name: given.get("teacher-cache") for name, given in options.items()}
    shared = caches["soft/seed3"]
    assert (tmp_path / "caches") in Path(shared).parents
    assert {caches[f"{arm}/seed{seed}"] for arm in ("soft", "weighed") for seed in (3, 1)} == {shared}
    assert len({caches[f"{arm}/seed3"] for arm in ("soft", "own", "other", "fewer", "named")}) == 5
    assert caches["named/seed1"] == "mine.npz"
    assert caches["plain/seed1"] is None
