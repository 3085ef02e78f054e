#!/usr/bin/env bash
# Train with our own trainer on eight GPUs: Accelerate with FSDP2, vLLM beside it.
#   recipes/paper-qwen3-14b/train.sh [KEY=VALUE ...]
set -euo pipefail
recipe="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
exec accelerate launch --config_file "$recipe/accelerate.yaml" -m ctpo.cli.main train "$recipe/train.yaml" "$@"
