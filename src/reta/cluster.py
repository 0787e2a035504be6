"""The same units of work on a Ray cluster: ``--cluster auto``, or the address of one.

A unit is a Ray task. What its stage shares is put into the object store once and fetched once by
every worker process; results go to the run folder, which all machines see at one path, or to a
URL. A worker that dies costs the unit it was at: Ray starts it again elsewhere, at most three
times, and then it is given up and the others go on.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from reta import __version__, interruption
from reta.errors import DivergedError, RetaError, UnfinishedError, UsageError
from reta.executor import Executor
from reta.mirror import attach, homes
from reta.progress import log, track
from reta.runtime import Device, choose_device
from reta.storage import locked_here

S = TypeVar("S")
U = TypeVar("U")

RETRIES = 3
"""How often a unit is started again after its worker died."""

IN_FLIGHT = 1000
"""Units handed to Ray at a time: enough for any autoscaler to see, and memory stays flat."""


class OnRay(Executor):
    """Does units of work on the machines of a Ray cluster.

    Each unit takes one GPU if the run is on GPUs, and as many cores as it may use threads:
    ``OMP_NUM_THREADS``, or one. The driver uses as many, so that the bytes are those of a run
    without a cluster under the same ``OMP_NUM_THREADS``.

    Args:
        address: ``auto`` for the cluster of this machine or of ``RAY_ADDRESS``, and a new one on
            this machine if there is none; else an address such as ``ray://head:10001``.

    Raises:
        UsageError: if Ray is not installed or the cluster does not answer.
    """

    def __init__(self, address: str = "auto") -> None:
        super().__init__()
        self._ray = _connect(address)
        self._terms = Terms.here()
        torch.set_num_threads(self._terms.threads)

    def device(self, requested: str) -> Device:
        """Return where the units' tensors will live: on GPUs if the cluster has any."""
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        if requested == "auto":
            requested = "cuda" if gpus else "cpu"
        if requested != "cpu" and not gpus:
            raise UsageError(f"--device {requested}: the cluster has no GPU; use --device cpu")
        kind = requested.partition(":")[0]
        return Device(kind, f"{gpus} GPUs in the cluster" if gpus else "no GPU in the cluster")

    def run(
        self, stage: str, work: Callable[[S, U], None], shared: S, units: Sequence[U]
    ) -> list[U]:
        """Do all units of a stage, see `Executor.run`."""
        device: Device | None = getattr(shared, "device", None)
        task = self._ray.remote(_do).options(
            name=f"reta {stage}",
            num_cpus=self._terms.threads,
            num_gpus=int(device is not None and device.name != "cpu"),
            max_retries=RETRIES,
        )
        # In a list, so that Ray hands on the reference, and the value is read once per worker.
        reference = [self._ray.put(shared)]
        terms = replace(self._terms, homes=homes(), folders=locked_here(), directory=Path.cwd())
        failed = []
        waiting: dict[Any, U] = {}
        try:
            started = ((task.remote(terms, work, reference, unit), unit) for unit in units)
            for unit, error in track(self._finished(started, waiting), stage, len(units)):
                if error is not None:
                    log.warning("%s %s is given up: %s", stage, unit, error)
                    self.failures[f"{stage} {unit}"] = error
                    failed.append(unit)
        finally:
            for left in waiting:
                self._ray.cancel(left, force=True)
        return failed

    def _finished(
        self, started: Iterator[tuple[Any, U]], waiting: dict[Any, U]
    ) -> Iterator[tuple[U, RetaError | None]]:
        """Yield every unit as it ends, with the error for which it was given up."""
        while True:
            while len(waiting) < IN_FLIGHT and (next_one := next(started, None)):
                waiting[next_one[0]] = next_one[1]
            if not waiting:
                return
            # One may take hours, but signals and lost workers want to be noticed before.
            self._ray.wait(list(waiting), num_returns=1, timeout=1.0)
            interruption.check()
            ended, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for reference in ended:
                yield waiting.pop(reference), self._error_of(reference)

    def _error_of(self, reference: Any) -> RetaError | None:
        """Return why a unit was given up, or None if it is done; raise what others would meet."""
        errors = self._ray.exceptions
        try:
            self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, DivergedError):
                return error.cause
            raise (error.cause if isinstance(error.cause, RetaError) else error) from None
        except errors.RayError as error:  # no answer: the process or the machine is gone
            reason = str(error).strip().partition("\n")[0]
            return UnfinishedError(f"its worker died {RETRIES + 1} times (last: {reason})")
        return None


