#!/usr/bin/env bash
# Trains what docs/experiments/tracerl compares, one run after another, a few minutes each on two CPU
# cores (the start of block attention, once, about twenty):
#
#   launch/tracerl_study.sh full [RUNS_DIR]      TraceRL, random masking and coupled masks at the same
#                                                number of states per response; other shrinkages; a
#                                                value model beside
#   launch/tracerl_study.sh block [RUNS_DIR]     the same methods with block attention
#   launch/tracerl_study.sh scaling [RUNS_DIR]   from blocks of 4 to blocks of 8: supervised, then
#                                                TraceRL in two stages
#   launch/tracerl_study.sh sft [RUNS_DIR]       supervised training in the states of the denoiser's
#                                                own traces, of block-wise decoding, and of random
#                                                masks, with full and with block attention
#   launch/tracerl_study.sh long [RUNS_DIR]      the same on word problems with canvases of 128, and
#                                                next tokens; its start takes about an hour
#   launch/tracerl_study.sh answers [RUNS_DIR]   from terse answers: supervised training on long
#                                                ones, then TraceRL on growing canvases (both) or
#                                                on the longest (fixed), and TraceRL alone (rl)
#
# Runs land in RUNS_DIR/tracerl-STUDY/NAME-SEED. What they start from is trained first unless it is
# there. A script that was killed goes on where it stopped. SEEDS="0 1 2" says which seeds.
set -euo pipefail

study=${1:-full} runs=${2:-runs} seeds=${SEEDS:-0 1 2}
start=
case $study in
    full) variants="trace random coupled shrink1 shrink4 shrink16 value" ;;
    block) variants="trace random coupled value" ;;
    scaling) variants="4to8" ;;
    sft) variants="full-trace full-semi_ar full-random4 full-random1
                   block-trace block-block2 block-block1" ;;
    long) variants="long-trace long-margin long-random4 long-semi_ar long-ar" ;;
    answers) variants="both fixed rl" ;;
    *) echo "STUDY=$study is unknown; use full, block, scaling, sft, long or answers" >&2; exit 1 ;;
esac

train() { # CONFIG WORKDIR, then settings
    local config=$1 workdir=$2
    shift 2
    python -m jax_unmask.train --config="configs/$config" --workdir="$workdir" "$@"
}
begin() { # CONFIG NAME, then settings: trains $start unless it is there
    local config=$1
    start=$runs/$2/model
    [ -e "$start" ] || train "$config" "$runs/$2" "${@:3}"
}

for variant in $variants; do
    kind=${variant%%-*}
    case $study-$kind in
        full-*) config=tracerl.py:full start=arithmetic ;;
        scaling-*) begin tiny_block_sft.py block_arithmetic ;;
        sft-full)
            config=tiny_state_sft.py:full
            begin tiny_sft.py:arithmetic early_arithmetic --config.train.steps=3000
            ;;
        answers-*)
            config=tracerl.py:full
            begin tiny_sft.py:arithmetic terse_arithmetic --config.train.steps=4000 \
                --config.task.settings="('max_verbosity=0.0',)"
            ;;
        long-*)
            config=tiny_state_sft.py:long
            begin tiny_sft.py:causal_word_problems causal_word_problems
            begin tiny_sft.py:masked_word_problems early_word_problems \
                --config.model.path="$start" --config.optimizer.schedule=constant \
                --config.train.steps=2501
            ;;
        *)
            config=$([ "$study" = sft ] && echo tiny_state_sft.py:block || echo tracerl.py:block)
            begin tiny_block_sft.py block_arithmetic
            ;;
    esac
    way=${variant#*-}
    case $way in
        random) settings=(--config.learner.surrogate=random_masking --config.learner.draws=2) ;;
        coupled) settings=(--config.learner.surrogate=coupled --config.learner.draws=1) ;;
        shrink*) settings=(--config.learner.shrink="${variant#shrink}") ;;
        value) settings=(--config.value.enabled=True) ;;
        margin) settings=(--config.learner.order=margin) ;;
        semi_ar | ar) settings=(--config.learner.method="$way") ;;
        random? | block?) # States per response.
            method=${variant#*-}
            draws=${method: -1}
            settings=(--config.learner.method="${method%?}" --config.learner.draws="$draws")
            ;;
        *) settings=() ;;
    esac
    for seed in $seeds; do
        workdir=$runs/tracerl-$study/$variant-$seed
        case $study-$variant in
            scaling-*) train "tiny_block_scaling.py:$seed,$start" "$workdir" ;;
            answers-both | answers-fixed)
                train "tiny_long_answers.py:$variant,$seed,$start" "$workdir"
                ;;
            *)
                train "$config" "$workdir" --config.model.path="$start" --config.seed="$seed" \
                    "${settings[@]}"
                ;;
        esac
    done
done
