"""The processes of a run: how they find one another, agree, and end when one of them is gone."""

import contextlib
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
from torch import distributed as dist

from clipseq.errors import ClipseqError, ConfigError, origin, set_origin
from clipseq.training.folder import RunFolder
from clipseq.training.launch.interruption import Interruption, TrainingInterrupted
from clipseq.training.launch.mailbox import Address, Letter, Mailbox, post, refused

if TYPE_CHECKING:
    from clipseq.training.config import TrainingConfig

Result = TypeVar("Result")

PREPARATION = timedelta(days=7)
"""How long the others wait for what one process does for all of them: simulating takes hours."""


class ProcessLost(ClipseqError):
    """Another process of the run is gone, or does not answer; this one cannot go on alone."""


class Processes:
    """The processes that train one model together; of one process, all of it is trivial.

    Every method that communicates is called by every process, in the same order.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        doing: what the run is at, for error texts.
    """

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1
        self.doing = "while the run was prepared"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the run folder and tells of progress."""
        return self.rank == 0

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """``work()`` in every process: in the first one alone, and when it is done in the others.

        Raises:
            Exception: what `work` raised in any process is raised in every one.
        """
        return work()

    def any(self, mine: bool) -> bool:
        """Whether it is true in any process."""
        return mine

    def as_first(self, mine: bool) -> bool:
        """What the first process says, so that rounding does not lead two ways."""
        return mine

    def mean(self, values: Mapping[str, float], weight: int) -> dict[str, float]:
        """The mean of each value over the processes, each with its weight."""
        return dict(values)

    def wait(self) -> None:
        """Go on when every process is here, however long the first one takes."""


class _Many(Processes):
    """Several processes: their messages go through gloo, wherever the model is trained.

    gloo notices at once when a connection is closed, which is when its process ends, in
    whatever way; NCCL would wait for its time-out.
    """

    def __init__(self, config: "TrainingConfig", mailbox: Mailbox) -> None:
        super().__init__()
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.folder = RunFolder(config.out)
        self.timeout = config.timeout
        self.mailbox = mailbox
        self._talk = dist.new_group(backend="gloo", timeout=timedelta(seconds=config.timeout))
        self._patient = dist.new_group(backend="gloo", timeout=PREPARATION)
        self.addresses: list[Address] = []

    def meet(self) -> None:
        """Find out where each of the others has its mailbox."""
        self.addresses = self._from_all(self.mailbox.address)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        if self.first:
            result = self._together(work)
            self._together(None)
            return result
        # Ctrl-C in the meantime usually reached the first process too, and is its to answer.
        with Interruption() as interruption:
            self._together(None)
            if interruption.requested:
                self._together(_stopped_early)
        return self._together(work)

    def _together(self, work: Callable[[], Result] | None) -> Any:
        """Do the work, or none; then hear from all how it went."""
        result: Any = None
        failure: BaseException | None = None
        try:
            result = None if work is None else work()
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        heard: list[BaseException | None] = self._from_all(_portable(failure))
        for rank, told in enumerate(heard):
            if told is not None:
                here = rank == self.rank
                raised = failure if here and failure is not None else told
                set_origin(raised, rank, here=here)
                raise raised
        return result

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

    def wait(self) -> None:
        dist.barrier(group=self._patient)

    def _from_all(self, mine: Any) -> list[Any]:
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, mine, group=self._patient)
        return said

    def leave(self, error: BaseException) -> None:
        """Tell the others why this process goes, unless they know."""
        if origin(error) is None:
            set_origin(error, self.rank, here=True)
            reason = str(error) or type(error).__name__
            self._post(Letter(self.rank, reason))

    def lost(self, error: RuntimeError) -> ProcessLost:
        """What the error of a collective means: who is gone, and how to go on."""
        letters, gone = self._ask_around()
        reasons = {letter.rank: letter.reason for letter in letters if not letter.gone}
        if reasons:
            what = "; ".join(f"rank {rank} stopped: {why}" for rank, why in reasons.items())
            gone = sorted(reasons)
        elif gone:
            what = (
                f"{_ranks(gone)} gone, without a word: killed, perhaps, for want of memory; "
                "what was printed there may tell"
            )
        else:
            # Which of the two cannot be told from the error: gloo breaks the connection on a
            # time-out, and it may be the call after that which fails.
            what = (
                "another process does not answer, though none has ended: it hangs (longer than "
                f"training.timeout = {self.timeout} s), or the network between them failed"
            )
        self._post(Letter(self.rank, what, tuple(gone)))
        lost = ProcessLost(
            f"{what} (noticed by rank {self.rank} of {self.size}, {self.doing}: "
            f"{_first_line(error)}). {self._how_to_go_on()}"
        )
        set_origin(lost, self.rank, here=True)
        return lost

    def _ask_around(self, patience: float = 3.0) -> tuple[list[Letter], list[int]]:
        """Letters that say who was lost, or else which processes have ended."""
        until = time.monotonic() + patience
        letters: list[Letter] = []
        while True:
            letters += self.mailbox.letters()
            if letters:
                # Who left because another was lost is not the one to name.
                return letters, sorted({rank for letter in letters for rank in letter.gone})
            gone = [rank for rank, address in enumerate(self.addresses) if refused(address)]
            if gone or time.monotonic() > until:
                return self.mailbox.letters(), gone
            time.sleep(0.1)

    def _post(self, letter: Letter) -> None:
        post(letter, [a for rank, a in enumerate(self.addresses) if rank != self.rank])

    def _how_to_go_on(self) -> str:
        again = f"clipseq train --resume {self.folder.root}"
        if self.folder.last.exists():
            return f"Continue from the last checkpoint with: {again} (started as this run was)"
        if self.folder.config.exists():
            return f"No checkpoint was left yet; start again with: {again}"
        return "Nothing was written yet: start again"


@contextlib.contextmanager
def joined(config: "TrainingConfig") -> Iterator[Processes]:
    """The processes of the run, connected inside the block.

    Under torchrun (or anything that sets RANK and WORLD_SIZE as it does) they are those that it
    started. Otherwise `config.devices` on each of `config.nodes` machines, for which lightning
    starts this very command again, or finds what SLURM, LSF or MPI started. Of one process,
    nothing of torch.distributed is touched.

    Raises:
        ConfigError: processes that cannot be had: too few devices, half an environment; no such
            accelerator here.
        ProcessLost: instead of the RuntimeError of a collective, in the block as well.
    """
    devices, nodes = layout(config)
    joined_before = dist.is_available() and dist.is_initialized()
    if joined_before and dist.get_world_size() != devices * nodes:
        raise ConfigError(
            f"torch.distributed has {dist.get_world_size()} processes here, and the run "
            f"{devices * nodes}: let torchrun start them, or train start them by training.devices"
        )
    if devices * nodes == 1:
        _fabric(config, devices, nodes)  # made for its errors, before anything is written
        yield Processes()
        return
    if config.batch_size < devices * nodes:
        raise ConfigError(
            f"training.batch_size = {config.batch_size} is the batch of all processes together: "
            f"of {devices * nodes}, each needs at least one clip"
        )
    children = _connect(config, devices, nodes)
    with contextlib.ExitStack() as stack:
        if not joined_before:
            stack.callback(dist.destroy_process_group)
        mailbox = Mailbox(os.environ.get("MASTER_ADDR", "127.0.0.1"))
        stack.callback(mailbox.close)
        processes = _Many(config, mailbox)
        try:
            processes.meet()
            yield processes
        except BaseException as error:
            if _of_a_connection(error):
                raise processes.lost(error) from error
            everywhere = origin(error) is not None
            processes.leave(error)
            if everywhere:
                _wait_for(children)
            raise
        _wait_for(children)


def layout(config: "TrainingConfig") -> tuple[int, int]:
    """Processes on each machine, and machines: of the launcher's, or else of the config's."""
    if "RANK" not in os.environ:
        if config.nodes > 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
            raise ConfigError(
                f"training.nodes = {config.nodes}: say where the first of them is, with "
                "MASTER_ADDR, MASTER_PORT and NODE_RANK in the environment, or use torchrun"
            )
        return config.devices, config.nodes
    try:
        size, _ = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", size // config.nodes))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"RANK is set, but {error} is not as torchrun sets it: start the run with torchrun, "
            "or unset RANK"
        ) from None
    return here, size // here


def cluster(size: int) -> list[Any]:
    """What lightning has to be told of who started the processes; the rest it finds itself."""
    if size == 1 or "RANK" not in os.environ:
        return []
    from lightning.fabric.plugins.environments import TorchElasticEnvironment

    return [TorchElasticEnvironment()]


def _connect(config: "TrainingConfig", devices: int, nodes: int) -> list[Any]:
    """Join the process group; returns the processes that this one has started for it."""
    from lightning.fabric.strategies import DDPStrategy
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    strategy = DDPStrategy(timeout=timedelta(seconds=config.timeout))
    fabric = _fabric(config, devices, nodes, strategy=strategy)
    try:
        fabric.launch()
    except MisconfigurationException as error:
        raise _not_to_be_had(config, devices, error) from error
    except dist.DistError as error:
        raise ProcessLost(
            f"not all of the {devices * nodes} processes came together within training.timeout = "
            f"{config.timeout} s: {_first_line(error)}"
        ) from error
    started = getattr(fabric.strategy.launcher, "procs", [])
    children = list(started)
    if dist.get_backend() == "gloo":
        # Lightning would kill all of them a few seconds after one has failed, whatever they are
        # saying by then. They notice by themselves, where NCCL might not.
        started.clear()
    return children


def _fabric(config: "TrainingConfig", devices: int, nodes: int, **options: Any) -> Any:
    from lightning.fabric import Fabric
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return Fabric(
            accelerator=config.accelerator,
            devices=devices,
            num_nodes=nodes,
            plugins=cluster(devices * nodes),
            **options,
        )
    except (MisconfigurationException, RuntimeError, ValueError, ImportError) as error:
        raise _not_to_be_had(config, devices, error) from error


def _not_to_be_had(config: "TrainingConfig", devices: int, error: Exception) -> ConfigError:
    return ConfigError(
        f"training.devices = {devices} with training.accelerator = {config.accelerator!r}: {error}"
    )


def _wait_for(children: list[Any], patience: float = 60.0) -> None:
    """The process that the user started ends last, so that its end is that of the run."""
    until = time.monotonic() + patience
    for child in children:
        with contextlib.suppress(Exception):
            child.wait(max(0.0, until - time.monotonic()))


def _stopped_early() -> None:
    raise TrainingInterrupted("stopped before the first step; nothing is lost by starting again")


def _portable(error: BaseException | None) -> BaseException | None:
    """The error itself where it can be sent to another process, else what it says."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ClipseqError(f"{type(error).__name__}: {error}")
    return error


def _of_a_connection(error: BaseException) -> TypeGuard[RuntimeError]:
    if not isinstance(error, RuntimeError) or isinstance(error, ClipseqError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in text for sign in _BROKEN)


# gloo raises plain RuntimeErrors, some without the name of its source file: the first call that
# times out closes the pair of sockets, and the next, of which this is the error, finds it closed.
_BROKEN = (
    "gloo", "nccl", "pair closure", "socket closed", "timed out waiting", "connection closed",
    "connection reset", "broken pipe",
)  # fmt: skip


def _first_line(error: BaseException) -> str:
    # gloo leads with its source file and ends with advice.
    text = str(error).strip().splitlines()[0]
    return text.partition("] ")[2].partition(". ")[0] if text.startswith("[") else text


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]} are"