@dataclass(frozen=True)
class Terms:
    """What a worker must have in common with the driver for the bytes to be the same.

    Attributes:
        versions: of Python, torch and reta.
        threads: of torch in each worker.
        precision: asked for by ``RETA_PRECISION``.
        homes: local folders that are copies of URLs.
        folders: run folders that every machine must see.
        directory: what relative paths begin at.
    """

    versions: tuple[str, str, str]
    threads: int
    precision: str = ""
    homes: Mapping[Path, str] = field(default_factory=dict)
    folders: Sequence[Path] = ()
    directory: Path = Path()

    @classmethod
    def here(cls) -> Terms:
        """Return those of this process."""
        versions = (platform.python_version(), str(torch.__version__), __version__)
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        return cls(versions, threads, os.environ.get("RETA_PRECISION", ""))

    def enforce(self) -> None:
        """Make this process work on these terms.

        Raises:
            UsageError: if it has other versions than the driver, or does not see the run.
        """
        own = Terms.here().versions
        if own != self.versions:
            named = "Python {}, torch {}, reta {}"
            raise UsageError(
                f"worker {platform.node()} has {named.format(*own)}, the driver "
                f"{named.format(*self.versions)}; install the same everywhere"
            )
        for folder in self.folders:
            if not (folder / "units" / "config.json").exists():
                raise UsageError(
                    f"worker {platform.node()} does not see {folder}: --out must lie on storage "
                    "that all machines share, or be a URL"
                )
        with suppress(OSError):
            os.chdir(self.directory)
        torch.set_num_threads(self.threads)
        os.environ["RETA_PRECISION"] = self.precision
        attach(self.homes)


_held: list[tuple[Any, Any]] = []  # what the units of the current stage share, in a worker


def _do(terms: Terms, work: Callable[[S, U], None], reference: list[Any], unit: U) -> None:
    """Do one unit in a worker process."""
    import ray

    logging.basicConfig(level=logging.INFO, format="%(message)s")  # Ray shows it on the driver
    terms.enforce()
    if not _held or _held[0][0] != reference[0]:
        _held[:] = [(reference[0], ray.get(reference[0]))]
    shared = _held[0][1]
    device = getattr(shared, "device", None)
    choose_device(device.name if device else "cpu")
    work(shared, unit)


def _connect(address: str) -> Any:
    """Return Ray, connected."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--cluster needs Ray: pip install 'reta[ray]'") from error
    if ray.is_initialized():
        return ray
    handlers = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    try:
        started(
            address=_found() if address == "auto" else address,
            logging_level=logging.ERROR,
            log_to_driver=True,
        )
    except Exception as error:  # Ray raises that very type if a part of it does not start in time
        raise UsageError(f"--cluster {address}: {error}{_hint(address)}") from error
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray's own would abort without an exit code
            signal.signal(number, handler)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    log.info("cluster: %d nodes, %s", len(nodes), _resources(ray.cluster_resources()))
    return ray


def _found() -> str | None:
    """Return where Ray looks for a cluster by itself: None; ``local``, a new one, if that is gone.

    Ray notes the last cluster of a machine in a file. Of one that was killed the note stays, and
    Ray would wait a quarter of an hour for it.
    """
    if "RAY_ADDRESS" in os.environ:
        return None
    place = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        host, _, port = (
            Path(place, "ray", "ray_current_cluster").read_text().strip().rpartition(":")
        )
    except OSError:
        return None  # no note: Ray begins a cluster
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError):
        return "local"
    return None


def _hint(address: str) -> str:
    """Return what may be the matter with an address ray://, of which Ray says only that it waits.

    A head that found a token asks for it; unlike a driver on its machine, a client does not look.
    """
    if not address.startswith("ray://") or "RAY_AUTH_MODE" in os.environ:
        return ""
    return (
        "; if the head runs and the port can be reached, it may want a token: set "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray/auth_token is the head's"
    )


def started(**options: Any) -> None:
    """Connect to Ray, or start it; on a busy machine its parts may take longer than it waits."""
    import ray

    for patience in (2, 1, 0):
        try:
            ray.init(**options)
            return
        except (ConnectionError, ValueError, RuntimeError):
            raise
        except Exception as error:
            if not patience:
                raise
            log.info("%s Trying again", error)
            ray.shutdown()


def _resources(found: dict[str, float]) -> str:
    return ", ".join(f"{found[name]:.0f} {name}s" for name in ("CPU", "GPU") if name in found)


def executor_of(cluster: str | None) -> Executor | None:
    """Return the executor that ``--cluster`` asks for; None, without it, means this process."""
    return None if cluster is None else OnRay(cluster)
