"""The table [model] of a configuration gives a CLIP that fits the data, with any signals."""

import attrs
import numpy as np
import pytest
import torch

from clipseq import CLIP, ConfigError, SignalConfig
from clipseq.config import structure
from clipseq.data import Clip, MapDataset
from clipseq.evaluation import evaluate
from clipseq.training import RunConfig, RunFolder, read_config, train, write_config
from clipseq.training.models import build_model, choose_patches, pin_options

MEL, JOINTS = {"mel": 6}, {"joints": 5, "speed": 2}


def recordings(splits=("train", "val", "test"), per_split=6):
    """Return clips of audio with motion, without captions; each motion follows its audio."""
    generator = np.random.default_rng(0)
    clips = []
    for split in splits:
        for number in range(per_split):
            shape = generator.normal(size=(6, 1))
            audio = shape + 0.1 * generator.normal(size=(6, 20 + number))
            motion = {"joints": np.repeat(shape[:5], 9, axis=1), "speed": np.zeros((2, 9))}
            clips.append(
                Clip(
                    id=f"{split}-{number}",
                    signal={"mel": audio.astype(np.float32)},
                    paired={view: values.astype(np.float32) for view, values in motion.items()},
                    sources=(f"{split}-{number}",),
                    split=split,
                )
            )
    return MapDataset.from_clips(clips, modality="audio", paired_modality="motion")


TWO_SIGNALS = {
    "encoder_cfg": {"patch_frames": 4},
    "text_cfg": {"tower": "signal", "name": "motion", "patch_frames": 3},
}


def test_two_signals_train_evaluate_and_load(small_run):
    dataset = recordings()
    config = small_run(model=TWO_SIGNALS, batch_size=6, log_norms=True)
    model = train(config, dataset=dataset)
    assert model.names == ("audio", "motion")
    assert model.x_encoder.config.views == MEL
    assert model.y_encoder.config.views == JOINTS
    again = CLIP.from_pretrained(RunFolder(config.training.out).model)
    found = evaluate(again, dataset, split="test", draws=20)
    metrics = {name for table in found.metrics.values() for name in table}
    assert {"audio to motion R@1", "motion to audio R@1"} <= metrics


@pytest.mark.parametrize(
    ("frames", "patch"),
    [((4, 9, 20), 1), ((150, 160, 900), 5), ((176, 177, 178), 6), ((9000,), 16)],
)
def test_patches_follow_the_lengths_of_the_training_clips(frames, patch, tmp_path):
    clips = [
        Clip(id=f"{k}", signal={"mel": np.zeros((2, n), np.float32)}, caption="a")
        for k, n in enumerate(frames)
    ]
    dataset = MapDataset.from_clips(clips, modality="audio")
    training = {"out": str(tmp_path), "max_steps": 1}
    config = structure(RunConfig, {"data": {"path": "x"}, "training": training})
    assert choose_patches(config, dataset).model["encoder_cfg"] == {"patch_frames": patch}
    given = attrs.evolve(config, model={"encoder_cfg": {"patch_frames": 7}})
    assert choose_patches(given, dataset) == given


def test_each_of_two_signals_gets_patches_of_its_own_and_the_run_keeps_them(small_run):
    towers = {"encoder_cfg": {"dropout": 0.0}, "text_cfg": {"tower": "signal", "name": "motion"}}
    config = small_run(model=towers, batch_size=6)
    long = [
        attrs.evolve(clip, signal={view: np.tile(m, 5) for view, m in clip.signal.items()})
        for clip in map(recordings().__getitem__, range(18))
    ]
    dataset = MapDataset.from_clips(long, modality="audio", paired_modality="motion")
    model = train(config, dataset=dataset)
    assert model.x_encoder.config.patch_frames == round(5 * 22.5 / 32)
    assert model.y_encoder.config.patch_frames == 1
    written = read_config(RunFolder(config.training.out).config).model
    assert written["encoder_cfg"]["patch_frames"] == 4
    assert written["text_cfg"]["patch_frames"] == 1


def test_a_run_keeps_the_patches_it_chose_when_it_is_resumed(small_run):
    towers = {"encoder_cfg": {}, "text_cfg": {"tower": "signal", "name": "motion"}}
    config = small_run(model=towers, batch_size=6, max_steps=1)
    chosen = train(config, dataset=recordings()).x_encoder.config.patch_frames
    assert chosen != SignalConfig().patch_frames
    longer = attrs.evolve(config, training=attrs.evolve(config.training, max_steps=2))
    model = train(longer, dataset=recordings(), resume=True)
    assert model.x_encoder.config.patch_frames == chosen


def test_a_run_of_before_keeps_its_patches_when_it_is_resumed(small_run):
    towers = {"encoder_cfg": {"patch_frames": 16}, "text_cfg": TWO_SIGNALS["text_cfg"]}
    config = small_run(model=towers, batch_size=6, max_steps=2)
    train(config, dataset=recordings())
    # A run of an earlier version has the default of SignalConfig, which its file does not name.
    silent = attrs.evolve(config, model=config.model | {"encoder_cfg": {}})
    write_config(silent, RunFolder(config.training.out).config)
    model = train(silent, dataset=recordings(), resume=True)
    assert model.x_encoder.config.patch_frames == 16


def test_a_tower_gets_the_name_and_the_views_of_its_signal():
    table = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
    model = build_model(table, MEL, None, modality="audio")
    assert model.names == ("audio", "text")
    assert model.x_encoder.config.views == MEL
    second = {"modality": "audio", "paired_modality": "motion", "paired_views": JOINTS}
    model = build_model(table | TWO_SIGNALS, MEL, None, **second)
    assert [tower.config.patch_frames for tower in model.towers] == [4, 3]
    # Now with the signals swapped, by name, and with only some of the views.
    crossed = {
        "encoder_cfg": {"name": "motion", "views": {"joints": 5}},
        "text_cfg": {"tower": "signal", "name": "audio"},
    }
    model = build_model(table | crossed, MEL, None, **second)
    assert [tower.config.views for tower in model.towers] == [{"joints": 5}, MEL]
    assert torch.is_tensor(model.clip_loss_fn.scale)


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"encoder_cfg": {"name": "radar"}}, r"encoder_cfg\.name must be .*has audio, got 'radar'"),
        ({"text_cfg": {"tower": "signal"}}, r"text_cfg\.name must be a signal .*got None"),
        ({"encoder_cfg": {"views": {"mle": 6}}}, r"has mel, got 'mle': did you mean 'mel'"),
        ({"encoder_cfg": {"views": {"mel": 7}}}, r"views must give 'mel' the 6 bins .*got 7"),
    ],
)
def test_signals_and_views_that_the_data_does_not_have(table, match):
    with pytest.raises(ConfigError, match=match):
        build_model(table, MEL, None, modality="audio")


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ({"loss": "cllip"}, r"model\.loss: .*did you mean 'clip'"),
        ({"loss_options": {"init_bias": 1.0}}, r"model\.loss_options: .*option of the loss"),
        ({"sequence_similarity_type": "locl"}, r"sequence_similarity_type: .*mean 'local'"),
    ],
)
def test_a_loss_or_similarity_that_does_not_exist_is_named_by_its_key(model, match, small_run):
    with pytest.raises(ConfigError, match=match):
        pin_options(small_run(model=model))
