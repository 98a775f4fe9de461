"""The public callables, each with a right call, of which the tests make wrong ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

import clipseq
from clipseq import (
    CLIP,
    ClipLoss,
    Encoded,
    Index,
    ModelConfig,
    SequenceLoss,
    Sequences,
    SigLipLoss,
    SignalConfig,
    TextConfig,
    augment,
    bridges,
    data,
    encoders,
    evaluation,
    figures,
    retrieval,
    training,
)
from clipseq.config import structure, unstructure
from clipseq.data import Clip, MapDataset
from clipseq.model import CardFacts
from clipseq.testing import check_similarity, parametrize_with_checks, sequence_pairs, sequences

DOCUMENTED = (clipseq.ClipseqError, TypeError, ValueError)
"""The exceptions that `clipseq.errors` documents; a target adds those of its docstring."""

SIZE = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
X, Y = torch.linspace(-1, 1, 24).view(2, 3, 4), torch.linspace(1, -2, 32).view(2, 4, 4)
X_MASK, Y_MASK = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(), torch.ones(2, 4).bool()
POOLED = torch.linspace(-1, 2, 8).view(2, 4)
MAP = np.linspace(-1, 1, 40, dtype=np.float32).reshape(4, 10)
LABELS = ("first", "second")


def clip(number: int = 0, **changes: Any) -> Clip:
    values = {"id": f"c{number}", "signal": {"a": MAP + number}, "caption": f"a {number} walks"}
    return Clip(**{**values, **changes})


@attrs.frozen
class Target:
    """One public callable and a right call of it.

    Attributes:
        name: its name in the report.
        call: calls it with the arguments.
        good: right arguments by name; those of `Target.names` are passed.
        holds: raises AssertionError if a result is wrong though no error was raised.
        raises: exceptions of its docstring that `DOCUMENTED` lacks.
        small: arguments whose size the call pays for; nothing huge is drawn for them.
        rejected: the error of the right call, for a call that must not succeed in a test.
        covers: the public object that this target stands for; None: `call` itself.
    """

    name: str
    call: Callable[..., Any]
    good: Mapping[str, Any]
    holds: Callable[[Any], None] = lambda result: None
    raises: tuple[type[BaseException], ...] = ()
    small: frozenset[str] = frozenset()
    rejected: type[Exception] | None = None
    covers: Any = None


def finite(result: Any) -> None:
    """Assert that every tensor in `result` is finite."""
    if isinstance(result, Tensor):
        assert not result.is_meta, "a result without values"
        assert bool(result.isfinite().all()), f"got {result}"
    elif isinstance(result, np.ndarray):
        assert np.isfinite(result).all(), f"got {result}"
    elif isinstance(result, tuple | list):
        for part in result:
            finite(part)
    elif isinstance(result, Mapping):
        for part in result.values():
            finite(part)


def scores(result: Tensor) -> None:
    """Assert that scores are in [-1, 1]."""
    finite(result)
    assert bool((result.abs() <= 1).all())


def comes_back(cls: type) -> Callable[[Any], None]:
    """Return a check that a config can be written and read: what is accepted is of its type."""

    def holds(config: Any) -> None:
        assert structure(cls, unstructure(config)) == config

    return holds


def model_comes_back(config: ModelConfig) -> None:
    """Assert that the table of a model's config gives the same config."""
    assert ModelConfig.from_table(config.table()).table() == config.table()


def usable(similarity: nn.Module) -> None:
    """Assert that what `get_similarity` returned scores sequences of its own size."""
    size = similarity.embed_dim or 4
    if size < 1000:
        torch.manual_seed(0)
        scores(similarity(torch.randn(2, 3, size), torch.randn(2, 5, size)))


def learns(loss: nn.Module) -> None:
    """Assert that what `get_loss` returned gives a finite loss."""
    finite(loss(POOLED, POOLED.flip(0)))


