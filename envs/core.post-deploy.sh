#!/usr/bin/env bash
# The pinned packages and Claimbench itself, from the project's folder; Snakemake copies core.yaml away from core.lock.
set -euo pipefail
python -m pip install -r envs/core.lock
python -m pip install --no-deps --editable .
