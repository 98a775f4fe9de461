"""Checks of Triton kernels, which need no GPU.

Triton decides at its first import whether to interpret kernels or to compile them, and torch may
have imported it already. So everything here runs in a separate process.

- `run_kernels` computes an operator of `clipseq.engine` with its kernels: on a GPU if there is one,
  and through Triton's interpreter otherwise. `check_kernels` compares the results with those of the
  operator's code in torch.
- `compile_kernels` compiles kernels to machine code for a GPU that need not be present, and
  measures what the interpreter cannot: shared memory, registers, use of tensor cores.
- `peak_of_kernels` measures how much memory the launchers allocate, at a size that no device needs
  to hold.
- `check_similarity_with_kernels` runs the contract's checks through the kernels.

Functions and operators that are passed here must be defined at the top of a file, since the other
process imports them from there.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from inspect import getsourcefile, unwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import Tensor

from clipseq.engine import Operator

SHARED_MEMORY = {80: 163, 86: 99, 89: 99, 90: 227}
"""Largest shared memory of one program, in KiB, by compute capability (times ten)."""

_REGISTERS = 2**16
"""Number of registers of a multiprocessor."""

CHECKS_IN_FLOAT32 = (
    "forward_and_backward",
    "options",
    "deterministic",
    "registered_tensors",
    "state_dict",
    "deepcopy",
    "pickle",
    "shape_and_dtype",
    "range",
    "zero_vectors",
    "magnitudes",
    "long_against_short",
    "padding_gradient",
    "training_steps",
    "float32",
    "autocast",
    "compile",
    "pairs",
    "bounded_memory",
)
"""The checks that score in float32. Kernels leave float64, in which the others score, to torch."""


@attrs.frozen(eq=False)
class KernelCase:
    """Inputs for which the kernels of an operator compute scores and gradients.

    Attributes:
        operator: the operator, defined at the top of a module.
        inputs: its inputs. Floating-point tensors are float32.
        weights: gradient to the scores, of the same shape.
        settings: name -> value of constants of the kernels' module, such as a small workspace; they
            replace the module's own values for this case.
        precision: "ieee" or "tf32", torch's precision of products in float32.
    """

    operator: Operator
    inputs: tuple[Any, ...]
    weights: Tensor
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    precision: str = "ieee"


@attrs.frozen
class CompiledKernel:
    """A kernel that was compiled ahead of time.

    Attributes:
        name: its module and its name.
        threads: number of threads per program.
        shared: bytes of shared memory per program.
        registers: number of registers per thread.
        stack: bytes per thread that did not fit into registers.
        products: number of instructions for tensor cores.
        barriers: number of barriers for all threads of a program.
    """

    name: str
    threads: int
    shared: int
    registers: int
    stack: int
    products: int
    barriers: int

    def fits(self, capability: int) -> bool:
        """Return True if a GPU of this compute capability (times ten) can run one program."""
        shared = 1024 * SHARED_MEMORY[capability]
        return self.shared <= shared and self.registers * self.threads <= _REGISTERS


def run_kernels(
    cases: Mapping[str, KernelCase], *, timeout: int = 600
) -> dict[str, tuple[Tensor, ...]]:
    """Compute each case with kernels.

    Returns:
        For each name, the scores and the gradients of ``(scores * weights).sum()``, one for each
        floating-point tensor among the inputs, all on the CPU.

    Raises:
        AssertionError: kernels did not compute a case, or failed.
    """
    told = {
        name: {**_fields(case), "operator": case.operator.name, "from": _place(case.operator)}
        for name, case in cases.items()
    }
    environment = {"CLIPSEQ_TRITON": "1"}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    found: dict[str, tuple[Tensor, ...]] = _in_own_process("_run", (told,), environment, timeout)
    return found


def check_kernels(
    cases: Mapping[str, KernelCase],
    *,
    scores_within: float = 2e-6,
    gradients_within: float = 5e-6,
    timeout: int = 600,
) -> None:
    """Compare the kernels with the operator's code in torch, in float64.

    Args:
        cases: the cases, by name.
        scores_within: largest difference of a score.
        gradients_within: largest difference of a gradient, relative to its largest entry.
        timeout: seconds until the kernels must be done.

    Raises:
        AssertionError: kernels did not compute a case, failed, or computed something else.
    """
    found = run_kernels(cases, timeout=timeout)
    for name, case in cases.items():
        inputs = [_in_float64(value) for value in case.inputs]
        exact, *exact_gradients = _differentiated(case.operator, inputs, case.weights.double())
        scores, *gradients = found[name]
        wrong = (scores - exact).abs().max().item()
        assert wrong <= scores_within, f"{name}: a score is off by {wrong:.1e}"
        for number, (gradient, other) in enumerate(zip(gradients, exact_gradients, strict=True)):
            wrong = (gradient - other).abs().max().item()
            assert wrong <= gradients_within * other.abs().max().item(), (
                f"{name}: gradient {number} is off by {wrong:.1e}"
            )


def compile_kernels(
    launch: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    *,
    capability: int,
    timeout: int = 600,
) -> list[list[CompiledKernel]]:
    """Compile the kernels that calls of `launch` would start on a GPU, without starting them.

    Args:
        launch: a function at the top of a file; it calls launchers with tensors on the CPU, with
            any content.
        arguments: arguments of each call.
        capability: compute capability (times ten) of the GPU, such as 90.
        timeout: seconds until all kernels must be compiled.

    Returns:
        For each call, the kernels that no earlier call had compiled already.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {"TRITON_CACHE_DIR": cache}
        told = _place(launch), launch.__qualname__, list(arguments), capability
        found = _in_own_process("_compile", told, environment, timeout)
    return [[CompiledKernel(**kernel) for kernel in kernels] for kernels in found]


