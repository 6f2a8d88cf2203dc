#!/usr/bin/env bash
# tidecv 1.0.1 (Python 3.11, Linux x86_64).
#
# The cost of an error is the AP that mending it alone would give. Where a light has a box of the right class that is
# badly placed and a well-placed one of the wrong class, mending the class makes it found, whatever becomes of the other.
# tidecv keeps, per light, only the surest of such boxes over all kinds of errors. If the badly placed one is the surer,
# the class error is counted as a mistake and costs nothing.
# Seen, with two images and two classes, AP50 of all 50.0: image 1 has a light of class 0, a box of class 0 beside it
# (IoU 0.33, score 0.9) and a box of class 1 on it (score 0.8); image 2 has a light of class 1 with a perfect box (0.95).
# With the scores of the first two exchanged, and nothing else, the class error costs:
#
#   badly placed box surer: Cls errors 1, dAP 0.0
#   wrong class surer:      Cls errors 1, dAP 50.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet tidecv==1.0.1 setuptools==80.9.0 opencv-python-headless==5.0.0.93
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
from tidecv import TIDE, Data


def cost(place_score, class_score):
    truth, found = Data("truth"), Data("found")
    for data in (truth, found):
        for image in (1, 2):
            data.add_image(image, str(image))
        for label in (0, 1):
            data.add_class(label, str(label))
    truth.add_ground_truth(1, 0, [0, 0, 20, 20])
    truth.add_ground_truth(2, 1, [0, 0, 20, 20])
    found.add_detection(1, 0, place_score, [10, 0, 20, 20])
    found.add_detection(1, 1, class_score, [0, 0, 20, 20])
    found.add_detection(2, 1, 0.95, [0, 0, 20, 20])
    tide = TIDE()
    run = tide.evaluate(truth, found, mode=TIDE.BOX)
    counts = {kind.short_name: len(errors) for kind, errors in run.error_dict.items()}
    costs = {kind.short_name: value for kind, value in run.fix_main_errors().items()}
    return run.ap, counts, costs


surer_place, surer_class = cost(0.9, 0.8), cost(0.8, 0.9)
for name, (ap, counts, costs) in (("badly placed box surer", surer_place), ("wrong class surer", surer_class)):
    print(f"tidecv 1.0.1, {name}: AP50 {ap:.1f}, Cls errors {counts['Cls']}, dAP {costs['Cls']:.2f}")
assert surer_place[1]["Cls"] == surer_class[1]["Cls"] == 1
assert surer_place[2]["Cls"] == 0.0
assert surer_class[2]["Cls"] > 10
PYTHON
