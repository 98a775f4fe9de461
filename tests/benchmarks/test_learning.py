"""The learning benchmark: its digit strings, its intervals, and a whole run of a tiny size."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WORDS = np.array(["zero", "one", "two", "three"])


@pytest.fixture(scope="module", autouse=True)
def _importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Write a small file in the format of fsdd_logmel.npz: recording i is filled with i % 256."""
    rows = [
        (label, speaker, take, split)
        for speaker, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test"))
        for label in range(len(WORDS))
        for take in (0, 5, 8, 9)
    ]
    label, speaker, take, split = (np.array(column) for column in zip(*rows, strict=True))
    lengths = 6 + np.arange(len(rows)) % 5
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "fsdd_logmel").mkdir()
    np.savez(
        folder / "fsdd_logmel" / "fsdd_logmel.npz",
        scale=np.float32(1.0),
        zero=np.float32(0.0),
        class_names=WORDS,
        fps=np.float32(100),
        logmel_u8=np.repeat(np.arange(len(rows)) % 256, lengths)[:, None]
        .repeat(40, 1)
        .astype("u1"),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        label=label.astype(np.int8),
        speaker=speaker,
        take=take.astype(np.int16),
        split=split,
    )
    return folder


@pytest.mark.parametrize("known", [True, False])
def test_a_digit_string_joins_the_recordings_that_its_caption_names(recordings, known):
    from benchmarks.learning.datasets import MEAN, SCALE, Counts, digit_strings

    path = recordings / "fsdd_logmel" / "fsdd_logmel.npz"
    dataset = digit_strings(path, Counts(20, 4, 8, 0), known_speakers=known)
    assert dataset.splits == {"train": 20, "val": 4, "test": 8}
    file = np.load(path)
    for clip in (dataset[k] for k in range(len(dataset))):
        words = clip.caption.split()
        assert 2 <= len(words) <= 4
        assert len(set(words)) == len(words)
        assert len({source.split("-")[1] for source in clip.sources}) == 1
        for word, (start, stop), source in zip(words, clip.spans, clip.sources, strict=True):
            levels = clip.signal["logmel"][:, start:stop] * SCALE + MEAN
            i = round(float(levels.mean()))
            assert np.allclose(levels, i, atol=0.1)
            assert stop - start == file["offsets"][i + 1] - file["offsets"][i]
            assert WORDS[file["label"][i]] == word
            assert source == f"{word}-{file['speaker'][i]}-{file['take'][i]}"
            took = {0: "test", 5: "val"}.get(int(file["take"][i]), "train")
            assert clip.split == (took if known else file["split"][i])
        assert sorted(clip.permuted[0].split()) == sorted(words)
        assert clip.caption not in clip.permuted


def _run(seed, hits, wins):
    clips = {"to_text": hits, "to_signal": hits, "wins": wins, "pairs": [2.0] * len(wins)}
    return {"seed": seed, "clips": clips}


def test_a_difference_is_paired_by_seed_and_clip():
    from benchmarks.learning.summary import estimate

    rng = np.random.default_rng(0)
    mine = [_run(s, rng.integers(2, size=40).tolist(), [1.0] * 40) for s in range(3)]
    shifted = [_run(r["seed"], [h - 1 for h in r["clips"]["to_text"]], [0.0] * 40) for r in mine]
    alone = estimate(mine, "R@1 signal to text")
    assert alone.value == pytest.approx(np.mean([r["clips"]["to_text"] for r in mine]))
    assert alone.low < alone.value < alone.high
    # A difference that is the same for every clip and seed has no spread.
    assert estimate(mine, "R@1 signal to text", minus=shifted).low == pytest.approx(1.0)
    assert estimate(mine, "R@1 signal to text", minus=shifted).high == pytest.approx(1.0)
    assert estimate(mine, "order accuracy", minus=shifted).value == pytest.approx(0.5)


def test_combined_is_compared_with_its_best_part_on_the_same_seeds():
    from benchmarks.learning.page import _against_parts

    def runs(model, hits, seeds):
        return [{**_run(s, hits, [2.0] * 4), "dataset": "d", "model": model} for s in seeds]

    found = _against_parts(
        runs("combined", [1.0, 1.0, 1.0, 0.0], (0, 1))
        + runs("temporal", [1.0, 1.0, 0.0, 0.0], (1, 0, 2))
        + runs("local", [1.0, 0.0, 0.0, 0.0], (0, 1))
        + runs("global", [1.0, 1.0, 1.0, 1.0], (0,))  # the best, but of one seed
    )
    (row,) = found.splitlines()[2:]
    assert row.startswith("| d | `temporal` | 2 | +0.250 [")


def test_an_interval_is_about_two_standard_errors_wide():
    from benchmarks.learning.summary import estimate

    hits = [1.0] * 200 + [0.0] * 200
    interval = estimate([_run(0, hits, hits)], "R@1 signal to text", draws=4000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_the_benchmark_resumes_and_writes_the_page(recordings, tmp_path, capsys):
    from benchmarks.learning.__main__ import main

    command = ["--tiny", "--seeds", "1", "--datasets", "digits", "radar", "--results"]
    command += [str(tmp_path / "runs"), "--recordings", str(recordings)]
    main([*command, "--models", "plain", "combined"])
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*.json")}
    assert sorted(path.name for path in files) == ["combined-0.json", "plain-0.json"]
    assert "radar, plain, seed 0: skipped, since" in capsys.readouterr().err

    docs = ["--docs", str(tmp_path / "docs")]
    main([*command, *docs, "--models", "plain", "combined", "plain, equal time"])
    assert all(path.stat().st_mtime_ns == before for path, before in files.items())
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "| digits | `combined` | 1 |" in page
    runs = json.loads((tmp_path / "docs" / "results.json").read_text())["runs"]
    assert [run["model"] for run in runs] == ["plain", "combined", "plain, equal time"]
    seconds = {run["model"]: run["cpu_seconds"] for run in runs}
    steps = {run["model"]: run["steps"] for run in runs}
    longer = 2 * seconds["combined"] / max(seconds["plain"], 0.1)
    assert steps["plain, equal time"] == max(2, round(longer))
    assert (tmp_path / "docs" / "figures" / "results.png").stat().st_size > 0
    assert set(runs[1]["weights"]) == {"global", "local", "attention", "temporal"}