def option_targets() -> list[Target]:
    """Return a target for each built-in similarity and loss, with all of its options."""
    options: dict[str, dict[str, Any]] = {
        "global": {"pool": "max", "embed_dim": 4},
        "local": {"window": (2, 0.5), "stride": (1, 2), "direction": "x", "embed_dim": 4},
        "attention": {"num_heads": 2, "temperature": 0.1, "embed_dim": 4},
        "temporal": {"gamma": 0.1, "band": 0.5, "embed_dim": 4},
        "combined": {
            "parts": {"global": {"pool": "mean"}, "local": {"window": 2}},
            "weights": {"global": 0.5, "local": 1.0},
            "embed_dim": 4,
        },
    }
    targets = [
        Target(
            f"get_similarity {name}",
            lambda name, **given: clipseq.get_similarity(name, **given),
            {"name": name, **given},
            usable,
            small=frozenset({"embed_dim"}),
            covers=clipseq.get_similarity,
        )
        for name, given in options.items()
    ]
    losses: dict[str, dict[str, Any]] = {
        "clip": {"init_scale": 10.0, "max_scale": 50.0, "gather": "all"},
        "siglip": {"init_scale": 10.0, "init_bias": -5.0, "max_scale": 50.0, "gather": None},
    }
    return targets + [
        Target(
            f"get_loss {name}",
            lambda name, **given: clipseq.get_loss(name, **given),
            {"name": name, **given},
            learns,
            covers=clipseq.get_loss,
        )
        for name, given in losses.items()
    ]


def calls_of_similarities() -> list[Target]:
    """Return targets for the calls of every built-in similarity with wrong tensors."""
    good = {"x": X, "y": Y, "x_mask": X_MASK, "y_mask": Y_MASK}
    targets = []
    for name in ("global", "local", "attention", "temporal", "combined"):
        options = {"num_heads": 2} if name == "attention" else {}
        if name == "combined":
            options = {"parts": {"local": {"window": 2}, "attention": {"num_heads": 2}}}
        similarity = clipseq.get_similarity(name, **options)
        for method in ("forward", "pairs", "explain", "prepare"):
            call = similarity if method == "forward" else getattr(similarity, method)
            targets.append(Target(f"{name}.{method}", call, good))
        bound = clipseq.get_similarity(name, **{**options, "embed_dim": 4}) if options else None
        if bound is not None:
            targets.append(Target(f"{name} of a size", bound, good))
    similarity = clipseq.get_similarity("local", window=2)
    side = {"side": "x", "values": X, "mask": X_MASK}
    embedded = {"queries_embeddings": X, "queries_mask": X_MASK}
    for make, wrap in (
        (bridges.SimilarityFct, False),
        (bridges.PairwiseFct, False),
        (bridges.DistillationFct, True),
    ):
        theirs = {
            "documents_embeddings": torch.stack([Y, Y]),
            "documents_mask": torch.stack([Y_MASK, Y_MASK]),
        }
        if not wrap:
            theirs = {"documents_embeddings": Y, "documents_mask": Y_MASK}
        targets.append(
            Target(f"{make.__name__}()", make(similarity), embedded | theirs, covers=make)
        )
    targets.append(
        Target(
            "Similarity",
            type(similarity),
            {"embed_dim": 4},
            small=frozenset({"embed_dim"}),
            covers=clipseq.Similarity,
        )
    )
    targets.append(Target("prepare_side", similarity.prepare_side, side))
    return targets


