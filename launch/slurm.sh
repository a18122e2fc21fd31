#!/usr/bin/env bash
# Trains on the GPUs of SLURM nodes, one process per GPU. Queues itself again before its time is over,
# or when it is preempted, and goes on from the last checkpoint.
#
#   sbatch launch/slurm.sh --config=gsm8k --workdir=/shared/runs/gsm8k
#
# Everything after the script goes to `python -m jax_unmask.train`. See docs/launch/slurm.md.
#SBATCH --job-name=jax_unmask
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

[[ $# -ge 1 ]] || { echo "usage: sbatch $0 --config=FILE --workdir=DIR ..." >&2; exit 2; }
python=${VENV:+$VENV/bin/}python

stopped=0 status=0
# shellcheck disable=SC2329 # The trap calls it.
# 300 s before the end of its time, or from the scheduler: every process saves its step and leaves.
on_term() {
    stopped=1
    kill -TERM "$step" 2>/dev/null || true
}
trap on_term TERM

# SLURM tells JAX where the others are. One task that fails ends all.
srun --kill-on-bad-exit=1 "$python" -m jax_unmask.train "$@" &
step=$!
wait "$step" || status=$?
if ((stopped)); then
    # The trap ended the first wait.
    status=0
    wait "$step" || status=$?
    echo "stopped with status $status; queueing job $SLURM_JOB_ID again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
