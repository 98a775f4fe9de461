"""A saved model encodes, indexes and searches a data set from the command line."""

import json
import shutil

import numpy as np
import pytest
import torch

from clipseq import CLIP, Encoded, Index
from clipseq.data import Clip, MapDataset, write_dataset

pytest.importorskip("lancedb", reason="the extra search is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a saved model, a data set, and an index of its recordings."""
    folder = tmp_path_factory.mktemp("searching")
    torch.manual_seed(0)
    model = CLIP(
        {"views": {"m": 4}, "patch_frames": 4},
        transformer_width=8,
        transformer_layers=1,
        transformer_heads=2,
    )
    model.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    clips = [
        Clip(
            id=f"c{i}",
            signal={"m": rng.normal(size=(4, 8 + i)).astype(np.float32)},
            caption=f"walks {'far ' * i}",
            split="test" if i % 2 else "train",
        )
        for i in range(8)
    ]
    write_dataset(folder / "data", clips)
    return folder


@pytest.fixture(scope="module")
def index(folder):
    from clipseq.cli.searching import index_data

    place = folder / "recordings.index"
    index_data(folder / "model", folder / "data", str(place), side=None, split=None, batch_size=4)
    return place


def test_a_data_set_is_encoded_into_a_file(clipseq, folder, tmp_path):
    out = tmp_path / "captions"
    chosen = ("--side", "text", "--split", "test")
    status, printed, _ = clipseq("encode", folder / "model", folder / "data", "--out", out, *chosen)
    assert status == 0
    assert printed.startswith(f"{out}: Encoded(text, 4 items, D=8, ")
    model = CLIP.from_pretrained(folder / "model")
    expected = model.encode("text", MapDataset(folder / "data").subset("test"), progress=False)
    loaded = Encoded.load(out)
    assert loaded.ids == expected.ids == ["c1", "c3", "c5", "c7"]
    assert torch.equal(loaded.pooled, expected.pooled)


def test_a_caption_and_a_clip_are_searched_for(clipseq, folder, index):
    model = CLIP.from_pretrained(folder / "model")
    asked = model.encode("text", ["walks far"], progress=False)
    expected = Index.open(index, model).search(asked, k=3)
    status, out, _ = clipseq("search", index, "walks far", "-k", 3, "--json")
    assert status == 0
    found = json.loads(out)
    assert found["query"] == "walks far"
    assert [hit["id"] for hit in found["hits"]] == expected.ids[0]
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == pytest.approx(expected.scores[0].tolist())
    assert found["hits"][0]["metadata"]["caption"].startswith("walks")

    status, out, _ = clipseq("search", index, "walks far", "-k", 2)
    header, first, second = out.splitlines()
    assert header.split() == ["rank", "score", "id", "caption", "split"]
    assert first.split()[:3] == ["1", f"{scores[0]:.3f}", expected.ids[0][0]]
    assert second.split()[0] == "2"

    # The recording is the query if its side is named, and otherwise the caption.
    recording = model.encode("radar", [MapDataset(folder / "data")[3]], progress=False)
    nearest = Index.open(index, model).search(recording, k=2)
    own = ("--data", folder / "data", "--side", "radar")
    _, out, _ = clipseq("search", index, "c3", "--json", "-k", 2, *own)
    hits = json.loads(out)["hits"]
    assert [hit["id"] for hit in hits] == nearest.ids[0] != expected.ids[0][:2]
    assert [hit["score"] for hit in hits] == pytest.approx(nearest.scores[0].tolist())
    _, out, _ = clipseq("search", index, "c1", "--json", "-k", 2, *own[:2])
    assert [hit["id"] for hit in json.loads(out)["hits"]] == expected.ids[0][:2]

    _, out, _ = clipseq("search", index, "walks", "--json", "--where", "split = 'train'")
    assert {hit["id"] for hit in json.loads(out)["hits"]} == {"c0", "c2", "c4", "c6"}
    _, out, _ = clipseq("search", index, "walks", "--where", "split = 'val'")
    assert "no item of the index meets the condition" in out


def test_captions_are_indexed_and_the_model_may_move(clipseq, folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "model")
    out = tmp_path / "captions.index"
    status, printed, err = clipseq(
        "index", tmp_path / "model", folder / "data", "--side", "text", "--out", out
    )
    assert status == 0
    assert "encoding text: 8/8" in err
    assert printed.splitlines() == [
        f"{out}: 8 items",
        f"search it with: clipseq search {out} 'a caption'",
    ]
    (tmp_path / "model").rename(tmp_path / "moved")
    clip = ("c2", "--data", folder / "data", "--json")
    status, _, err = clipseq("search", out, *clip)
    assert status == 2
    assert f"--run must name the run or saved model of the index {out}, since" in err
    status, printed, _ = clipseq("search", out, *clip, "--run", tmp_path / "moved")
    assert status == 0
    assert len(json.loads(printed)["hits"]) == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "{folder}/none", "a"], "path must be an index, got"),
        (["search", "{index}", "c9", "--data", "{folder}/data"], "query must be the id of a clip"),
        (["search", "{index}", "a", "--side", "text"], "name its data set with --data"),
        (
            ["search", "{index}", "a", "--where", "x = 1"],
            "where must be a condition in SQL",
        ),
        (["index", "{folder}/model", "{folder}/data", "--out", "{index}"], "which is not empty"),
        (
            ["encode", "{folder}/model", "{folder}/data", "--out", "x", "--side", "radr"],
            "--side must be one of radar, text, the sides of the model, got 'radr': did you mean",
        ),
        (["encode", "{folder}/none", "{folder}/data", "--out", "x"], "run must be a run folder"),
    ],
)
def test_a_wrong_request_is_one_line(clipseq, folder, index, arguments, said):
    filled = [argument.format(folder=folder, index=index) for argument in arguments]
    status, _, err = clipseq(*filled)
    assert status == 2
    assert said in err
    assert len(err.splitlines()) == 1
