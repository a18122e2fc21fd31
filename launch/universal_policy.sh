#!/usr/bin/env bash
# Trains policies that are told alpha, and measures each of them on every task of a short canvas:
#
#   launch/universal_policy.sh all [RUNS_DIR]        on all three tasks, by GRPO
#   launch/universal_policy.sh alone [RUNS_DIR]      one policy per task
#   launch/universal_policy.sh left_out [RUNS_DIR]   on all but one task and its denoiser
#
# Runs land in RUNS_DIR/universal/NAME-seedS, measurements in .../NAME-seedS-on-TASK (summary.md has the
# areas; whole canvas and blocks, 1,000 problems). The policies trained on all tasks also get a
# calibration per task, on the whole canvas and in blocks. SEEDS="0 1 2" says which seeds, STEPS how
# long: 300 steps on all three tasks take about 50 minutes on two CPU cores. A script that was killed goes
# on where it stopped.
set -euo pipefail

kind=${1:-} runs=${2:-runs}/universal seeds=${SEEDS:-0 1 2} steps=${STEPS:-300}
tasks="arithmetic countdown sudoku"
case $kind in
    all) names=all ;;
    alone) names=$tasks ;;
    left_out) names="all-arithmetic all-countdown all-sudoku" ;;
    *) echo "KIND=$kind is unknown; use all, alone or left_out" >&2; exit 1 ;;
esac
alphas="alpha=0.03|0.1|0.3|1.0|3.0|10.0|20.0|40.0|70.0|100.0"

for seed in $seeds; do
    for name in $names; do
        run=$runs/$name-seed$seed
        config=$name
        [ "$kind" = alone ] || config=$name-word_problems  # Not on the long canvas.
        python -m jax_unmask.train --config="configs/universal_policy.py:$config" --workdir="$run" \
            --config.seed="$seed" --config.train.steps="$steps" --config.eval.after_training=False
        for task in $tasks; do
            if [ "$name" = all ]; then
                block=4
                [ "$task" != arithmetic ] || block=8
                for length in 0 "$block"; do
                    python -m jax_unmask.calibrate --config="configs/universal_policy.py:$task" \
                        --policy="$run/policy,distribution=threshold" --block_length="$length"
                done
            fi
            python -m jax_unmask.eval --config="configs/universal_policy.py:$task" \
                --workdir="$run-on-$task" --config.eval.shipped="()" --config.eval.num_problems=1000 \
                --config.eval.validation_problems=0 --config.eval.seeds="(0,)" \
                --config.eval.policies="('learned:$run/policy,distribution=threshold,$alphas',)"
        done
    done
done
