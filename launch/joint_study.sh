#!/usr/bin/env bash
# A policy and its denoiser, trained from the same rollouts or otherwise, at the same number of rollouts:
#
#   launch/joint_study.sh [RUNS_DIR]
#
#   policy     the policy alone, on the shipped denoiser
#   denoiser   the denoiser alone, under a threshold
#   after      the denoiser in the first half of the steps, then the policy on it
#   joint      both, in every step
#
# Runs land in RUNS_DIR/joint/TASK-NAME-SEED, their measurements (1,000 problems, temperature 0) beside
# them in ...-measured; TASK-start-measured is the start. TASKS="arithmetic sudoku", SEEDS="0 1 2",
# STEPS=100 say what is done. One seed of both tasks takes about half an hour on two CPU cores. A script
# that was killed goes on where it stopped.
set -euo pipefail

runs=${1:-runs}/joint seeds=${SEEDS:-0 1 2} tasks=${TASKS:-arithmetic sudoku} steps=${STEPS:-100}
half=$((steps / 2))
rules="'threshold:threshold=0.3..0.9/0.1|0.95|0.98','factor:factor=0.25|0.5|1.0|1.25|2.0|3.0',
    'entropy_bounded:gamma=0.05|0.1|0.2|0.4|0.6|0.65|0.69|0.8|1.0|1.5|2.0|3.0'"

train() { # TASK[,METHOD] WORKDIR, then settings
    python -m jax_unmask.train --config="configs/tiny_joint.py:$1" --workdir="$2" \
        --config.seed="$seed" "${@:3}"
}
measure() { # WORKDIR MODEL POLICIES
    python -m jax_unmask.eval --config="configs/tiny_joint.py:$task" --workdir="$1-measured" \
        --config.model.path="$2" --config.rollout.temperature=0.0 --config.eval.shipped="()" \
        --config.eval.validation_problems=0 --config.eval.policies="($3,)"
}
learned() { # POLICY
    local way="learned:$1,distribution=threshold"
    echo "'$way,alpha=0.03|0.1|0.3|1.0|3.0|10.0|30.0|100.0','$way,alpha=100.0,scale=1.5|2.0|4.0'"
}

for task in $tasks; do
    measure "$runs/$task-start" "$task" "$(learned universal),$rules"
done
for seed in $seeds; do
    for task in $tasks; do
        at=$runs/$task
        train "$task,policy" "$at-policy-$seed" --config.train.steps="$steps"
        measure "$at-policy-$seed" "$task" "$(learned "$at-policy-$seed/policy")"
        train "$task,denoiser" "$at-denoiser-$seed" --config.train.steps="$steps"
        measure "$at-denoiser-$seed" "$at-denoiser-$seed/model" "$(learned universal),$rules"
        train "$task,denoiser" "$at-half-$seed" --config.train.steps="$half"
        train "$task,policy" "$at-after-$seed" --config.train.steps="$half" \
            --config.model.path="$at-half-$seed/model"
        measure "$at-after-$seed" "$at-half-$seed/model" "$(learned "$at-after-$seed/policy")"
        train "$task" "$at-joint-$seed" --config.train.steps="$steps"
        measure "$at-joint-$seed" "$at-joint-$seed/model" "$(learned "$at-joint-$seed/policy")"
    done
done
