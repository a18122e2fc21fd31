#!/usr/bin/env bash
# LLaDA-8B's speed on one GPU of 80 GB or more, beside published figures and our goals, in one call of
# under eight minutes: random weights, prompt 200, canvas 256 in blocks of 32, bfloat16.
#
#   docs/benchmarks/gpu.sh [OUT]
#   LIMIT=1800 PRESET=tiny docs/benchmarks/gpu.sh [OUT]      a rehearsal of all stages with a tiny model
#
# OUT/table.md and OUT/table.json have each figure beside its goal (gpu.py makes them). A stage starts only
# if all of its time is left of LIMIT (470 seconds), and is stopped when its time is over. The first four
# always fit; the others take what these leave. A stage has more time where LIMIT is more. Each case is in
# OUT as soon as it is measured.
#
# Beside the public sampler where PyTorch and einops are installed: FAST_DLLM and LLADA name clones of its two
# repositories (see llada_reference.py). Where they name none, both are fetched before the time starts.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-gpu}
preset=${PRESET:-llada-8b}
limit=${LIMIT:-470}
mkdir -p "$out"
# Programs that two stages share are compiled once.
export HF_HUB_OFFLINE=1 JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(cd "$out" && pwd)/compiled}

fetch() { # FOLDER REPOSITORY COMMIT
    [[ -s $1/.git/FETCH_HEAD ]] || { git init -q "$1" && git -C "$1" fetch -q --depth=1 "$2" "$3"; } || return
    git -C "$1" checkout -q FETCH_HEAD
}

public=""
if ! python -c "import einops, torch" 2>/dev/null; then
    public="PyTorch or einops is not installed"
elif [[ -z ${FAST_DLLM:-} || -z ${LLADA:-} ]]; then
    sources=$(cd "$out" && pwd)/public
    export GIT_TERMINAL_PROMPT=0 FAST_DLLM=$sources/fast_dllm/llada LLADA=$sources/llada
    fetch "$sources/fast_dllm" https://github.com/NVlabs/Fast-dLLM 24cc59e75f20a6384bae8c905965bb090b96388e &&
        fetch "$sources/llada" https://github.com/ML-GSAI/LLaDA b7e6c3565f194352da44b38dd12b6970597309f3 ||
        public="the public samplers could not be fetched"
fi

SECONDS=0
echo "stage seconds result" >"$out/stages.txt"

stage() { # NAME SECONDS TOKENS_PER_STEP ARGUMENTS...
    local name=$1 seconds=$(($2 * limit / 470)) began=$SECONDS result="done"
    if ((limit - SECONDS < seconds + 5)); then
        echo "$name 0 left out: $((limit - SECONDS)) s are left" | tee -a "$out/stages.txt"
        return
    fi
    echo "--- $name"
    timeout --kill-after=5 "$seconds" python -m jax_unmask.bench --json="$out/$name.json" \
        --preset="$preset" --repeats=1 --policy="top_confidence:tokens_per_step=$3" "${@:4}" \
        2>&1 | tee "$out/$name.txt" || result="failed, or longer than $seconds s"
    echo "$name $((SECONDS - began)) $result" | tee -a "$out/stages.txt"
}

nvidia-smi >"$out/device.txt" 2>&1 || true
stage exact 115 16 --batch_sizes=64 --cache=none
stage dual 120 3 --batch_sizes=64 --cache=dual
if [[ -z $public ]]; then
    stage public 120 8 --batch_sizes=8 --cache=none --reference="$here/llada_reference.py"
else
    echo "public 0 left out: $public" | tee -a "$out/stages.txt"
fi
stage latency 75 1 --batch_sizes=1 --cache=dual
stage few-slots 110 16 --batch_sizes=64 --slots=8 --cache=none
stage int8 110 16 --batch_sizes=64 --cache=none --quantization=int8

JAX_PLATFORMS=cpu python "$here/gpu.py" "$out"