def peak_of_kernels(
    launch: Callable[..., Any], *arguments: Any, timeout: int = 600
) -> tuple[int, set[str]]:
    """Return the peak of allocated bytes in ``launch(*arguments)``, and the kernels it starts.

    It runs with "meta" as the default device: tensors have sizes but no data, kernels are not
    started, and reading a value is an error, because it would stall a GPU.

    Args:
        launch: a function at the top of a file, which creates its own tensors.
        arguments: its arguments.
        timeout: seconds until it must be done.

    Raises:
        AssertionError: `launch` failed.
    """
    told = _place(launch), launch.__qualname__, arguments
    peak, kernels = _in_own_process("_allocate", told, {}, timeout)
    return peak, set(kernels)


def check_similarity_with_kernels(
    name: str,
    *,
    skip: Mapping[str, str] | None = None,
    max_examples: int = 2,
    timeout: int = 600,
) -> None:
    """Run the checks that score in float32 on a registered similarity with interpreted kernels.

    Kernels leave float64 to torch, so the checks that score in float64 only would run what
    `check_similarity` runs.

    Args:
        name: the similarity.
        skip: name of a check -> reason to leave it out. Some take minutes with the interpreter.
        max_examples: largest number of examples that each search tries.
        timeout: seconds until all checks must be done.

    Raises:
        AssertionError: a check failed.
    """
    environment = {"CLIPSEQ_TRITON": "1", "TRITON_INTERPRET": "1"}  # the checks are for a CPU
    told = name, dict(skip or {}), max_examples
    _in_own_process("_check_similarity", told, environment, timeout)


def _fields(case: KernelCase) -> dict[str, Any]:
    return {name: getattr(case, name) for name in ("inputs", "weights", "settings", "precision")}


def _in_float64(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _differentiated(
    operator: Operator, inputs: Sequence[Any], weights: Tensor
) -> tuple[Tensor, ...]:
    inputs = [
        value.detach().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for value in inputs
    ]
    result = operator(*inputs)
    scores = result[0] if isinstance(result, tuple) else result
    wanted = [value for value in inputs if isinstance(value, Tensor) and value.requires_grad]
    return scores.detach(), *torch.autograd.grad((scores * weights).sum(), wanted)


def _place(what: Any) -> tuple[str, str]:
    """Return the module and the file in which a function or an operator is defined."""
    function = what.forward if isinstance(what, Operator) else what
    file = getsourcefile(unwrap(function))
    if file is None or not Path(file).exists():
        raise ValueError(f"{what!r} must be defined in a file, got no source file; put it into one")
    return function.__module__, str(Path(file).resolve())


def _in_own_process(
    task: str, told: tuple[Any, ...], environment: Mapping[str, str], timeout: int
) -> Any:
    """Run a function of this module in a new process and return its result."""
    _check_triton()
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(told, Path(folder, "told"))
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from clipseq.testing import kernels; kernels._answer(*sys.argv[1:])",
                task,
                folder,
            ],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**variables, **environment},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(Path(folder, "answer"), weights_only=False)


def _check_triton() -> None:
    if find_spec("triton") is None:
        raise ModuleNotFoundError(
            "triton must be installed to check kernels; pip install triton", name="triton"
        )


# What follows runs in the other process.


