"""The report is one readable file: complete, without a network, and true to the evaluation."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import attrs
import numpy as np
import pytest
import torch

from clipseq import CLIP
from clipseq.data import Clip, MapDataset
from clipseq.evaluation import evaluate, html_report
from clipseq.evaluation.html_report import choose_examples
from clipseq.figures import Curve

ACTIONS = {"sit_down": "she sits <down>", "wave": "she waves", "fall": "she falls"}


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    names = list(ACTIONS)

    def clip(i, split):
        action = names[i % 3]
        return Clip(
            id=f"{split}-{i}",
            signal={"mel": rng.normal(size=(6, 12)).astype(np.float32)},
            caption=f"{ACTIONS[action]} {i}" if split == "test" else ACTIONS[action],
            actions=(action,),
            spans=((0, 12),),
            split=split,
            label=action if split == "zeroshot" else None,
        )

    clips = [clip(i, split) for split in ("test", "zeroshot") for i in range(6)]
    return MapDataset.from_clips(clips, class_captions=ACTIONS, frame_rate=4.0)


def make(**options):
    torch.manual_seed(0)
    size = {"transformer_width": 8, "transformer_layers": 1, "transformer_heads": 2}
    signal = {"views": {"mel": 6}, "patch_frames": 4}
    return CLIP(signal, **size, **{"sequence_similarity_type": "local", **options}).eval()


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def evaluation(model, dataset):
    found = evaluate(model, dataset, draws=20)
    # Two clips are right, and the others wrong, the last of them most.
    scores = torch.full((6, 6), 0.1) + 0.05 * torch.eye(6)
    scores[2:5, 0] = 0.2
    scores[0, 0], scores[1, 1] = 0.5, 0.9
    scores[5] = torch.arange(6, 0, -1) / 10
    return attrs.evolve(found, scores={"sequence": scores})


@pytest.fixture(scope="module")
def page(evaluation, model, dataset):
    steps = np.arange(1, 5)
    curve = Curve(steps, 1.0 / steps, steps[:1], np.ones(1))
    return html_report(
        evaluation, model, dataset, title="My <run>", curves={"loss_seq": curve}, chance=1.1
    )


class Outline(HTMLParser):
    """The tags of a page, with their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_it_is_one_file_that_loads_nothing(page):
    outline = Outline(page)
    assert not outline.open
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in outline.tags}
    for _, attributes in outline.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert "url(" not in page
    assert "@import" not in page
    assert "http" not in re.sub(r'src="[^"]+"', "", page)
    names = [a["name"] for tag, a in outline.tags if tag == "meta" and "name" in a]
    assert names == ["viewport"]


def test_it_holds_every_section_metric_and_picture(page, evaluation, dataset):
    outline = Outline(page)
    text = "".join(outline.text)
    assert "My <run>" in text
    sections = [attributes["id"] for tag, attributes in outline.tags if tag == "section"]
    assert sections == ["metrics", "retrieval", "alignments", "confusion", "losses"]
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert links == [f"#{name}" for name in sections]
    assert set(evaluation.own) <= {part.strip() for part in outline.text}
    pictures = [attributes["alt"] for tag, attributes in outline.tags if tag == "img"]
    assert [alt.partition(":")[0] for alt in pictures[:-1]] == [
        f"Alignment of test-{i}" for i in (1, 0, 5, 2)
    ]
    assert pictures[-1] == "loss_seq over the optimizer steps"
    assert "she sits <down> 0" in text


def test_the_examples_are_the_surest_right_ones_and_the_worst_wrong_ones(evaluation, dataset):
    right, wrong = choose_examples(evaluation, dataset.subset("test"))
    assert right == [1, 0]
    assert wrong == [5, 2, 3]


def test_the_confusion_counts_the_class_that_won(evaluation, model, dataset):
    clips = dataset.subset("zeroshot")
    matrix = model.similarity(
        {"mel": torch.from_numpy(np.stack([clips[i].signal["mel"] for i in range(6)]))},
        list(ACTIONS.values()),
    )
    expected = np.zeros((3, 3), int)
    for i, best in enumerate(matrix.argmax(1).tolist()):
        expected[i % 3, best] += 1
    assert evaluation.confusion.classes == tuple(ACTIONS)
    assert evaluation.confusion.counts.tolist() == expected.tolist()
    accuracy = evaluation.own["zero-shot accuracy"].estimate.value
    assert accuracy == pytest.approx(expected.trace() / 6)


def test_what_is_missing_is_named(dataset):
    model = make(use_sequence_similarity=False)
    clips = [attrs.evolve(dataset[i], actions=(), spans=(), header=None) for i in range(6)]
    bare = MapDataset.from_clips(clips)
    page = html_report(evaluate(model, bare, draws=5), model, bare)
    for reason in (
        "None: the model compares pooled features only.",
        "None: the clips have neither labels nor actions.",
        "no metrics.csv",
        "No zero-shot accuracy: the data set has no split",
    ):
        assert reason in page


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_scrolling_sideways(page, width, tmp_path):
    measure = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify([innerWidth, "
        "document.documentElement.scrollWidth, [...document.images].map(i => i.naturalWidth), "
        "[...document.querySelectorAll('img')].map(i => i.clientWidth)]) })</script>"
    )
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    import json

    inner, scroll, natural, shown = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert scroll <= inner
    assert all(natural)
    assert all(240 < each < inner for each in shown)
