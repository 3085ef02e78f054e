#!/usr/bin/env bash
# Train with verl on Ray and vLLM, eight GPUs of one node (a running Ray cluster is used where RAY_ADDRESS says so).
#   CTPO_DATA=/data/ctpo recipes/paper-qwen3-4b/train_verl.sh [KEY=VALUE ...]
set -euo pipefail
CTPO_RECIPE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${CTPO_DATA:?say where the data go, e.g. CTPO_DATA=/data/ctpo}"
export CTPO_RECIPE CTPO_DATA

[ -f "$CTPO_DATA/deepscaler.parquet" ] || python -m ctpo.adapters.verl_data "$CTPO_DATA"
python -m ctpo.adapters.verl_recipe "$CTPO_RECIPE" "$@"

mapfile -t overrides < <(grep -Ev '^[[:space:]]*(#|$)' "$CTPO_RECIPE/verl.overrides")
exec python -m verl.trainer.main_ppo "${overrides[@]}" "$@"
