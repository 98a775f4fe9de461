"""The processes of a run: their start, their communication, and their end if one is missing."""

import contextlib
import os
import pickle
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import distributed as dist

from clipseq.distributed.world import difference
from clipseq.errors import ClipseqError, ConfigError, get_origin, set_origin
from clipseq.training.folder import RunFolder
from clipseq.training.launch.interruption import Interruption, TrainingInterrupted
from clipseq.training.launch.presence import Note, Presence, remove_notes

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from clipseq.training.config import TrainingConfig

Result = TypeVar("Result")

PREPARATION = timedelta(days=7)
"""Time that processes wait for work that one does for all: a simulation may take hours."""

ROLL_CALL = timedelta(seconds=15)
"""Time in which every process must answer when one of them is missing."""


class ProcessLost(ClipseqError):
    """Another process of the run ended or does not answer; this one cannot continue alone."""


class Processes:
    """The processes that train one model together; this class is the trivial case of one.

    Every method that communicates is called by every process, in the same order.

    Attributes:
        rank: rank of this process, from 0.
        size: number of processes.
        doing: the stage of the run, for error texts.
    """

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1
        self.doing = "while the run was prepared"

    @property
    def first(self) -> bool:
        """True in the process that writes the run folder and reports progress."""
        return self.rank == 0

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Return ``work()``, called by the first process and then by the others at the same time.

        Raises:
            Exception: an error that `work` raises in any process is raised in all of them.
        """
        return work()

    def agree(self, terms: Mapping[str, str]) -> None:
        """Raise ConfigError in every process if some terms, such as options, differ."""

    def any(self, mine: bool) -> bool:
        """Return True if `mine` is true in any process."""
        return mine

    def as_first(self, mine: bool) -> bool:
        """Return the value of the first process, so that rounding cannot make processes differ."""
        return mine

    def mean(self, values: Mapping[str, float], weight: int) -> dict[str, float]:
        """Return the mean of each value over the processes, each with its weight."""
        return dict(values)

    def meet(self) -> None:
        """Wait until every process calls this, for at most training.timeout."""

    def wait(self) -> None:
        """Wait until every process calls this, however long the first one takes."""


class _Many(Processes):
    """Several processes, which exchange messages through gloo, on whichever device they train.

    gloo notices at once that a connection is closed, as it is when a process ends for any reason;
    NCCL would wait for its time-out.
    """

    def __init__(self, config: "TrainingConfig") -> None:
        super().__init__()
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.folder = RunFolder(config.out)
        self.timeout = config.timeout
        self.presence = Presence(self.folder, self.rank, self.size)
        self._talk = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.timeout))
        self._patient = dist.new_group(backend="gloo", timeout=PREPARATION)
        # A separate group, since a time-out leaves the connections of its group closed.
        self._roll_call = dist.new_group(backend="gloo", timeout=ROLL_CALL)

    def enter(self) -> None:
        """Make this process visible to the others."""
        self._together(None)  # wait until each has checked whether the run folder exists
        self._together(self.presence.enter)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        if self.first:
            result = self._together(work)
            self._together(None)
            return result
        # Ctrl-C in the meantime usually reaches the first process too, which handles it.
        with Interruption() as interruption:
            self._together(None)
            if interruption.requested:
                self._together(_stopped_early)
        return self._together(work)

    def _together(self, work: Callable[[], Result] | None) -> Any:
        """Call `work`, unless it is None; then raise the first error of any process in all."""
        result: Any = None
        failure: BaseException | None = None
        try:
            result = None if work is None else work()
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        heard: list[BaseException | None] = [None] * self.size
        dist.all_gather_object(heard, _portable(failure), group=self._patient)
        for rank, told in enumerate(heard):
            if told is not None:
                here = rank == self.rank
                raised = failure if here and failure is not None else told
                set_origin(raised, rank, here=here)
                raise raised
        return result

    def agree(self, terms: Mapping[str, str]) -> None:
        told: list[Any] = [None] * self.size
        dist.all_gather_object(told, dict(terms), group=self._patient)
        if any(other != told[0] for other in told):
            error = ConfigError(difference(told))
            set_origin(error, 0, here=self.first)
            raise error

    def any(self, mine: bool) -> bool:
        said = torch.tensor(int(mine))
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self._talk)
        return bool(said)

    def as_first(self, mine: bool) -> bool:
        said = torch.tensor(int(mine))
        dist.broadcast(said, src=0, group=self._talk)
        return bool(said)

    def mean(self, values: Mapping[str, float], weight: int) -> dict[str, float]:
        if not values:
            return {}
        summed = torch.tensor([*values.values(), 1.0], dtype=torch.float64) * weight
        dist.all_reduce(summed, group=self._talk)
        means = (summed[:-1] / summed[-1]).tolist()
        return dict(zip(values, means, strict=True))

    def meet(self) -> None:
        dist.barrier(group=self._talk)

    def wait(self) -> None:
        dist.barrier(group=self._patient)

    def leave(self, error: BaseException | None = None) -> None:
        """Record the error for the others, unless there is none or they know it already."""
        if error is None or get_origin(error) is not None:
            self.presence.leave()
        else:
            set_origin(error, self.rank, here=True)
            self.presence.leave(str(error) or type(error).__name__)

    def lost(self, error: RuntimeError) -> ProcessLost:
        """Return the error that names the process that made a collective fail."""
        what, missing = self._who_is_missing()
        self.presence.leave(what, missing)
        lost = ProcessLost(
            f"{what} (noticed by rank {self.rank} of {self.size}, {self.doing}: "
            f"{_first_line(error)}). {self._how_to_continue()}"
        )
        set_origin(lost, self.rank, here=True)
        return lost

    def _who_is_missing(self) -> tuple[str, tuple[int, ...]]:
        """Find the processes that ended or do not answer; return a text and their ranks."""
        left, ended = self._look_around()
        if not left and not ended:
            silent = self._call_the_roll()
            left, ended = self._look_around(patience=0.0)
            if not left and not ended:
                ranks = f"{_ranks(silent)} not" if silent else "another process does not"
                return (
                    f"{ranks} answer, though none has ended: it hangs (longer than "
                    f"training.timeout = {self.timeout} s), or the network between them failed"
                ), silent
        # A process that stopped because another was missing is not the cause.
        reasons = [note for note in left if not note.missing]
        if reasons:
            what = "; ".join(f"rank {note.rank} stopped: {note.reason}" for note in reasons)
            return what, tuple(note.rank for note in reasons)
        if left and not ended:
            return left[0].reason, left[0].missing
        where = ", ".join(f"process {note.pid} on {note.host}" for note in ended)
        return (
            f"{_ranks([note.rank for note in ended], 'is', 'are')} gone without a word ({where}): "
            "killed, perhaps, for lack of memory; the output of that process may say more"
        ), tuple(note.rank for note in ended)

    def _look_around(self, patience: float = 3.0) -> tuple[list[Note], list[Note]]:
        """Return the notes of processes that stopped with a reason, and of those without one."""
        until = time.monotonic() + patience
        while True:
            ended = self.presence.ended()
            left = self.presence.notes()
            if left or ended or time.monotonic() > until:
                return left, ended
            time.sleep(0.1)

    def _call_the_roll(self) -> tuple[int, ...]:
        """Return the ranks that do not answer."""
        try:
            # The first process waits for each of the others, which wait for its answer.
            wait = ROLL_CALL / 3
            dist.monitored_barrier(self._roll_call, timeout=wait, wait_all_ranks=True)
        except RuntimeError as error:
            if not self.first:
                # The first process reports the missing ranks, unless it is missing itself.
                return () if any(not n.rank for n in self._look_around()[0]) else (0,)
            named = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
            return tuple(map(int, named[1].split(","))) if named else ()
        return ()

    def _how_to_continue(self) -> str:
        again = self.folder.resume_command
        if self.folder.last.exists():
            return f"Continue from the last checkpoint with: {again} (started as this run was)"
        if self.folder.config.exists():
            return f"No checkpoint was written yet; start again with: {again}"
        return "Nothing was written yet; start again"


@contextlib.contextmanager
def join_processes(config: "TrainingConfig") -> Iterator[Processes]:
    """Connect the processes of the run inside the block.

    Under torchrun (or another launcher that sets RANK and WORLD_SIZE), they are the processes that
    it started. Otherwise they are `config.devices` on each of `config.nodes` machines: lightning
    starts this command again for each, or finds those that SLURM, LSF or MPI started. A run of one
    process does not use torch.distributed.

    Raises:
        ConfigError: too few devices, an incomplete environment, or an accelerator that is not
            available; another run uses the folder.
        ProcessLost: instead of the RuntimeError of a collective, also inside the block.
    """
    devices, nodes = layout(config)
    size = devices * nodes
    joined_before = dist.is_available() and dist.is_initialized()
    if joined_before and dist.get_world_size() != size:
        raise ConfigError(
            f"torch.distributed must have the {size} processes of the run, got "
            f"{dist.get_world_size()}; start them with torchrun, or set training.devices"
        )
    if size == 1:
        make_fabric(config)  # raises its errors before anything is written
        remove_notes(RunFolder(config.out))
        yield Processes()
        return
    if config.batch_size < size:
        raise ConfigError(
            f"training.batch_size must be at least {size}, a clip for each of {size} processes, "
            f"got {config.batch_size}; raise it, or start fewer processes"
        )
    children = _connect(config, size)
    with contextlib.ExitStack() as stack:
        if not joined_before:
            stack.callback(dist.destroy_process_group)
        processes = _Many(config)
        try:
            processes.enter()
            yield processes
        except BaseException as error:
            if _is_of_a_connection(error):
                raise processes.lost(error) from error
            everywhere = get_origin(error) is not None
            processes.leave(error)
            if everywhere:
                _wait_for(children)
            raise
        processes.leave()
        _wait_for(children)


def layout(config: "TrainingConfig") -> tuple[int, int]:
    """Return the processes per machine and the machines, from the launcher or else the config."""
    if "RANK" not in os.environ:
        if config.nodes > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
            raise ConfigError(
                "MASTER_ADDR must be set in the environment when training.nodes is above 1, got "
                f"training.nodes = {config.nodes}; set MASTER_ADDR, MASTER_PORT and NODE_RANK, or "
                "use torchrun"
            )
        return config.devices, config.nodes
    try:
        size, _ = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
        rank = int(os.environ["RANK"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size // config.nodes))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"RANK must come with what torchrun sets, got {error}; start the run with torchrun, "
            "or unset RANK"
        ) from None
    if not 1 <= here <= size or not 0 <= rank < size:
        raise ConfigError(
            f"RANK must come with what torchrun sets, got RANK={rank}, WORLD_SIZE={size} and "
            f"LOCAL_WORLD_SIZE={here}; start the run with torchrun, or unset RANK"
        )
    return here, size // here


def make_fabric(config: "TrainingConfig", **ddp: Any) -> "Fabric":
    """Return lightning's Fabric for the run's devices; with several processes, they use DDP.

    Args:
        config: the [training] table.
        ddp: options of DDP.

    Raises:
        ConfigError: devices or an accelerator that this machine does not have.
    """
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.fabric.strategies import DDPStrategy
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    devices, nodes = layout(config)
    options: dict[str, Any] = {}
    if devices * nodes > 1:
        options["strategy"] = DDPStrategy(timeout=timedelta(seconds=config.timeout), **ddp)
        if "RANK" in os.environ:  # lightning finds other launchers itself
            options["plugins"] = [TorchElasticEnvironment()]
    try:
        return Fabric(accelerator=config.accelerator, devices=devices, num_nodes=nodes, **options)
    except (MisconfigurationException, RuntimeError, ValueError, ImportError) as error:
        raise _unavailable(config, devices, error) from error


def _connect(config: "TrainingConfig", size: int) -> list[Any]:
    """Join the process group; return the processes that this one has started."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    fabric: Any = make_fabric(config)
    try:
        fabric.launch()
    except MisconfigurationException as error:
        raise _unavailable(config, layout(config)[0], error) from error
    except dist.DistError as error:
        raise ProcessLost(
            f"not all of the {size} processes came together within training.timeout = "
            f"{config.timeout} s: {_first_line(error)}"
        ) from error
    started = getattr(fabric.strategy.launcher, "procs", [])
    children = list(started)
    if dist.get_backend() == "gloo":
        # Lightning would kill all of them a few seconds after one has failed, perhaps before they
        # have reported it. With gloo they notice the failure themselves; with NCCL they might not.
        started.clear()
    return children


