#!/usr/bin/env bash
# Trains policies that are told alpha, and measures each of them on every task:
#
#   launch/universal_policy.sh alone [RUNS_DIR]      one policy per task, as those that ship
#   launch/universal_policy.sh all [RUNS_DIR]        one for all tasks, taught by those
#   launch/universal_policy.sh left_out [RUNS_DIR]   one for all but one task and its denoiser
#
# `alone` comes first. Runs land in RUNS_DIR/universal/NAME-seedS, measurements in
# .../NAME-seedS-on-TASK (summary.md has the areas; whole canvas and blocks). SEEDS="0 1 2" says which
# seeds, TASKS which tasks are trained alone or left out. `alone` and `all` also get their
# calibrations. On two free CPU cores a policy for Sudoku or Countdown takes 2 minutes to train, for
# arithmetic 6, for word problems 15, for all tasks 30. A script that was killed goes on where it stopped.
set -euo pipefail

kind=${1:-} runs=${2:-runs}/universal seeds=${SEEDS:-0 1 2}
tasks="arithmetic countdown sudoku word_problems"
names=${TASKS:-$tasks} teachers=
alphas="distribution=threshold,alpha=0.03|0.1|0.3|1.0|3.0|10.0|30.0|100.0"
scales="distribution=threshold,alpha=100.0,scale=8|64|512|4096|1e9"
case $kind in
    alone | left_out) ;;
    all) names=all ;;
    *) echo "KIND=$kind is unknown; use alone, all or left_out" >&2; exit 1 ;;
esac

for seed in $seeds; do
    for name in $names; do
        config=$name settings=()
        if [ "$kind" != alone ]; then
            config=all start=word_problems
            if [ "$kind" = left_out ]; then
                config=all-$name
                [ "$name" != word_problems ] || start=sudoku
            fi
            for task in $tasks; do
                teacher=$runs/$task-seed$seed/policy
                [[ $teacher = /* ]] || teacher=./$teacher
                [ "$task" != word_problems ] || teacher=frontier_told
                [ "$config" = "all-$task" ] || teachers+=",$task=$teacher"
            done
            config+=$teachers teachers=
            settings=(--config.policy.init_from="$runs/$start-seed$seed/policy")
            [ "$kind" = all ] || name=all-$name
        fi
        run=$runs/$name-seed$seed
        python -m jax_unmask.train --config="configs/universal_policy.py:$config" --workdir="$run" \
            --config.seed="$seed" --config.eval.after_training=False "${settings[@]}"
        for task in $tasks; do
            problems=1000 block=4
            [ "$task" != arithmetic ] || block=8
            [ "$task" != word_problems ] || problems=256 block=16
            if [ "$kind" = all ] || [ "$name" = "$task" ]; then
                for length in 0 $block; do
                    python -m jax_unmask.calibrate --config="configs/universal_policy.py:$task" \
                        --policy="$run/policy,distribution=threshold" --block_length="$length"
                done
            fi
            python -m jax_unmask.eval --config="configs/universal_policy.py:$task" \
                --workdir="$run-on-$task" --config.eval.shipped="()" --config.eval.seeds="(0,)" \
                --config.eval.num_problems="$problems" --config.eval.validation_problems=0 \
                --config.eval.policies="('learned:$run/policy,$alphas','learned:$run/policy,$scales')"
        done
    done
done