def losses() -> list[Target]:
    """Return targets for the calls of losses."""
    groups = torch.tensor([0, 1])
    pooled = {"x": POOLED, "y": POOLED.flip(0), "groups": groups}
    similarity = clipseq.get_similarity("local", window=2)
    steps = {"x": X, "y": Y, "x_mask": X_MASK, "y_mask": Y_MASK, "groups": groups}
    matrix = {"scores": torch.eye(2), "groups": groups}

    class Own(clipseq.PairLoss):
        def loss(self, scores: Tensor, positives: Any) -> Tensor:
            return (1 - scores.diagonal()).mean() * self.scale

    return [
        Target("ClipLoss()", ClipLoss(), pooled, covers=ClipLoss),
        Target("SigLipLoss()", SigLipLoss(init_bias="batch_size"), pooled, covers=SigLipLoss),
        Target("PairLoss()", Own(), pooled, covers=clipseq.PairLoss),
        Target("PairLoss", Own, {"init_scale": 1.0, "max_scale": 2.0, "gather": "ring"}, learns),
        Target("from_scores", ClipLoss().from_scores, matrix),
        Target(
            "SequenceLoss",
            SequenceLoss,
            {"similarity": similarity, "kind": "siglip", "init_scale": 3.0},
            lambda loss: finite(loss(X, Y)),
        ),
        Target("SequenceLoss()", SequenceLoss(similarity), steps),
    ]


SCORES, HITS = torch.eye(3), torch.eye(3).bool()


