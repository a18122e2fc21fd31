"""A training run in miniature, for the tests that kill it: `tiny_trainer.py WORKDIR STEPS`."""

import sys
import time

import jax
import numpy as np

from jax_unmask.runtime.checkpoints import Checkpoints
from jax_unmask.runtime.metrics import MetricWriter
from jax_unmask.runtime.preemption import Preemption

SAVE_EVERY = 5


def main(workdir: str, steps: int) -> None:
    params = {"w": np.zeros(1000)}
    state = {"step": np.zeros((), np.int32), "key": jax.random.key(0)}
    done, position = 0, 0
    with Checkpoints(workdir) as checkpoints, Preemption() as preemption:
        restored = checkpoints.restore(params, state)
        if restored is not None:
            params, state, done = restored.params, restored.state, restored.step
            position = restored.data["position"]
        with MetricWriter(workdir, resume_step=done, tensorboard=False) as writer:
            print(f"start {done}", flush=True)
            for step in range(done + 1, steps + 1):
                key = np.asarray(jax.random.key_data(state["key"]))
                noise = np.random.default_rng([*key.tolist(), step, position]).normal(size=1000)
                params["w"] += noise - params["w"] / step
                position += 3
                state = {"step": np.asarray(step, np.int32), "key": state["key"]}
                writer.write(step, {"norm": np.linalg.norm(params["w"])})
                writer.write_timings(step, {"clock": time.monotonic()})
                time.sleep(0.003)
                preempted = preemption.requested(step)
                if step % SAVE_EVERY == 0 or step == steps or preempted:
                    writer.sync()
                    checkpoints.save(step, params=params, state=state, data={"position": position})
                print(f"step {step}", flush=True)
                if preempted:
                    return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
