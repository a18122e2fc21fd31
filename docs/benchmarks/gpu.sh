#!/usr/bin/env bash
# LLaDA-8B's speed on one 80 GB GPU in one call: random weights, prompt 200, canvas 256 in blocks of
# 32, bfloat16, 8 tokens per step (NFE 32). Stages, the most important first; each is stopped when its
# time is over, and what was measured before is kept in the folder OUT.
#
#   FAST_DLLM=... LLADA=... docs/benchmarks/gpu.sh [OUT]     see llada_reference.py
#
# Without the two clones the stage with the public PyTorch sampler is left out.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-gpu}
mkdir -p "$out"

stage() { # NAME SECONDS ARGUMENTS...
    local name=$1 seconds=$2
    shift 2
    echo "--- $name"
    timeout "$seconds" python -m jax_unmask.bench --preset=llada-8b --repeats=1 \
        --policy=top_confidence:tokens_per_step=8 --json="$out/$name.json" "$@" |
        tee "$out/$name.txt" || echo "$name: failed, or longer than $seconds s"
}

stage rollouts-8 100 --batch_sizes=8 --cache=none --cache=dual --count
stage rollouts-64 120 --batch_sizes=64 --cache=none --cache=dual
stage rollouts-1 60 --batch_sizes=1 --cache=none --cache=dual
if [[ -n ${FAST_DLLM:-} && -n ${LLADA:-} ]]; then
    stage beside-public 120 --batch_sizes=8 --cache=none --reference="$here/llada_reference.py"
fi
stage slots 75 --batch_sizes=64 --slots=32 --cache=dual
