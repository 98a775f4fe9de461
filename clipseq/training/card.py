"""Facts for the model card of a run: what the model was trained on, and for how long."""

import attrs

from clipseq.data import MapDataset
from clipseq.data.clip import TEXT
from clipseq.model import CardFacts
from clipseq.training.config import RunConfig


def card_of_run(config: RunConfig, training: MapDataset, steps: int, which: str) -> CardFacts:
    """Return the facts in [card], with the training data described unless [card] describes them.

    Args:
        config: the run.
        training: the clips that it trains on.
        steps: its optimizer steps.
        which: the step that the weights are from, and why.
    """
    data = config.card.data
    if data is None:
        data = _describe(config, training, steps)
    return attrs.evolve(config.card, data=f"{data} The weights are those of {which}.")


def _describe(config: RunConfig, training: MapDataset, steps: int) -> str:
    signals = [name for name in training.modalities if name != TEXT]
    captions = f" with {len(set(training.captions))} different captions"
    what = f"{len(training)} clips of {' and '.join(signals)}"
    return (
        f"{what}{captions if TEXT in training.modalities else ''}, {_source(config)}. "
        f"{steps} optimizer steps of {config.training.batch_size} clips each, at a learning rate "
        f"of up to {config.training.learning_rate:g}, with seed {config.training.seed}."
    )


def _source(config: RunConfig) -> str:
    data = config.data
    if data.simulated is not None:
        return f"from clipseq's simulator with seed {data.simulated.seed}"
    path = data.path or data.radhar
    assert path is not None
    # Only the name, because a whole path would show the author's disk to strangers.
    spliced = ", spliced from recordings of single actions" if data.path is None else ""
    return f"from `{path.name}`{spliced}"
