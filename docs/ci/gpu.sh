#!/usr/bin/env bash
# One gated run on this machine's GPUs, for a CI job or a scheduler's job script. Run it in a checkout
# of pytest-autoquant.
#
#   BASELINE   folder of blessed manifests, outside what the CI system cleans; must be given
#   MODEL      what --aq-model takes              (default: the embedded model)
#   SELECTION  further pytest arguments           (default: every size)
#   OUT        where reports go                   (default: out)
#   BLESS      1: write the baselines instead of comparing with them
#
# Exits with pytest's status: 0 when nothing drifted, failed or got lost.
set -euo pipefail
: "${BASELINE:?must name the folder of blessed manifests}"

python3 -m venv .venv
. .venv/bin/activate
pip install --quiet -c constraints.txt -e ".[measure]" pytest-benchmark
aq-harness doctor

bless=()
[ "${BLESS:-0}" = 1 ] && bless=(--aq-update-baseline)

# SELECTION is a list of arguments, so it is split on purpose.
# shellcheck disable=SC2086
pytest cases -n auto --gpu-only \
    --aq-model="${MODEL:-tiny-qwen3-vl}" ${SELECTION:-} \
    --aq-report-dir="${OUT:-out}" --aq-baseline="$BASELINE" "${bless[@]}" \
    --junitxml=sensitivity.xml

# Time and memory, as ratios: compared with what the blessing run saved.
cost=(--benchmark-compare --benchmark-compare-fail=min:50%)
[ "${BLESS:-0}" = 1 ] && cost=(--benchmark-save=blessed)
pytest benchmarks/bench_cost.py --benchmark-storage="file://$BASELINE/cost" "${cost[@]}"