def plain_functions() -> list[Target]:
    """Return targets for functions and records that need no model."""
    spans = ((0, 3), (3, 8))
    rng = np.random.default_rng(0)
    times = {"first": -1.0, "last": 1.0}
    matrices = {"one": np.eye(3), "two": np.eye(3)}
    curve = figures.Curve(np.arange(3), np.ones(3), np.arange(2), np.ones(2))
    signal = figures.SignalSteps("radar", np.array([0.0, 1.0, 2.0]), maps={"a": MAP})
    text = figures.TextSteps("text", ("a", "b", "c"))
    return [
        Target("pad", clipseq.pad, {"items": [X[0], X[1, :2]]}, finite),
        Target("unit", clipseq.unit, {"values": POOLED}, finite),
        Target(
            "Sequences.from_tensor",
            Sequences.from_tensor,
            {"values": X, "mask": X_MASK},
            covers=Sequences,
        ),
        Target("available_similarities", clipseq.available_similarities, {"names": ["local"]}),
        Target("available_losses", clipseq.available_losses, {"names": ["clip"]}),
        Target(
            "register_similarity",
            clipseq.register_similarity,
            {"name": "A b", "cls": int},
            rejected=clipseq.PluginError,
        ),
        Target(
            "register_loss",
            clipseq.register_loss,
            {"name": "A b", "cls": int},
            rejected=clipseq.PluginError,
        ),
        Target(
            "similarity_fct",
            bridges.similarity_fct,
            {"similarity": clipseq.get_similarity("local")},
        ),
        Target(
            "pairwise_fct", bridges.pairwise_fct, {"similarity": clipseq.get_similarity("local")}
        ),
        Target(
            "distillation_fct",
            bridges.distillation_fct,
            {"similarity": clipseq.get_similarity("local")},
        ),
        Target("same_caption", evaluation.same_caption, {"captions": ["a", "b"]}),
        Target("retrieval_ranks", evaluation.retrieval_ranks, {"scores": SCORES, "hits": HITS}),
        Target("average_precision", evaluation.average_precision, {"scores": SCORES, "hits": HITS}),
        Target("ndcg", evaluation.ndcg, {"scores": SCORES, "hits": HITS, "k": 3}),
        Target(
            "zero_shot_correct",
            evaluation.zero_shot_correct,
            {"scores": SCORES, "labels": torch.tensor([0, 1, 2])},
        ),
        Target(
            "order_counts",
            evaluation.order_counts,
            {
                "own": torch.ones(2),
                "permuted": torch.zeros(3),
                "owner": torch.tensor([0, 1, 1]),
            },
        ),
        Target(
            "resamples",
            evaluation.resamples,
            {"count": 3, "draws": 5, "seed": 0},
            small=frozenset({"count", "draws"}),
        ),
        Target(
            "mean_estimate",
            evaluation.mean_estimate,
            {
                "values": torch.ones(3),
                "draws": evaluation.resamples(3, draws=5),
                "pairs": torch.ones(3),
                "level": 0.9,
            },
        ),
        Target("add_noise", augment.add_noise, {"values": MAP, "amount": 0.5, "rng": rng}, finite),
        Target("add_tilt", augment.add_tilt, {"values": MAP, "gain": 0.5, "tilt": 0.1}, finite),
        Target("blank", augment.blank, {"values": MAP}, finite),
        Target("shift_bins", augment.shift_bins, {"values": MAP, "bins": 1}, finite),
        Target("mask_bins", augment.mask_bins, {"values": MAP, "start": 1, "stop": 2}, finite),
        Target("mask_time", augment.mask_time, {"values": MAP, "start": 1, "stop": 2}, finite),
        Target("crop_time", augment.crop_time, {"values": MAP, "start": 1, "stop": 5}, finite),
        Target(
            "stretch_time",
            augment.stretch_time,
            {"values": MAP, "frames": 7},
            finite,
            small=frozenset({"frames"}),
        ),
        Target("crop_spans", augment.crop_spans, {"spans": spans, "start": 0, "stop": 9}),
        Target(
            "stretch_spans", augment.stretch_spans, {"spans": spans, "frames": 10, "stretched": 7}
        ),
        Target("views_of_channels", augment.views_of_channels, {"signals": [{"a": MAP}]}),
        Target("clip_generator", augment.clip_generator, {"seed": 0, "batch": 1, "index": 2}),
        Target(
            "augment_clip",
            augment.augment_clip,
            {
                "clip": clip(spans=spans, actions=LABELS),
                "config": augment.AugmentConfig(),
                "rng": rng,
                "channels": ("a",),
            },
        ),
        Target("collate", data.collate, {"clips": [clip(0), clip(1)], "modality": "radar"}),
        Target(
            "Radar",
            data.Radar,
            {
                "carrier_hz": 77e9,
                "samples": 64,
                "chirps": 64,
                "antennas": 8,
                "frame_rate": 16.0,
                "noise": 2e-5,
            },
            small=frozenset({"samples", "chirps", "antennas"}),
        ),
        Target("Axis", data.Axis, {"label": "range", "unit": "m", **times, "scale": 1.0}),
        Target(
            "Clip", clip, {"signal": {"a": MAP}, "caption": "walks", "spans": spans}, covers=Clip
        ),
        Target(
            "MapDataset.from_clips",
            MapDataset.from_clips,
            {
                "clips": [
                    clip(0, spans=spans, actions=LABELS, sources=("s",)),
                    clip(1, split="val"),
                ],
                "modality": "radar",
                "frame_rate": 10.0,
                "class_captions": {"walk": "walks"},
            },
            lambda dataset: finite(dataset[0].signal),
            covers=MapDataset,
        ),
        Target(
            "clips of MapDataset",
            lambda **changes: MapDataset.from_clips([clip(0), clip(1, **changes)]),
            {
                "signal": {"a": MAP},
                "caption": "walks",
                "actions": LABELS,
                "spans": spans,
                "permuted": ("b",),
                "sources": ("s",),
                "split": "train",
            },
            lambda dataset: finite(dataset[1].signal),
            covers=data.Header,
        ),
        Target(
            "train_tokenizer",
            encoders.train_tokenizer,
            {"captions": ["a b", "c"], "vocab_size": 300, "kind": "word"},
        ),
        Target(
            "ByteTokenizer.encode",
            encoders.ByteTokenizer().encode,
            {"caption": "walks"},
            covers=encoders.ByteTokenizer,
        ),
        Target(
            "TrainedTokenizer.encode",
            encoders.train_tokenizer(["a b"], kind="word").encode,
            {"caption": "walks"},
            covers=encoders.TrainedTokenizer,
        ),
        Target(
            "draw_matrices",
            figures.draw_matrices,
            {"matrices": matrices, "first": ["one", "one", "two"]},
        ),
        Target("draw_losses", figures.draw_losses, {"runs": {"a": {"loss": curve}}, "chance": 1.0}),
        Target(
            "draw_alignment",
            figures.draw_alignment,
            {"x": signal, "y": text, "weights": np.ones((2, 3))},
        ),
        Target("sequences", sequences, {"batch": 2, "steps": (1, 3), "features": 2}),
        Target("sequence_pairs", sequence_pairs, {"batch": 2, "steps": (1, 3), "features": 2}),
        Target(
            "parametrize_with_checks",
            parametrize_with_checks,
            {"makes": "global", "skip": {"compile": "no"}, "max_examples": 1},
        ),
        Target(
            "check_similarity",
            check_similarity,
            {"make": "nonsense", "skip": {"compile": "no"}, "features": 2, "max_examples": 1},
            raises=(AssertionError,),
            small=frozenset({"max_examples"}),
            rejected=clipseq.UnknownSimilarityError,
        ),
    ]


