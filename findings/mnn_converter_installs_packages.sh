#!/usr/bin/env bash
# MNN 3.6.1 (Python 3.11, Linux x86_64, CPU).
#
# `from MNN.tools import mnnconvert`, as exporters of detectors do to write a .mnn, changes the environment that it runs
# in: it calls `pip install -U aliyun-log-python-sdk` where that package is missing, with the first pip on the PATH, and
# asks a server for credentials to log with. Nobody is asked. The package brings a dozen others and wants protobuf below
# 6: in an environment with onnx 1.23, which needs protobuf 6.31 or later, `import onnx` fails from then on.
# Seen, with a pip on the PATH that only writes down what it is asked for, and urlopen that only counts its calls:
#
#   by itself: pip asked for: install -U aliyun-log-python-sdk
#   once that package is there: 1 address opened
#   with sys.modules["MNN.tools.utils.log"] = None: nothing asked for or opened, and the converter is there
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet MNN==3.6.1 numpy==2.4.6
mkdir "$work/bin"
printf '#!/bin/sh\necho "$@" >> "%s/asked"\n' "$work" > "$work/bin/pip"
chmod +x "$work/bin/pip"
cat > "$work/imported.py" <<'PYTHON'
import sys
import types
import urllib.request
from pathlib import Path

how, folder = sys.argv[1], Path(sys.argv[0]).parent
opened = []
urllib.request.urlopen = lambda request: opened.append(request)
if how == "there":  # the package that it looks for, empty
    for name in ("aliyun", "aliyun.log", "aliyun.log.logitem"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["aliyun.log"].LogClient = sys.modules["aliyun.log"].PutLogsRequest = object
    sys.modules["aliyun.log.logitem"].LogItem = object
if how == "blocked":
    sys.modules["MNN.tools.utils.log"] = None
from MNN.tools import mnnconvert

asked = folder / "asked"
pip = asked.read_text().split("\n")[0] if asked.exists() else ""
asked.unlink(missing_ok=True)
print(f"{how}: pip asked for {pip!r}, {len(opened)} addresses opened, converter {callable(mnnconvert.convert)}")
expected = {"by-default": ("install -U aliyun-log-python-sdk", 0), "there": ("", 1), "blocked": ("", 0)}[how]
assert (pip, len(opened)) == expected and callable(mnnconvert.convert), (pip, opened)
PYTHON
for how in by-default there blocked; do
    PATH="$work/bin:$PATH" "$work/venv/bin/python" "$work/imported.py" "$how" | tail -1
done
