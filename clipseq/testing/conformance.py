"""A check of one promise, the similarity under test, and the error for a broken promise."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Flaky, HypothesisException
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from clipseq.engine.process_state import restored
from clipseq.errors import ClipseqError
from clipseq.registry import get_similarity
from clipseq.sequences import Sequences
from clipseq.similarity import Similarity

PHASES = (Phase.generate, Phase.shrink)
"""Phases of a search: it finds an example, and then makes it smaller for the message."""

Make = str | type[Similarity] | Callable[[], Similarity]
"""A source of fresh similarities: a registered name, a class, or a function without arguments."""


class ConformanceError(AssertionError):
    """A broken promise; the message names it, the smallest example, and the places to look at."""


class Broken(Exception):
    """A finding that breaks a promise; checks raise it."""


class Subject:
    """The similarity under test, which is passed to a check.

    Attributes:
        label: its name in messages.
        features: D of the examples.
        max_examples: the largest number of examples that a search tries.
        example: the last example that was tried.
    """

    def __init__(self, make: Make, *, features: int | None = None, max_examples: int = 20) -> None:
        self._make = make
        self.label = label_of(make)
        check_examples(max_examples)
        self.max_examples = max_examples
        self.example: dict[str, Any] = {}
        embed_dim = self.make().embed_dim
        if features is not None and embed_dim not in (None, features):
            raise ValueError(
                f"features must be the embed_dim of the similarity, {embed_dim}, got {features}"
            )
        self.features: int = features or embed_dim or 4

    def make(self) -> Similarity:
        """Return a fresh similarity.

        Raises:
            Broken: if it cannot be created.
            TypeError: if the source creates something other than a similarity.
        """
        try:
            made = get_similarity(self._make) if isinstance(self._make, str) else self._make()
        except ClipseqError:
            raise  # the name is not registered, which is not a defect of the class
        except Exception as error:
            raise _raised(error, "creating one") from error
        if not isinstance(made, Similarity):
            raise TypeError(f"{self.label} must create a clipseq.Similarity, got {made!r}")
        if not hasattr(made, "embed_dim"):
            raise Broken("__init__ must call super().__init__(embed_dim=...), but does not")
        return made

    def evaluated(self, dtype: torch.dtype = torch.float64) -> Similarity:
        """Return a fresh similarity in eval mode and in `dtype`."""
        return self.make().eval().to(dtype)

    def trained(self, dtype: torch.dtype = torch.float64) -> Similarity:
        """Return the same as `evaluated`, with parameters moved a little from their initial values.

        A promise must hold for any parameters, and initial identities and zeros can hide mistakes.
        """
        similarity = self.evaluated(dtype)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in similarity.parameters():
                first, second = torch.randn(2, *parameter.shape, generator=generator).to(dtype)
                parameter.mul_(1 + 0.1 * first).add_(0.01 * second)
        return similarity

    def for_all(
        self,
        holds: Callable[..., None],
        *,
        examples: int | None = None,
        **strategies: SearchStrategy[Any],
    ) -> None:
        """Search for an example for which `holds` raises, and shrink it.

        The search is the same in every run.

        Raises:
            Broken: if `holds` raises; `self.example` is then the smallest example found.
        """

        def attempt(**drawn: Any) -> None:
            self.example = drawn
            holds(**drawn)

        limit = self.max_examples if examples is None else min(examples, self.max_examples)
        search = settings(
            max_examples=limit,
            derandomize=True,
            database=None,
            deadline=None,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )(given(**strategies)(attempt))
        try:
            search()
        except Flaky as error:
            raise Broken(
                "the same example must give the same result, but gave two; look for random numbers "
                "and for state that a call changes"
            ) from error
        except (Broken, HypothesisException):
            raise
        except Exception as error:
            raise _raised(error) from error

    def for_each(self, holds: Callable[..., None], examples: Iterable[dict[str, Any]]) -> None:
        """Call `holds` with each of these examples, the smallest first."""
        for example in examples:
            self.example = example
            try:
                holds(**example)
            except Broken:
                raise
            except Exception as error:
                raise _raised(error) from error


@attrs.frozen
class Check:
    """One promise of the contract.

    Attributes:
        name: name of the check.
        promise: the promise, in one line.
        function: function of a `Subject` that raises if the promise is broken.
        look_at: the places where an author should look first.
        after: the check to fix first; if a similarity breaks both, the message points to it. None
            for the first check.
    """

    name: str
    promise: str
    function: Callable[[Subject], None] = attrs.field(repr=False)
    look_at: str = attrs.field(repr=False)
    after: "Check | None" = attrs.field(default=None, repr=False)

    def run(self, make: Make, *, features: int | None = None, max_examples: int = 20) -> None:
        """Check what `make` creates; the arguments are those of `check_similarity`.

        The state of the process, random generators included, is unchanged afterwards.

        Raises:
            ConformanceError: if the promise is broken.
        """
        __tracebackhide__ = True  # for pytest: the message says it all
        with restored(), torch.enable_grad():
            self._run(make, features, max_examples)

    def _run(self, make: Make, features: int | None, max_examples: int) -> None:
        __tracebackhide__ = True
        found, example = self._found(make, features, max_examples)
        if found is None:
            return
        lines = [f"{label_of(make)} breaks the promise {self.name!r}: {self.promise}"]
        if self.after is not None and self.after._found(make, features, max_examples)[0]:
            lines.append(f"  it breaks {self.after.name!r}, too: look there first")
        lines.append(f"  found: {found}")
        if example:
            lines.append("  smallest example:")
            lines += [f"    {line}" for line in _shown(example)]
        hint = self.look_at
        if _has_padding(example) and "padded" not in hint:
            hint = (
                "padded steps first, since the smallest example has some: they must not count, as "
                f"'ragged_batches' checks; then {hint}"
            )
        lines.append(f"  look at: {hint}")
        raise ConformanceError("\n".join(lines)) from found.__cause__

    def _found(
        self, make: Make, features: int | None, max_examples: int
    ) -> tuple[Broken | None, dict[str, Any]]:
        """Return the finding that breaks the promise, or None, and its smallest example."""
        __tracebackhide__ = True
        try:
            subject = Subject(make, features=features, max_examples=max_examples)
        except Broken as broken:
            return broken, {}
        try:
            self.function(subject)
        except HypothesisException:
            raise
        except Exception as error:
            return error if isinstance(error, Broken) else _raised(error), subject.example
        return None, {}


def label_of(make: Make) -> str:
    """Return a name for the similarity that `make` creates.

    Raises:
        TypeError: if `make` is a similarity already, or cannot be called.
    """
    if isinstance(make, Similarity) or not (isinstance(make, str) or callable(make)):
        raise TypeError(
            "make must be a registered name, a class, or a function that creates a similarity, "
            f"such as lambda: Foo(size=3), got {make!r}"
        )
    if isinstance(make, str):
        return make
    name = getattr(make, "__qualname__", "<lambda>")
    if "<lambda>" not in name:
        return name
    try:
        return type(make()).__qualname__
    except Exception:  # the first check reports it
        return name


def check_examples(max_examples: int) -> None:
    """Raise TypeError or ValueError unless `max_examples` is a positive integer."""
    if type(max_examples) is not int:
        raise TypeError(f"max_examples must be an integer, got {max_examples!r}")
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}")


def check_same(found: Tensor, wanted: Tensor, tolerance: float, what: str, where: str) -> None:
    """Raise `Broken` if two tensors differ by more than `tolerance`, which is relative above 1."""
    if found.shape != wanted.shape:
        raise Broken(
            f"{what} must have the shape {tuple(wanted.shape)}, as {where}, "
            f"got {tuple(found.shape)}"
        )
    found, wanted = found.detach().double(), wanted.detach().double()
    check_finite(found, what)
    apart = (found - wanted).abs() / wanted.abs().clamp(min=1)
    if apart.numel() and not bool((apart <= tolerance).all()):
        index = _worst(apart)
        raise Broken(
            f"{what}{list(index)} must be {wanted[index]:.6g}, as {where}, got {found[index]:.6g}"
        )


def check_finite(values: Tensor, what: str, limit: float = float("inf")) -> None:
    """Raise `Broken` if a value is not finite or larger than `limit` in magnitude."""
    size = values.detach().double().abs()
    bad = ~(size <= limit) | ~size.isfinite()
    if bool(bad.any()):
        index = _worst(torch.where(bad, torch.inf, size))
        bound = "finite" if limit == float("inf") else f"at most {limit:g} in size"
        raise Broken(f"{what}{list(index)} must be {bound}, got {values[index]:.6g}")


def check_only(value: Tensor, where: Tensor, wanted: float, what: str) -> None:
    """Raise `Broken` unless `value` is exactly `wanted` wherever `where` is True."""
    bad = where & ~(value.detach() == wanted)
    if bool(bad.any()):
        index = _worst(bad.double())
        raise Broken(f"{what}{list(index)} must be {wanted:g}, got {value[index]:.6g}")


def _worst(size: Tensor) -> tuple[int, ...]:
    flat = size.nan_to_num(nan=torch.inf, posinf=torch.inf).argmax()
    return tuple(int(k) for k in torch.unravel_index(flat, size.shape))


def _raised(error: Exception, what: str = "it") -> Broken:
    text = str(error)
    broken = Broken(f"{what} raised {type(error).__name__}: {text[:600]}{'…' * (len(text) > 600)}")
    broken.__cause__ = error
    return broken


@contextlib.contextmanager
def tiles_of(similarity: Similarity, elements: int) -> Iterator[None]:
    """Make a similarity and its parts score in tiles of at most `elements` cells."""
    members = [module for module in similarity.modules() if isinstance(module, Similarity)]
    before = [member.tile_elements for member in members]
    try:
        for member in members:
            member.tile_elements = elements
        yield
    finally:
        for member, size in zip(members, before, strict=True):
            member.tile_elements = size


def _shown(example: Mapping[str, Any]) -> Iterator[str]:
    for name, value in example.items():
        if isinstance(value, Sequences):
            yield from _shown_sequences(name, value)
        elif isinstance(value, tuple) and all(isinstance(part, Sequences) for part in value):
            for side, part in zip("xyz", value, strict=False):
                yield from _shown_sequences(side, part)
        elif isinstance(value, Tensor):
            yield f"{name}: {tuple(value.shape)} {value.dtype}, {value.flatten()[:8].tolist()}"
        else:
            yield f"{name}: {value!r}"


def _has_padding(example: Mapping[str, Any]) -> bool:
    for value in example.values():
        parts = value if isinstance(value, tuple) and not isinstance(value, Sequences) else (value,)
        if any(isinstance(part, Sequences) and not bool(part.mask.all()) for part in parts):
            return True
    return False


_ROWS, _STEPS, _FEATURES = 4, 8, 6


def _shown_sequences(name: str, sequences: Sequences) -> Iterator[str]:
    values, mask = sequences
    yield f"{name}: {tuple(values.shape)} {str(values.dtype).removeprefix('torch.')}"
    for row, real in zip(values[:_ROWS].tolist(), mask[:_ROWS].tolist(), strict=True):
        steps = [
            "("
            + ", ".join(f"{v:.3g}" for v in step[:_FEATURES])
            + ", …" * (len(step) > _FEATURES)
            + ")"
            if is_real
            else "padding"
            for step, is_real in zip(row[:_STEPS], real[:_STEPS], strict=True)
        ]
        yield "   " + " ".join(steps) + " …" * (len(row) > _STEPS)
    if len(values) > _ROWS:
        yield f"   … {len(values) - _ROWS} more"
