#!/usr/bin/env bash
# pillow 13.0.0 with ImageHash 4.3.2, numpy 2.4.6 (Python 3.11, Linux x86_64).
#
# Converting 16-bit grey (mode I;16, as a 16-bit TIFF or PNG is opened) to L does not scale: every value above 255
# becomes 255. ImageHash converts to L first, so perceptual hashes of 12-bit camera frames, whose values lie nearly all
# above 255, are those of a white picture: frames that have nothing in common get the same hash, and no search for near
# duplicates by these hashes can tell them apart. The same frames divided by 16 are told apart. Seen:
#
#   mode I;16, values 300 to 4095; after convert("L"): 255 to 255
#   phash of two unlike frames, 16-bit: 0 of 64 bits differ
#   dhash of two unlike frames, 16-bit: 0 of 64 bits differ
#   phash of two unlike frames, 8-bit: 28 of 64 bits differ
#   dhash of two unlike frames, 8-bit: 31 of 64 bits differ
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet pillow==13.0.0 ImageHash==4.3.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import imagehash
import numpy as np
import PIL
from PIL import Image

print("pillow", PIL.__version__, "imagehash", imagehash.__version__)
rng = np.random.default_rng(0)
for name in ("a", "b"):
    coarse = rng.integers(300, 4096, (8, 8)).astype(np.uint16)
    coarse[0, :2] = 300, 4095
    frame = np.kron(coarse, np.ones((16, 16), np.uint16))
    Image.fromarray(frame).save(f"{name}16.tiff")
    Image.fromarray((frame // 16).astype(np.uint8)).save(f"{name}8.tiff")

opened = Image.open("a16.tiff")
before, after = np.asarray(opened), np.asarray(opened.convert("L"))
print(f'mode {opened.mode}, values {before.min()} to {before.max()}; after convert("L"): {after.min()} to {after.max()}')
differ = {}
for bits in (16, 8):
    for hashed in (imagehash.phash, imagehash.dhash):
        a, b = (hashed(Image.open(f"{name}{bits}.tiff")) for name in ("a", "b"))
        differ[bits, hashed.__name__] = a - b
        print(f"{hashed.__name__} of two unlike frames, {bits}-bit: {a - b} of 64 bits differ")
as_told = (after.min(), after.max()) == (255, 255) and all(
    (count == 0) if bits == 16 else (count > 10) for (bits, _), count in differ.items()
)
if not as_told:
    raise SystemExit("no longer so")
PYTHON
