"""A promise, the similarity that is checked for it, and what is said when it breaks."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Flaky, HypothesisException
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from clipseq.errors import ClipseqError
from clipseq.registry import get_similarity
from clipseq.sequences import Sequences
from clipseq.similarity import Similarity

Make = str | type[Similarity] | Callable[[], Similarity]
"""How to get a fresh similarity: a registered name, a class, or a function without arguments."""


class ConformanceError(AssertionError):
    """A similarity breaks a promise. The message: which, the smallest example, where to look."""


class Broken(Exception):
    """Raised inside a check: what was found."""


class Subject:
    """The similarity under test, as a check sees it.

    Attributes:
        label: what messages call it.
        features: D of the examples.
        max_examples: how many examples a search may try.
        example: the example that was tried last.
    """

    def __init__(self, make: Make, *, features: int | None = None, max_examples: int = 20) -> None:
        self._make = make
        self.label = label_of(make)
        check_examples(max_examples)
        self.max_examples = max_examples
        self.example: dict[str, Any] = {}
        embed_dim = self.make().embed_dim
        if features is not None and embed_dim not in (None, features):
            raise ValueError(f"features={features}, but the similarity has embed_dim={embed_dim}")
        self.features: int = features or embed_dim or 4

    def make(self) -> Similarity:
        """A fresh one, as its author made it.

        Raises:
            Broken: it cannot be made.
            TypeError: what is made is something else.
        """
        try:
            made = get_similarity(self._make) if isinstance(self._make, str) else self._make()
        except ClipseqError:
            raise  # no similarity of that name: nothing that its author could mend
        except Exception as error:
            raise _raised(error, "making one") from error
        if not isinstance(made, Similarity):
            raise TypeError(f"{self.label} must make a clipseq.Similarity, it made {made!r}")
        if not hasattr(made, "embed_dim"):
            raise Broken("its __init__ does not call super().__init__(embed_dim=...)")
        return made

    def evaluated(self, dtype: torch.dtype = torch.float64) -> Similarity:
        """A fresh one in eval mode and of that dtype."""
        return self.make().eval().to(dtype)

    def trained(self, dtype: torch.dtype = torch.float64) -> Similarity:
        """As `evaluated`, with parameters moved a little from where they start.

        A promise holds whatever the parameters are; identities and zeros hide what breaks it.
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

        The search is the same in every run. Without a failure, nothing happens.

        Raises:
            Broken: with `self.example` the smallest example found.
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
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )(given(**strategies)(attempt))
        try:
            search()
        except Flaky as error:
            raise Broken(
                "the same example gave different results: something is random, or remembered"
            ) from error
        except (Broken, HypothesisException):
            raise
        except Exception as error:
            raise _raised(error) from error

    def for_each(self, holds: Callable[..., None], examples: Iterable[dict[str, Any]]) -> None:
        """`holds` for each of these examples, smallest first."""
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
        name: of the check.
        promise: in one line.
        function: raises if the `Subject` that it is given breaks the promise.
        look_at: where an author should look first.
        after: the check without which this one says little: what breaks both is told to mend
            that one. None: this is the first.
    """

    name: str
    promise: str
    function: Callable[[Subject], None] = attrs.field(repr=False)
    look_at: str = attrs.field(repr=False)
    after: "Check | None" = attrs.field(default=None, repr=False)

    def run(self, make: Make, *, features: int | None = None, max_examples: int = 20) -> None:
        """Check what `make` makes; arguments as those of `check_similarity`.

        Raises:
            ConformanceError: it breaks the promise.
        """
        __tracebackhide__ = True  # by pytest: the message has what there is to see
        found, example = self._found(make, features, max_examples)
        if found is None:
            return
        lines = [f"{label_of(make)} breaks the promise {self.name!r}: {self.promise}"]
        if self.after is not None and self.after._found(make, features, max_examples)[0]:
            lines.append(f"  it breaks {self.after.name!r} too: look there first")
        lines.append(f"  found: {found}")
        if example:
            lines.append("  smallest example:")
            lines += [f"    {line}" for line in _shown(example)]
        lines.append(f"  look at: {self.look_at}")
        raise ConformanceError("\n".join(lines)) from found.__cause__

    def _found(
        self, make: Make, features: int | None, max_examples: int
    ) -> tuple[Broken | None, dict[str, Any]]:
        """What breaks the promise, if anything does, and the smallest example of it."""
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
    """What to call the similarity that `make` makes.

    Raises:
        TypeError: it makes none, as it is a similarity already, or nothing that can be called.
    """
    if isinstance(make, Similarity) or not (isinstance(make, str) or callable(make)):
        raise TypeError(
            "what is checked is made afresh: give a registered name, a class, or a function such "
            f"as lambda: Foo(size=3), got {make!r}"
        )
    if isinstance(make, str):
        return make
    name = getattr(make, "__qualname__", "<lambda>")
    if "<lambda>" not in name:
        return name
    try:
        return type(make()).__qualname__
    except Exception:  # the first check says which
        return name


def check_examples(max_examples: int) -> None:
    """Raise TypeError or ValueError unless a search may try so many examples."""
    if type(max_examples) is not int:
        raise TypeError(f"max_examples must be an integer, got {max_examples!r}")
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}")


def same(found: Tensor, wanted: Tensor, tolerance: float, what: str, where: str) -> None:
    """Raise `Broken` where two tensors differ by more than `tolerance`, relative above 1."""
    if found.shape != wanted.shape:
        raise Broken(f"{what}: shape {tuple(found.shape)}, and {tuple(wanted.shape)} {where}")
    found, wanted = found.detach().double(), wanted.detach().double()
    finite(found, what)
    apart = (found - wanted).abs() / wanted.abs().clamp(min=1)
    if apart.numel() and not bool((apart <= tolerance).all()):
        index = _worst(apart)
        raise Broken(f"{what}{list(index)} is {found[index]:.6g}, and {wanted[index]:.6g} {where}")


def finite(values: Tensor, what: str, limit: float = float("inf")) -> None:
    """Raise `Broken` at a value that is not finite, or larger than `limit`."""
    size = values.detach().double().abs()
    bad = ~(size <= limit) | ~size.isfinite()
    if bool(bad.any()):
        index = _worst(torch.where(bad, torch.inf, size))
        excess = "" if limit == float("inf") else f", beyond {limit:g}"
        raise Broken(f"{what}{list(index)} is {values[index]:.6g}{excess}")


def only(value: Tensor, where: Tensor, wanted: float, what: str) -> None:
    """Raise `Broken` unless `value` is exactly `wanted` wherever `where` holds."""
    bad = where & ~(value.detach() == wanted)
    if bool(bad.any()):
        index = _worst(bad.double())
        raise Broken(f"{what}{list(index)} is {value[index]:.6g}, not {wanted:g}")


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
    """Have it, and whatever it is made of, score in tiles of at most so many cells."""
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
