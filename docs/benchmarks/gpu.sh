#!/usr/bin/env bash
# LLaDA-8B's speed on one GPU of 80 GB in one call of under eight minutes: random weights, prompt 200,
# canvas 256 in blocks of 32, bfloat16, 8 tokens per step (NFE 32). Nothing is downloaded. Stages, the
# most important first; each is stopped when its time is over, and those that LIMIT (470 seconds) leaves
# no time for are left out. A stage has more time where LIMIT is more. Each case is in the folder OUT as
# soon as it is measured.
#
#   docs/benchmarks/gpu.sh [OUT]
#   FAST_DLLM=... LLADA=... docs/benchmarks/gpu.sh [OUT]     beside the public sampler, see llada_reference.py
#   LIMIT=1800 PRESET=tiny docs/benchmarks/gpu.sh [OUT]      a rehearsal of all stages with a tiny model
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-gpu}
preset=${PRESET:-llada-8b}
limit=${LIMIT:-470}
mkdir -p "$out"
# Programs that two stages share are compiled once.
export HF_HUB_OFFLINE=1 JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(cd "$out" && pwd)/compiled}
echo "stage seconds result" >"$out/stages.txt"

run() { # NAME SECONDS ARGUMENTS...
    local name=$1 seconds=$(($2 * limit / 470)) began=$SECONDS left=$((limit - SECONDS)) result="done"
    shift 2
    if ((left < 15)); then
        echo "$name 0 left out: no time" | tee -a "$out/stages.txt"
        return
    fi
    ((seconds > left)) && seconds=$left
    echo "--- $name"
    timeout --kill-after=5 "$seconds" python -m jax_unmask.bench --json="$out/$name.json" "$@" \
        2>&1 | tee "$out/$name.txt" || result="failed, or longer than $seconds s"
    echo "$name $((SECONDS - began)) $result" | tee -a "$out/stages.txt"
}

stage() { # NAME SECONDS ARGUMENTS...
    run "$1" "$2" --preset="$preset" --repeats=1 --policy=top_confidence:tokens_per_step=8 "${@:3}"
}

nvidia-smi >"$out/device.txt" 2>&1 || true
stage rollouts-8 160 --batch_sizes=8 --cache=none --cache=dual
stage rollouts-64 140 --batch_sizes=64 --cache=none --cache=dual
if [[ -n ${FAST_DLLM:-} && -n ${LLADA:-} ]]; then
    stage beside-public 130 --batch_sizes=8 --cache=none --reference="$here/llada_reference.py"
fi
stage rollouts-1 100 --batch_sizes=1 --cache=none --cache=dual
stage slots 90 --batch_sizes=64 --slots=32 --cache=dual
run policy-grpo 60 --breakdown --config=quickstart --steps=3
stage int8 90 --batch_sizes=64 --cache=none --quantization=int8
