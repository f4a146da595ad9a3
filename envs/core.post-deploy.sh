#!/usr/bin/env bash
# The locked packages, torch's build for this machine (or for DEVICE) and Claimbench itself, from the project's folder.
set -euo pipefail
python -P src/claimbench/workflow/installing.py --device "${DEVICE:-auto}" core
python -m pip install --no-deps --no-build-isolation --editable .