def _answer(task: str, folder: str) -> None:
    torch.set_num_threads(1)
    told = torch.load(Path(folder, "told"), weights_only=False)
    torch.save(globals()[task](*told), Path(folder, "answer"))


def _module(name: str, file: str) -> ModuleType:
    """Import a module by its name if that leads to this file, otherwise from the file."""
    try:
        found = import_module(name)
        if Path(found.__file__ or "").resolve() == Path(file):
            return found
    except ModuleNotFoundError:
        pass
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _operator(name: str, place: tuple[str, str]) -> Operator:
    for value in vars(_module(*place)).values():
        if isinstance(value, Operator) and value.name == name:
            return value
    raise AssertionError(f"the operator {name} must be at the top of {place[1]}")


def _run(cases: Mapping[str, dict[str, Any]]) -> dict[str, tuple[Tensor, ...]]:
    return {name: _run_one(**case) for name, case in cases.items()}


def _run_one(
    operator: str,
    inputs: tuple[Any, ...],
    weights: Tensor,
    settings: Mapping[str, Any],
    precision: str,
    **place: tuple[str, str],
) -> tuple[Tensor, ...]:
    it = _operator(operator, place["from"])
    assert it.kernels is not None, f"{operator} declares no kernels"
    kernels = import_module(it.kernels)
    calls = {"forward": 0, "backward": 0}
    usual = {name: getattr(kernels, name) for name in (*calls, *settings)}

    def counting(name: str) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return usual[name](*arguments)

        return call

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.fp32_precision = precision
    for name, value in {**settings, **{name: counting(name) for name in calls}}.items():
        setattr(kernels, name, value)
    try:
        moved = [value.to(device) if isinstance(value, Tensor) else value for value in inputs]
        found = _differentiated(it, moved, weights.to(device))
    finally:
        for name, value in usual.items():
            setattr(kernels, name, value)
    assert min(calls.values()) > 0, f"torch computed {operator}, not its kernels"
    return tuple(value.cpu() for value in found)


def _compile(
    place: tuple[str, str], name: str, arguments: Sequence[tuple[Any, ...]], capability: int
) -> list[list[dict[str, Any]]]:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Absent:
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", capability, 32))

    run = JITFunction.run
    known: list[Any] = []
    new: list[dict[str, Any]] = []

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        if not any(kernel is other for other in known):
            known.append(kernel)
            new.append(_measured(kernel, f"{self.fn.__module__}.{self.fn.__name__}"))
        return kernel

    JITFunction.run = compile_only
    driver.set_active(Absent())
    launch = getattr(_module(*place), name)
    found = []
    for some in arguments:
        launch(*some)
        found.append(list(new))
        new.clear()
    return found


def _measured(kernel: Any, name: str) -> dict[str, Any]:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    numbers = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert numbers, f"cuobjdump reports no registers of {name}"
    return {
        "name": name,
        "threads": 32 * kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "registers": int(numbers[1]),
        "stack": int(numbers[2]),
        "products": len(re.findall(r"wgmma\.mma_async|mma\.sync", kernel.asm["ptx"])),
        "barriers": kernel.asm["ptx"].count("bar.sync"),
    }


def _allocate(
    place: tuple[str, str], name: str, arguments: tuple[Any, ...]
) -> tuple[int, list[str]]:
    import weakref

    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from triton.runtime.jit import JITFunction

    launched: set[str] = set()

    def only_note(self: Any, *_: Any, **__: Any) -> None:
        launched.add(self.fn.__name__)

    JITFunction.run = only_note

    class Counting(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.live, self.peak = 0, 0
            self.seen: Any = weakref.WeakKeyDictionary()

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self.seen:
                    storage = leaf.untyped_storage()
                    self.seen[storage] = True
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self.forget, storage.nbytes())
            self.peak = max(self.peak, self.live)
            return result

        def forget(self, size: int) -> None:
            self.live -= size

    launch = getattr(_module(*place), name)
    with torch.device("meta"), Counting() as counting:
        launch(*arguments)
    return counting.peak, sorted(launched)


def _check_similarity(name: str, skip: Mapping[str, str], max_examples: int) -> None:
    import warnings

    from clipseq.engine import use_kernels
    from clipseq.testing.checks import CHECKS
    from clipseq.testing.run import check_similarity

    assert use_kernels(torch.zeros(1)), "Triton's interpreter does not compute here"
    warnings.simplefilter("ignore")  # from numpy, which interprets
    in_torch = dict.fromkeys(set(CHECKS) - set(CHECKS_IN_FLOAT32), "kernels leave float64 to torch")
    check_similarity(name, skip=in_torch | dict(skip), max_examples=max_examples)
