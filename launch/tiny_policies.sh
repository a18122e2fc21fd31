#!/usr/bin/env bash
# Trains the policies that ship with the package, for one task and one training seed, as a series:
# alpha 1 in full diffusion from scratch, then other alphas and blocks from it, three to ten minutes
# each on two CPU cores.
#
#   launch/tiny_policies.sh TASK SEED [RUNS_DIR]      TASK is sudoku, arithmetic or countdown
#
# Policies land in RUNS_DIR/TASK-MODE-alphaA-seedS/policy (MODE: full or semi diffusion). A script
# that was killed goes on where it stopped.
set -euo pipefail

task=$1 seed=$2 runs=${3:-runs}
case $task in
    sudoku) block=4 alphas="3 10" ;;
    arithmetic) block=8 alphas="0.1 0.3 3" ;;
    countdown) block="" alphas="0.3" ;;
    *) echo "TASK=$task is unknown; use sudoku, arithmetic or countdown" >&2; exit 1 ;;
esac

train() { # NAME, then settings
    local name=$1
    shift
    python -m jax_unmask.train --config="configs/tiny_policy.py:$task" \
        --workdir="$runs/$name" --config.seed="$seed" "$@"
}

first=$task-full-alpha1-seed$seed
train "$first"
go_on() { # NAME, then settings: continues from the first policy
    train "$@" --config.policy.init_from="$runs/$first/policy" \
        --config.train.steps=60 --config.optimizer.lr=1e-3 --config.expert.count=0
}
for alpha in $alphas; do
    go_on "$task-full-alpha$alpha-seed$seed" --config.reward.alpha="$alpha"
done
if [ "$task" = arithmetic ]; then
    # Speed hardly counts here, so accuracy has to be found where alpha 1 left it behind: first the
    # policy imitates right block-wise decoding, then it improves on it.
    train "$task-full-alpha0.03-seed$seed" --config.policy.init_from="$runs/$first/policy" \
        --config.reward.alpha=0.03 --config.train.steps=90 --config.rollout.prompts_per_step=48 \
        --config.expert.count=4 --config.expert.imitation=1 --config.expert.imitation_steps=45 \
        --config.learner.minibatches=8
fi
if [ -n "$block" ]; then
    go_on "$task-semi-alpha1-seed$seed" --config.rollout.block_length="$block"
fi