def configs() -> list[Target]:
    """Return targets for the config classes, built in Python and read from tables."""
    train = {"out": "runs/a", "max_steps": 3}
    tables: list[tuple[type, dict[str, Any]]] = [
        (augment.AugmentConfig, {"channels": ("a",)}),
        (SignalConfig, {"name": "audio", "views": {"a": 4}, "fusion": "add"}),
        (TextConfig, {"name": "caption", "vocab_size": 30}),
        (encoders.Lora, {"targets": ("query",)}),
        (training.SimulatedData, {}),
        (training.DataConfig, {"path": "data"}),
        (training.TrainingConfig, train),
        (CardFacts, {"title": "a"}),
    ]
    targets = []
    for cls, given in tables:
        good = {
            field.name: given.get(field.name, _default(cls, field))
            for field in attrs.fields(cls)
            if field.name not in ("simulated", "radhar", "lora", "motion", "epochs")
        }
        targets.append(Target(cls.__name__, cls, good, comes_back(cls)))
        targets.append(
            Target(
                f"structure {cls.__name__}",
                lambda cls=cls, **table: structure(cls, table),
                unstructure(cls(**good)),
                comes_back(cls),
                covers=cls,
            )
        )
    run = {"data": {"path": "d"}, "training": train, "model": {"loss": "clip"}, "tokenizer": {}}
    targets.append(
        Target(
            "RunConfig",
            lambda **table: structure(training.RunConfig, table),
            run,
            covers=training.RunConfig,
        )
    )
    model = {
        "encoder_cfg": {"views": {"a": 4}},
        "text_cfg": {"name": "text"},
        "context_length": 20,
        **SIZE,
        "temperature": 0.07,
        "use_siglip": False,
        "loss": "clip",
        "loss_options": {"max_scale": 50.0},
        "use_sequence_similarity": True,
        "sequence_similarity_type": "local",
        "sequence_similarity_weight": 0.5,
        "sequence_similarity_options": {"window": 4},
    }
    targets.append(Target("ModelConfig", ModelConfig, model, model_comes_back))
    targets.append(
        Target(
            "CLIP",
            CLIP,
            model,
            small=frozenset({"context_length", "transformer_layers", "encoder_cfg", *SIZE}),
        )
    )
    return targets


def _default(cls: type, field: Any) -> Any:
    default = field.default
    return default.factory() if isinstance(default, attrs.Factory) else default


def tiny_model() -> CLIP:
    torch.manual_seed(0)
    return CLIP(
        {"views": {"a": 4}, "patch_frames": 4},
        context_length=24,
        sequence_similarity_type="local",
        sequence_similarity_options={"window": 2},
        tokenizer=encoders.train_tokenizer(["a walks"], kind="word"),
        **SIZE,
    ).eval()


