#!/usr/bin/env bash
# avg@32 on AIME 2025 and 2026, BRUMO 2025 and HMMT 2025 at temperature 0.7, as published.
#   recipes/paper-qwen3-14b/evaluate.sh MODEL OUTPUT [--endpoint http://localhost:8000/v1]
# Thinking is off, as published. MODEL is a run, a folder or a hub id. With a server (vllm serve MODEL) give its address: 4,800 responses of up to
# 8,000 tokens take days in process.
set -euo pipefail
model="${1:?which model: a run, a folder or a hub id}"
output="${2:?where the results go}"
shift 2
exec ctpo eval "$model" --task aime25 --task aime26 --task brumo25 --task hmmt25 \
  --samples 32 --temperature 0.7 --max-tokens 8000 --chat-template-kwargs '{"enable_thinking": false}' --output "$output" "$@"
