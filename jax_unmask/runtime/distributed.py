"""Joins the processes of one run: each has some of the devices, and all run one program."""

import errno
import glob
import importlib.util
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = "JAX_HEARTBEAT_TIMEOUT_SECONDS"
"""Environment variables that a launcher sets; see `initialize`."""

_PATIENCE_SECONDS = 300
_QUIET_SECONDS = 5.0

logger = logging.getLogger(__name__)


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> bool:
    """Joins the processes of this run, if there are several. To be called before JAX is used.

    Sources of the coordinator and the numbers, in this order:

    1. the arguments;
    2. the environment variables JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0, a free port
       there), JAX_NUM_PROCESSES and JAX_PROCESS_ID, which launchers set;
    3. the cluster: a step of SLURM (`srun`) or Open MPI with several tasks, or a TPU machine.
       JAX then asks the cluster for all three.

    Without any of these the process is alone. JAX_HEARTBEAT_TIMEOUT_SECONDS (100) is how long a
    process may be silent until the others end with an error.

    The coordinator, process 0, listens on all addresses of its machine, for processes elsewhere;
    on the loopback alone if its address is one of those.

    Returns:
        Whether processes were joined (also if it is a single one that a cluster started).

    Raises:
        ValueError: only some of the three are known, or they make no sense.
        OSError: the coordinator's port is in use, or the others cannot be reached.
        RuntimeError: JAX has been used already.
    """
    if jax.distributed.is_initialized():
        return True
    environment = os.environ
    given = {
        "--coordinator": coordinator or environment.get(ADDRESS),
        "--num_processes": _number(num_processes, COUNT, environment),
        "--process_id": _number(process_id, INDEX, environment),
    }
    silence = _number(None, HEARTBEAT, environment)
    settings: dict[str, Any] = {}
    if silence is not None:
        settings["heartbeat_timeout_seconds"] = silence
    if any(value is not None for value in given.values()):
        address, count, index = _checked(given)
        _join(address, count, index, settings)
    elif cluster(environment) is not None:
        jax.distributed.initialize(**settings)
    else:
        return False
    logger.info(
        "Process %d of %d: %d of %d devices.",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
    )
    return True


def _join(address: str, count: int, index: int, settings: dict[str, Any]) -> None:
    """`jax.distributed.initialize`, which says whom it waits for, and gives up with an OSError."""
    host, _, port = address.rpartition(":")
    if index:
        _await_coordinator(host.strip("[]"), int(port), index)
    else:
        _require_free(address, int(port))
        if is_loopback(host.strip("[]")):
            settings = settings | {"coordinator_bind_address": address}
    others = f"processes 1 to {count - 1}" if count > 2 else "process 1"
    whom = others if not index else "the other processes"
    waiting = f"process {index}: waiting at {address} for {whom} to join"
    timer = threading.Timer(_QUIET_SECONDS, logger.warning, (waiting,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            address, count, index, initialization_timeout=_PATIENCE_SECONDS, **settings
        )
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(
            f"process {index} of {count} cannot join the run at {address}: {_first_line(error)}"
        ) from error
    finally:
        timer.cancel()


def _await_coordinator(host: str, port: int, index: int) -> None:
    """Waits until somebody listens there."""
    began, told = time.monotonic(), False
    where = f"{host}:{port}, the address of process 0 (--coordinator or ${ADDRESS})"
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return
        except OSError as error:
            seconds = time.monotonic() - began
            if seconds > _PATIENCE_SECONDS:
                raise ConnectionError(
                    f"process {index}: nobody answers at {where} after {seconds:.0f} s ({error}). "
                    "Is process 0 running, and can its machine be reached?"
                ) from error
            if seconds > _QUIET_SECONDS and not told:
                told = True
                message = "process %d: waiting for process 0; nobody answers at %s yet (%s)"
                logger.warning(message, index, where, error)
        time.sleep(0.2)


def _require_free(address: str, port: int) -> None:
    """Raises an OSError if the coordinator's port is taken."""
    for family, every in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((every, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConnectionError(
                    f"port {port} of --coordinator={address} is in use on this machine. Give "
                    "another one to all processes, or end the program that has it"
                ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def cluster(environment: Mapping[str, str]) -> str | None:
    """The cluster that started this process together with others, or None.

    JAX knows how to ask each of them. It is asked only where there is something to join: a shell
    inside an allocation has the allocation's variables, but is one process.
    """
    # Set by srun, in every task of a step; sbatch alone sets neither.
    slurm = {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= environment.keys()
    if slurm and int(environment.get("SLURM_NTASKS", "1")) > 1:
        return "SLURM"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    wanted = environment.get("JAX_PLATFORMS", "")
    if wanted and "tpu" not in wanted.split(","):
        return None
    # One process per host, also where there is only one host.
    has_chips = bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))
    has_library = importlib.util.find_spec("libtpu") is not None
    return "TPU" if has_chips and has_library else None


def _number(value: int | None, name: str, environment: Mapping[str, str]) -> int | None:
    """An argument, or else the environment variable of that name."""
    if value is not None or not environment.get(name):
        return value
    try:
        return int(environment[name])
    except ValueError:
        raise ValueError(f"{name}={environment[name]!r} must be a whole number") from None


def _checked(given: Mapping[str, str | int | None]) -> tuple[str, int, int]:
    """All three of them, or an error that names what is missing or wrong."""
    variables = {"--coordinator": ADDRESS, "--num_processes": COUNT, "--process_id": INDEX}
    missing = [f"{name} ({variables[name]})" for name, value in given.items() if value is None]
    if missing:
        known = ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)
        raise ValueError(
            f"several processes need all of --coordinator, --num_processes and --process_id; "
            f"{known} is given, but not {' and '.join(missing)}"
        )
    address, count, index = given.values()
    assert isinstance(count, int) and isinstance(index, int)
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator={address!r} must be HOST:PORT, a free port of process 0")
    if count < 1 or not 0 <= index < count:
        raise ValueError(
            f"--process_id={index} must lie in 0 .. num_processes - 1, and --num_processes={count} "
            "be at least 1"
        )
    return str(address), count, index