def of_a_model(folder: Path) -> list[Target]:
    """Return targets for the calls of a model and of what it makes; files go into `folder`."""
    model = tiny_model()
    maps = torch.from_numpy(np.stack([MAP, MAP + 1]))
    clips = [clip(k, split=split) for k, split in enumerate(["train", "val", "test", "test"])]
    dataset = MapDataset.from_clips(clips)
    batch = {"radar": {"a": maps}, "radar_lengths": torch.tensor([10, 8]), "text": ["a", "walks"]}
    texts = model.encode("text", ["a", "walks"])
    items = model.encode("radar", [MAP, MAP + 1])
    index = Index.create(folder / "index", model)
    index.add(items)
    items.save(folder / "items.safetensors")
    model.save_pretrained(folder / "model")
    ragged = {"values": X[0], "lengths": torch.tensor([1, 2])}
    explanation = model.explain(MAP, "a walks")
    steps = retrieval.Ragged.from_lengths(X[0], torch.tensor([1, 2]))
    run = structure(
        training.RunConfig,
        {"data": {"path": str(folder / "none")}, "training": {"out": "o", "max_steps": 1}},
    )
    found = evaluation.evaluate(model, dataset, draws=3)
    drawn = explanation.plot()
    tower, words = model.towers
    small = {"out": folder / "simulated", "clips": -1, "seconds": 5.0, "seed": 0, "clutter": 0}
    return [
        Target(
            "SignalTower.read",
            tower.read,
            {"values": {"a": maps}, "lengths": torch.tensor([10, 8])},
            covers=encoders.SignalTower,
        ),
        Target(
            "TextTower.read",
            words.read,
            {"values": ["a", "walks"], "mask": None},
            covers=encoders.TextTower,
        ),
        Target(
            "simulate",
            data.simulate,
            small,
            rejected=ValueError,
            raises=(OSError,),
            small=frozenset({"clips"}),
        ),
        Target(
            "radhar_dataset",
            data.radhar_dataset,
            {"path": folder / "none.npz", "seed": 0},
            rejected=clipseq.DataError,
            raises=(OSError,),
        ),
        Target(
            "write_dataset",
            data.write_dataset,
            {"path": folder / "model", "clips": clips, "modality": "radar", "frame_rate": 5.0},
            rejected=ValueError,
            raises=(OSError,),
        ),
        Target(
            "train",
            training.train,
            {"config": run, "resume": False, "dataset": None},
            rejected=clipseq.ClipseqError,
        ),
        Target(
            "plan", training.plan, {"config": run, "dataset": None}, rejected=clipseq.ClipseqError
        ),
        Target(
            "write_config",
            training.write_config,
            {"config": run, "path": folder / "written.toml"},
            raises=(OSError,),
        ),
        Target(
            "evaluate_run",
            training.evaluate_run,
            {
                "run": folder / "none",
                "data": None,
                "split": "test",
                "checkpoint": "best",
                "report": None,
            },
            rejected=clipseq.ConfigError,
            raises=(OSError,),
        ),
        Target(
            "figures.save",
            figures.save,
            {"figure": drawn, "path": folder / "a.png"},
            raises=(OSError,),
        ),
        Target(
            "html_report",
            evaluation.html_report,
            {"evaluation": found, "model": model, "dataset": dataset, "title": "a", "chance": 0.5},
        ),
        Target(
            "metric_table",
            evaluation.metric_table,
            {"columns": found.metrics, "title": "a", "absent": {"b": "c"}},
        ),
        Target("evaluation_table", evaluation.evaluation_table, {"evaluation": found}),
        Target("training_step", model.training_step, {"batch": batch, "batch_idx": 0}),
        Target(
            "CLIP()",
            lambda x, y, **more: model(x, y, **more),
            {
                "x": {"a": maps},
                "y": ["a", "walks"],
                "radar_lengths": [10, 8],
                "return_sequences": True,
            },
        ),
        Target(
            "encode_sequences",
            lambda x, y, **more: model.encode_sequences(x, y, **more),
            {"x": {"a": maps}, "y": ["a", "walks"], "return_masks": True},
        ),
        Target(
            "CLIP.similarity",
            lambda x, y: model.similarity(x, y),
            {"x": {"a": maps}, "y": ["a", "walks"]},
        ),
        Target(
            "encode_batch",
            model.encode_batch,
            {"name": "radar", "values": {"a": maps}, "lengths": torch.tensor([10, 8])},
        ),
        Target(
            "CLIP.encode", model.encode, {"name": "text", "items": ["a", "walks"], "batch_size": 2}
        ),
        Target(
            "CLIP.encode maps",
            model.encode,
            {"name": "radar", "items": [{"a": MAP}, {"a": MAP}], "batch_size": 2},
        ),
        Target(
            "CLIP.explain",
            lambda x, y, **more: model.explain(x, y, **more),
            {"x": {"a": MAP}, "y": "a walks", "frame_rate": 10.0},
        ),
        Target(
            "Explanation.plot",
            explanation.plot,
            {"title": "a", "width": 9.0},
            small=frozenset({"width"}),
        ),
        Target(
            "evaluate",
            evaluation.evaluate,
            {
                "model": model,
                "dataset": dataset,
                "split": "test",
                "draws": 3,
                "seed": 0,
                "batch_size": 2,
            },
            small=frozenset({"draws"}),
        ),
        Target(
            "Encoded",
            Encoded,
            {"pooled": POOLED, "steps": steps, "ids": LABELS, "side": "x", "model": ""},
        ),
        Target(
            "Encoded.from_sequences",
            Encoded.from_sequences,
            {"pooled": POOLED, "sequences": Sequences(X, X_MASK), "ids": LABELS},
        ),
        Target("Encoded[]", texts.__getitem__, {"index": [0, 1]}, raises=(IndexError,)),
        Target("Encoded.batches", lambda size: list(texts.batches(size)), {"size": 1}),
        Target(
            "Encoded.to",
            texts.to,
            {"device": "cpu", "dtype": torch.float32},
            raises=(RuntimeError,),
        ),
        Target(
            "Encoded.load", Encoded.load, {"path": folder / "items.safetensors"}, raises=(OSError,)
        ),
        Target(
            "Ragged.from_lengths", retrieval.Ragged.from_lengths, ragged, covers=retrieval.Ragged
        ),
        Target(
            "rerank",
            clipseq.rerank,
            {
                "similarity": clipseq.get_similarity("local", window=2),
                "queries": [X[0], X[1]],
                "candidates": [[Y[0]], [Y[1], Y[0]]],
                "query_side": "x",
            },
        ),
        Target(
            "Index.create",
            lambda path, model: Index.create(path, model),
            {"path": folder / "index", "model": model},
            raises=(OSError,),
            rejected=clipseq.DataError,
            covers=Index,
        ),
        Target(
            "Index.open", Index.open, {"path": folder / "index", "model": model}, raises=(OSError,)
        ),
        Target(
            "Index.add",
            index.add,
            {"encoded": items, "ids": ["p", "q"], "metadata": [{"a": 1}, {"a": 2}]},
        ),
        Target(
            "Index.search",
            index.search,
            {"queries": texts, "k": 2, "candidates": 5, "where": None, "probes": None},
        ),
        Target("Index.delete", index.delete, {"ids": ["none"]}),
        Target(
            "CLIP.from_pretrained",
            CLIP.from_pretrained,
            {"directory": folder / "model"},
            raises=(OSError,),
        ),
        Target(
            "MapDataset",
            MapDataset,
            {"path": folder / "model"},
            raises=(OSError,),
            rejected=clipseq.DataError,
        ),
        Target("MapDataset[]", dataset.__getitem__, {"index": 0}, raises=(IndexError,)),
        Target("MapDataset.subset", dataset.subset, {"split": "val"}),
        Target(
            "load_model",
            training.load_model,
            {"run": folder / "model", "checkpoint": "best"},
            raises=(OSError,),
        ),
        Target(
            "read_config",
            training.read_config,
            {"path": folder / "none.toml", "overrides": ["training.max_steps=3"]},
            raises=(OSError,),
            rejected=clipseq.ConfigError,
        ),
    ]
