#!/usr/bin/env bash
# Trains what a study of unmasking policies compares, and measures it: policies that are told alpha,
# against a shipped denoiser in full diffusion, three training seeds each.
#
#   launch/policy_study.sh STUDY [TASK] [RUNS_DIR]      TASK is sudoku, arithmetic or countdown
#
#   observations    each thing that the network sees left out, alone; the published observation
#   sizes           widths from 16 to 128; two blocks
#   published       the published network (331,265 parameters); with the 50 largest probabilities
#                   (8 on Sudoku, which has 9 tokens)
#   distributions   dynamic Plackett-Luce instead of Bernoulli
#   rewards         the additive reward, one alpha each
#   experts         with and without rollouts of a heuristic in each group
#   blocks          training in blocks instead of on the whole canvas
#   acting          scaled Bernoulli (beta) and temperature of one policy, instead of alpha
#   samples         temperature of the denoiser, with pass@k
#   settings        entropy bonus and prompts per step (half as many twice as often)
#
# Runs land in RUNS_DIR/policy-STUDY-TASK/NAME-SEED, measurements in .../NAME-SEED-eval (summary.md has
# the areas). SEEDS="0 1 2" says which seeds, STEPS how long. A run of 150 steps on Sudoku takes about
# six minutes on two CPU cores, its measurement two. A script that was killed goes on where it stopped.
set -euo pipefail

study=${1:-} task=${2:-sudoku} runs=${3:-runs} seeds=${SEEDS:-0 1 2} steps=${STEPS:-150}
alphas="alpha=0.03|0.1|0.3|1.0|3.0|10.0|30.0|100.0"
case $study in
    observations) variants="all no_candidates no_rank no_entropy no_runner_up no_position no_time
                            no_mask published" ;;
    sizes) variants="width16 width32 width64 width128 blocks2" ;;
    published) variants="network network_top" ;;
    distributions) variants="bernoulli dpls" ;;
    rewards) variants="additive0.3 additive1 additive3 additive10" ;;
    experts) variants="no_expert expert1 expert4" ;;
    blocks) variants="full semi" ;;
    acting) variants="scale temperature" ;;
    samples) variants="drawn0 drawn0.5 drawn1" ;;
    settings) variants="entropy0 entropy0.005 entropy0.02 half_batch" ;;
    *) echo "STUDY=$study is unknown; see the head of $0" >&2; exit 1 ;;
esac
case $task in
    sudoku) block=4 most=8 half=32 ;;
    arithmetic) block=8 most=50 half=12 ;;
    countdown) block=4 most=50 half=32 ;;
    *) echo "TASK=$task is unknown; use sudoku, arithmetic or countdown" >&2; exit 1 ;;
esac

network=--config.policy.network
published=("$network.top_k=1" "$network.entropy=False" "$network.position=False"
    "$network.rank=False" "$network.rank_attention=()" "$network.candidate_attention=()")
for variant in $variants; do
    settings=() drawn=() acts=distribution=threshold,$alphas length=$steps
    number=${variant//[!0-9.]/}
    case $variant in
        no_candidates) settings=("$network.candidate_attention=()") ;;
        no_rank) settings=("$network.rank=False" "$network.rank_attention=()") ;;
        no_entropy) settings=("$network.entropy=False") ;;
        no_runner_up) settings=("$network.top_k=1") ;;
        no_position) settings=("$network.position=False") ;;
        no_time) settings=("$network.time=False") ;;
        no_mask) settings=("$network.mask=False") ;;
        published) settings=("${published[@]}") ;;
        width*) settings=("$network.hidden_dim=$number" "$network.feedforward_dim=$((2 * number))") ;;
        blocks2) settings=("$network.num_blocks=2") ;;
        network*)
            settings=("${published[@]}" "$network.hidden_dim=128" "$network.feedforward_dim=512"
                "$network.num_heads=2" "$network.time_embed_dim=128")
            [ "$variant" = network ] || settings+=("$network.top_k=$most")
            ;;
        dpls) settings=(--config.policy.distribution=dpls) acts=distribution=dpls,$alphas ;;
        additive*)
            settings=("$network.alphas=()" --config.reward.kind=additive
                --config.reward.alpha="$number")
            acts=distribution=threshold
            ;;
        no_expert) settings=(--config.expert.count=0) ;;
        expert*)
            settings=(--config.expert.count="$number" --config.expert.block_length="$block"
                --config.expert.policy=entropy_bounded:gamma=0.1)
            ;;
        semi) settings=(--config.rollout.block_length="$block") ;;
        scale)
            settings=("$network.alphas=()" --config.reward.alpha=1)
            acts="distribution=bernoulli_argmax,scale=0.25|0.5|1.0|2.0|4.0|8.0"
            ;;
        temperature)
            settings=("$network.alphas=()" --config.reward.alpha=1)
            acts="distribution=bernoulli_argmax,temperature=0.25|0.5|1.0|2.0|4.0"
            ;;
        drawn*) drawn=(--config.rollout.temperature="$number") settings=("${drawn[@]}") ;;
        entropy*) settings=(--config.learner.entropy_coefficient="$number") ;;
        half_batch)
            settings=(--config.rollout.prompts_per_step="$half")
            length=$((2 * steps))
            ;;
    esac
    for seed in $seeds; do
        workdir=$runs/policy-$study-$task/$variant-$seed
        python -m jax_unmask.train --config="configs/universal_policy.py:$task" \
            --workdir="$workdir" --config.seed="$seed" --config.train.steps="$length" \
            --config.eval.after_training=False "${settings[@]}"
        python -m jax_unmask.eval --config="configs/universal_policy.py:$task" \
            --workdir="$workdir-eval" --config.eval.shipped="()" --config.eval.num_problems=1000 \
            --config.eval.policies="('learned:$workdir/policy,$acts',)" "${drawn[@]}"
    done
done
