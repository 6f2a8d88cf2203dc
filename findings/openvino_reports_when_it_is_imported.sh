#!/usr/bin/env bash
# openvino 2026.4.1 with openvino-telemetry, which it requires (Python 3.11, Linux x86_64, CPU).
#
# `import openvino` alone sends an event to Google Analytics and writes an identifier of this user to
# ~/intel/openvino_ga_cid, without being asked: a missing consent file counts as consent. Nothing but that package decides:
# where its import fails, OpenVINO and NNCF have a stub for it.
# Seen, in an empty home folder: what is sent is caught before it leaves.
#
#   import openvino: ('ov', 'import', 'general_import'), consent: True; files: openvino_ga_cid, stats
#   the same with sys.modules["openvino_telemetry"] = None: nothing; files: none
#
# A consent file that holds 0 (`opt_in_out --opt_out`) or CI=true in the environment turn it off, too.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet openvino==2026.4.1
cat > "$work/imported.py" <<'PYTHON'
import sys
from pathlib import Path

sent = []
if "blocked" in sys.argv:
    sys.modules["openvino_telemetry"] = None
else:
    from openvino_telemetry.main import Telemetry

    Telemetry.send_event = lambda self, *event, **_: sent.append((event, self.consent))
import openvino

files = sorted(path.name for path in (Path.home() / "intel").glob("*"))
print(f"openvino {openvino.__version__.partition('-')[0]}: sent {sent}, files {files}")
if "blocked" in sys.argv:
    assert not sent and not files
else:
    assert sent == [(("ov", "import", "general_import"), True)] and "openvino_ga_cid" in files, (sent, files)
PYTHON
cd "$work"
for how in by-default blocked; do
    mkdir "$how"
    env -u CI -u TF_BUILD -u JENKINS_URL HOME="$work/$how" "$work/venv/bin/python" imported.py "$how"
done
