#!/usr/bin/env bash
# Trains on a TPU slice of any number of hosts until training is finished. A slice that is preempted
# is made again, and all processes go on from their last checkpoint.
#
#   ZONE=us-west4-a TYPE=v5litepod-16 RUNTIME=v2-alpha-tpuv5-lite \
#     launch/tpu.sh NAME --config=gsm8k --workdir=/mnt/runs/gsm8k
#
# Everything after NAME goes to `python -m jax_unmask.train`, on every host. See docs/launch/tpu.md.
#
#   ZONE, TYPE, RUNTIME   where and what: `gcloud compute tpus accelerator-types|versions list`
#   QUEUED=1              ask through a queued resource instead of creating the slice at once
#   SPOT=1                preemptible
#   SOURCE=...            what pip installs (default: the repository on GitHub)
#   SETUP=...             a command for every host before training, such as mounting the workdir
#   FAILURES=3            failures of the program itself after which to give up
#   POLL=30               seconds between questions about the state
#   KEEP=1                leave the slice running at the end
set -euo pipefail

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[[ $# -ge 2 ]] || usage
name=$1
shift
zone=${ZONE:?set ZONE, such as us-west4-a} type=${TYPE:?set TYPE, such as v5litepod-16}
runtime=${RUNTIME:?set RUNTIME, such as v2-alpha-tpuv5-lite}
queued=${QUEUED:-0} spot=${SPOT:-0} setup=${SETUP:-true} failures=${FAILURES:-3} poll=${POLL:-30}
source=${SOURCE:-git+https://github.com/jax-unmask/jax_unmask}
options=()
[[ $spot == 0 ]] || options+=(--spot)

say() { echo "[tpu.sh] $*" >&2; }

if [[ $queued == 0 ]]; then
    state() { gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
        --format='value(state)' 2>/dev/null || echo ABSENT; }
    create() { gcloud compute tpus tpu-vm create "$name" --zone="$zone" \
        --accelerator-type="$type" --version="$runtime" "${options[@]}"; }
    delete() { gcloud compute tpus tpu-vm delete "$name" --zone="$zone" --quiet; }
else
    state() { gcloud compute tpus queued-resources describe "$name" --zone="$zone" \
        --format='value(state.state)' 2>/dev/null || echo ABSENT; }
    create() { gcloud compute tpus queued-resources create "$name" --node-id="$name" \
        --zone="$zone" --accelerator-type="$type" --runtime-version="$runtime" "${options[@]}"; }
    # --force: together with its node.
    delete() { gcloud compute tpus queued-resources delete "$name" --zone="$zone" --quiet --force; }
fi

everywhere() { # COMMAND, on all hosts at once
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

provision() { # returns once the slice is there
    local now before=
    while true; do
        now=$(state)
        [[ $now == "$before" ]] || say "$name: $now"
        before=$now
        case $now in
            READY | ACTIVE) return ;;
            ABSENT) create || say "cannot create it now; asking again" ;;
            PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) delete || true ;;
            *) ;; # On its way.
        esac
        sleep "$poll"
    done
}

install="test -d ~/venv || { python3 -m venv ~/venv && ~/venv/bin/pip install --quiet \
$(printf '%q' "jax_unmask[tpu] @ $source"); }"
# A process of an earlier attempt, whose connection broke, holds the chips: it saves and leaves.
leave="for wait in \$(seq 120); do pkill -TERM -f '[j]ax_unmask.train' || break; sleep 1; done"
train="\$HOME/venv/bin/python -m jax_unmask.train$(printf ' %q' "$@")"

failed=0
while true; do
    provision
    if everywhere "$setup && $install && { $leave; }" && everywhere "$train"; then
        say "training is finished"
        break
    fi
    case $(state) in
        READY | ACTIVE)
            failed=$((failed + 1))
            say "the command failed while the slice is there ($failed of $failures)"
            if ((failed >= failures)); then
                say "error: giving up; the slice is still running: gcloud compute tpus tpu-vm ssh $name --zone=$zone"
                exit 1
            fi
            ;;
        *) say "the slice is gone; starting again from the last checkpoint" ;;
    esac
done
[[ ${KEEP:-0} != 0 ]] || delete
