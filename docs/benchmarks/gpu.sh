#!/usr/bin/env bash
# Everything about LLaDA-8B's speed on one 80 GB GPU in one call of about ten minutes: random weights,
# prompt 200, canvas 256 in blocks of 32, bfloat16, 8 tokens per step (NFE 32); 1, 8 and 64 sequences;
# without a cache, beside the public PyTorch sampler on the same weights, and with the dual cache.
#
#   FAST_DLLM=... LLADA=... docs/benchmarks/gpu.sh [OUTPUT.json]     see llada_reference.py
#
# Without PyTorch or the two clones, leave --reference out of the command.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec python -m jax_unmask.bench --preset=llada-8b --batch_sizes=1,8,64 --cache=none --cache=dual \
    --policy=top_confidence:tokens_per_step=8 --repeats=1 --count \
    --reference="$here/llada_reference.py" --json="${1:-gpu.json}"
