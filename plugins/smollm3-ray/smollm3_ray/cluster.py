"""Connects to Ray, quietly: a cluster, or Ray on this machine for as long as the run lasts."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import psutil

from smollm3_finetune.api import ConfigError, IncompatibleError, Launch, SmolLM3Error
from smollm3_ray.errors import first_line
from smollm3_ray.options import RayOptions

OBJECT_STORE = 80 * 2**20
"""Bytes of shared memory that Ray reserves on this machine: Ray's minimum is 75 MB, and only small objects are sent."""
ALWAYS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in a configuration may be relative
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run has its own metrics and trackers
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that fails measures nothing
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
UNLESS_SET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # also the time between two reports
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_V2_MIGRATION_WARNINGS_ENABLED": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "3600",  # a trial that is stopped saves its state
}
PATIENCE = 5.0
"""Seconds for the processes of Ray to end by themselves."""
TO_CONNECT = 5.0
"""Seconds in which something must answer at an address."""
UNLESS_SET_HERE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away
    "RAY_prestart_worker_first_driver": "0",  # one process per CPU, none of which Ray Train can use
}
"""For Ray on this machine."""


def gpus_per_worker(options: RayOptions, launch: Launch) -> int:
    if options.gpus_per_worker is not None:
        return options.gpus_per_worker
    return 0 if launch.device == "cpu" else 1


@contextlib.contextmanager
def connected(options: RayOptions, launch: Launch, *, cpus: int) -> Iterator[None]:
    """Inside the context, this process is connected to Ray, whose logs are not shown unless options ask for them.

    `cpus`: of Ray on this machine. A Ray that the process is connected to already is used and left connected.
    """
    local = {**UNLESS_SET_HERE} if options.address is None else {}
    with _environment(ALWAYS, {**UNLESS_SET, **local}), warnings.catch_warnings(), _output_of_threads(options.logs):
        if not options.logs:
            warnings.simplefilter("ignore")
        import ray

        if ray.is_initialized():
            yield
            return
        before = set(psutil.Process().children())
        with _signal_handlers():
            _start(options, cpus)
        started = set(psutil.Process().children()) - before
        try:
            with _loggers(logging.INFO if options.logs else logging.CRITICAL):
                if options.address is None:
                    _check_gpus(options, launch)
                yield
        finally:
            left = [p for root in started for p in (root, *_descendants(root))]
            ray.shutdown()
            _end(left)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []


def _end(processes: list[psutil.Process]) -> None:
    """End the processes of Ray on this machine: one that lost the others would try to reach them for a minute."""
    _, left = psutil.wait_procs(processes, timeout=PATIENCE)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=PATIENCE)


def _start(options: RayOptions, cpus: int) -> None:
    import ray

    if options.address is not None:
        _check_listens(options.address)
    level = logging.INFO if options.logs else logging.CRITICAL
    quiet = {"logging_level": level, "log_to_driver": options.logs}
    try:
        if options.address is not None:
            ray.init(address=options.address, **quiet)
        else:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
    except (ConnectionError, TimeoutError) as e:
        if options.address is None:
            raise SmolLM3Error(f"Ray did not start: {first_line(e)}", hint="ray stop, then try again") from e
        raise _no_connection(options.address) from e
    except (RuntimeError, ValueError, OSError) as e:
        raise SmolLM3Error(f"Ray did not start: {first_line(e)}", hint="ray status") from e


def _check_listens(address: str) -> None:
    """Raise ConfigError if nothing listens at HOST:PORT: Ray itself would try again for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return  # Ray finds the cluster
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TO_CONNECT).close()
    except (OSError, OverflowError, UnicodeError) as e:  # the last one: a name that DNS cannot have
        raise ConfigError(
            f"launcher 'ray': no Ray cluster answers at address={address}",
            hint="ray status on a node of the cluster, or leave address out",
        ) from e


def _no_connection(address: str) -> ConfigError:
    if address == "auto":
        return ConfigError(
            "launcher 'ray': no Ray cluster was found at address=auto",
            hint="ray status on a node of the cluster, or leave address out",
        )
    return ConfigError(
        f"launcher 'ray': the Ray cluster at address={address} did not accept the connection",
        hint="if it needs a token: RAY_AUTH_MODE=token before the command; otherwise: ray status on a node",
    )


def _check_gpus(options: RayOptions, launch: Launch) -> None:
    """Raise IncompatibleError if this machine has too few GPUs: Ray would wait for more forever."""
    import ray

    workers = options.min_workers or options.workers
    needed, found = workers * gpus_per_worker(options, launch), ray.cluster_resources().get("GPU", 0)
    if needed > found:
        raise IncompatibleError(
            f"launcher 'ray': {workers} workers need {needed} GPUs, but Ray found {found:g} on this machine",
            hint="fewer workers, or the address of a cluster: --launcher-opt address=auto",
        )


@contextlib.contextmanager
def _environment(always: dict[str, str], unless_set: dict[str, str]) -> Iterator[None]:
    """Set environment variables inside the context; Ray reads its settings from them."""
    new = {**{k: v for k, v in unless_set.items() if k not in os.environ}, **always}
    before = {k: os.environ.get(k) for k in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def _output_of_threads(shown: bool) -> Iterator[None]:
    """Inside the context, what other threads print, such as Ray's reports, goes to stderr or nowhere."""
    before = sys.stdout
    sys.stdout = _OfOneThread(before, sys.stderr if shown else None)
    try:
        yield
    finally:
        sys.stdout = before


class _OfOneThread:
    """A stream that this thread writes to, whose text from other threads goes to another stream, or nowhere."""

    def __init__(self, stream: TextIO, others: TextIO | None) -> None:
        self.stream, self.others, self.thread = stream, others, threading.get_ident()

    def write(self, text: str) -> int:
        to = self.stream if threading.get_ident() == self.thread else self.others
        return len(text) if to is None else to.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def _signal_handlers() -> Iterator[None]:
    """Keep the handlers of this process: Ray replaces that of SIGTERM, and a request to stop would end it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextlib.contextmanager
def _loggers(level: int) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("ray", "ray.train", "ray.tune", "ray.data")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