def _unavailable(config: "TrainingConfig", devices: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"training.devices = {devices} with training.accelerator = {config.accelerator!r}: {error}"
    )


def _wait_for(children: list[Any], patience: float = 60.0) -> None:
    """Wait for the children, so that the process that the user started ends last."""
    until = time.monotonic() + patience
    for child in children:
        with contextlib.suppress(Exception):
            child.wait(max(0.0, until - time.monotonic()))


def _stopped_early() -> None:
    raise TrainingInterrupted("stopped before the first step; nothing is lost by starting again")


def _portable(error: BaseException | None) -> BaseException | None:
    """Return the error itself if it can be sent to another process, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ClipseqError(f"{type(error).__name__}: {error}")
    return error


def _is_of_a_connection(error: BaseException) -> TypeGuard[RuntimeError]:
    if not isinstance(error, RuntimeError) or isinstance(error, ClipseqError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in text for sign in _BROKEN)


# gloo raises plain RuntimeErrors, some without the name of its source file: the first call that
# times out closes the pair of sockets, and the next, which raises this error, finds it closed.
_BROKEN = (
    "gloo", "nccl", "pair closure", "socket closed", "timed out waiting", "connection closed",
    "connection reset", "broken pipe",
)  # fmt: skip


def _first_line(error: BaseException) -> str:
    # gloo's messages begin with its source file and end with advice.
    text = str(error).strip().splitlines()[0]
    return text.partition("] ")[2].partition(". ")[0] if text.startswith("[") else text


def _ranks(ranks: Any, one: str = "does", several: str = "do") -> str:
    ranks = list(ranks)
    if len(ranks) == 1:
        return f"rank {ranks[0]} {one}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]} {several}"
