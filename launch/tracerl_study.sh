#!/usr/bin/env bash
# Trains what docs/experiments/tracerl compares, one run after another, four minutes each on two CPU
# cores: TraceRL, random masking and coupled masks at the same number of states per response; other
# shrinkages; a value model beside.
#
#   launch/tracerl_study.sh [ATTENTION] [RUNS_DIR]     ATTENTION is full (default) or block
#
# Runs land in RUNS_DIR/tracerl-ATTENTION/NAME-SEED. A script that was killed goes on where it
# stopped. With block attention, train the start first: see configs/tracerl.py.
set -euo pipefail

attention=${1:-full} runs=${2:-runs}
case $attention in
    full) variants="trace random coupled shrink1 shrink4 shrink16 value" ;;
    block) variants="trace random coupled" ;;
    *) echo "ATTENTION=$attention is unknown; use full or block" >&2; exit 1 ;;
esac

for variant in $variants; do
    case $variant in
        trace) settings=() ;;
        random) settings=(--config.learner.surrogate=random_masking --config.learner.draws=2) ;;
        coupled) settings=(--config.learner.surrogate=coupled --config.learner.draws=1) ;;
        shrink*) settings=(--config.learner.shrink="${variant#shrink}") ;;
        value) settings=(--config.value.enabled=True) ;;
    esac
    for seed in 0 1 2; do
        python -m jax_unmask.train --config="configs/tracerl.py:$attention" \
            --workdir="$runs/tracerl-$attention/$variant-$seed" --config.seed="$seed" \
            "${settings[@]}"
    done
done
