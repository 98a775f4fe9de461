"""Losses by name, from distributions that are on the path but were never installed by pip."""

import os
import pickle
import re
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch

import clipseq
from clipseq.registry import discovery, lookup, report

WORKING = """
    import torch
    from clipseq import PairLoss, hookimpl

    class FooLoss(PairLoss):
        '''A foo.'''

        def __init__(self, *, size=3.0, init_scale=2.0, gather="ring"):
            super().__init__(init_scale=init_scale, gather=gather)
            self.size = size

        def loss(self, scores, positives):
            signed = torch.where(positives.mask, scores, -scores) * self.scale
            own = torch.nn.functional.softplus(self.size - signed).sum()
            return positives.world.sum(own) / positives.world.total

    @hookimpl
    def clipseq_losses():
        return {"foo": FooLoss}
"""

SIMILARITY = """
    from clipseq import Similarity, unit

    class FooSimilarity(Similarity):
        def score(self, x, y):
            return unit(x.values.sum(1)) @ unit(y.values.sum(1)).T

        def align(self, x, y):
            return x.values.new_ones(len(x.values), x.values.shape[1], y.values.shape[1])

    @hookimpl
    def clipseq_similarities():
        return {"foo": FooSimilarity}
"""

BUILT_IN = {"clip": clipseq.ClipLoss, "siglip": clipseq.SigLipLoss}


def similarity():
    return clipseq.get_similarity("global")


def test_the_built_ins_are_listed_as_clipseqs_own(fresh_registry):
    infos = clipseq.available_losses()
    assert {name: info.cls for name, info in infos.items()} == BUILT_IN
    clip, siglip = infos.values()
    assert (clip.name, clip.distribution) == ("clip", "clipseq")
    assert clip.version == siglip.version == clipseq.__version__
    assert clip.options == {"init_scale": 1 / 0.07, "max_scale": 100.0, "gather": "ring"}
    assert siglip.options["init_bias"] == -10.0
    assert clip.summary.startswith("InfoNCE in both directions")
    assert (clip.starts_at_temperature, siglip.starts_at_temperature) == (True, False)


def test_finds_the_loss_of_a_third_party(distribution):
    distribution(WORKING)
    info = clipseq.available_losses()["foo"]
    assert (info.distribution, info.version, info.summary) == ("clipseq-foo", "1.2", "A foo.")
    assert info.options == {"size": 3.0, "init_scale": 2.0, "gather": "ring"}
    assert info.starts_at_temperature
    loss = clipseq.get_loss("foo", size=4.0)
    assert isinstance(loss, info.cls)
    assert loss.size == 4.0
    # A plugin that offers only losses does not appear among the similarities.
    assert "foo" not in clipseq.available_similarities()
    with pytest.raises(clipseq.UnknownSimilarityError, match="no similarity named 'foo'; reg"):
        clipseq.get_similarity("foo")


def test_the_loss_of_a_third_party_trains_by_its_name(distribution):
    distribution(WORKING)
    torch.manual_seed(0)
    y = torch.randn(4, 5, 6)
    x = torch.nn.Parameter(torch.randn(4, 5, 6))
    loss_fn = clipseq.SequenceLoss(similarity(), "foo", size=0.5)
    optimizer = torch.optim.Adam([x, *loss_fn.parameters()], lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_fn(x, y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    scores = similarity()(x, y)
    assert losses[-1] < 0.5 * losses[0]
    assert (scores.argmax(1) == torch.arange(4)).all()
    # The value is the formula, with softplus written out.
    with torch.no_grad():
        scale = loss_fn.pair_loss.log_scale.exp()
        signs = 2 * torch.eye(4) - 1
        expected = torch.log1p((0.5 - signs * scale * scores).exp()).sum() / 4
    torch.testing.assert_close(loss_fn(x, y), expected)


def test_a_plugin_may_offer_both_kinds_under_one_name(distribution):
    distribution(WORKING + SIMILARITY)
    loss = clipseq.SequenceLoss(clipseq.get_similarity("foo"), "foo")
    assert loss(torch.randn(3, 2, 4), torch.randn(3, 2, 4)).isfinite()
    (plugin,) = (plugin for plugin in report().loaded if plugin.name == "foo")
    assert (plugin.similarities, plugin.losses) == (("foo",), ("foo",))


@pytest.mark.parametrize(("cls", "noun"), [("FooLoss", "loss"), ("FooSimilarity", "similarity")])
def test_of_a_plugin_that_offers_both_kinds_both_count_or_neither(distribution, cls, noun):
    distribution((WORKING + SIMILARITY).replace(f'{{"foo": {cls}}}', '{"Foo": int}'))
    with pytest.warns(clipseq.PluginWarning, match=f"a {noun}'s name must match"):
        assert "foo" not in clipseq.available_similarities()
    assert clipseq.available_losses().keys() == BUILT_IN.keys()


BROKEN = {
    "import": ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named"),
    "hook exits": (
        "import sys\nfrom clipseq import hookimpl\n"
        "@hookimpl\ndef clipseq_losses(): sys.exit('no licence')",
        "SystemExit: no licence",
    ),
    "looks up": ("import clipseq\nclipseq.available_losses()", "must not look up or register"),
    "gets": ("import clipseq\nclipseq.get_loss('foo')", "must not look up or register"),
    "registers": (
        WORKING + "    import clipseq\n    clipseq.register_loss('foo', FooLoss)",
        "must not look up or register",
    ),
    "no hook": ("x = 1", r"decorate clipseq_similarities\(\) or clipseq_losses\(\) with"),
    "misspelt hook": (
        "from clipseq import hookimpl\n@hookimpl\ndef clipseq_loses(): return {}",
        "no hook 'clipseq_loses': did you mean 'clipseq_losses'",
    ),
    "no mapping": (
        "from clipseq import hookimpl\n@hookimpl\ndef clipseq_losses(): return ['foo']",
        r"clipseq_losses\(\) must return a mapping name -> class",
    ),
    "no loss": (
        "from clipseq import hookimpl\n@hookimpl\ndef clipseq_losses(): return {'foo': int}",
        "must be a subclass of clipseq.PairLoss, got <class 'int'>",
    ),
    "abstract": (WORKING.replace("def loss", "def value"), "does not define loss"),
    "bad name": (WORKING.replace('"foo"', '"Foo-1"'), "a loss's name must match .* got 'Foo-1'"),
    "required option": (
        WORKING.replace("size=3.0", "size"),
        "'size' must be a keyword with a default",
    ),
    "kwargs": (WORKING.replace('gather="ring"', "**more"), "options must be named, got .*kwargs"),
    "positional": (WORKING.replace("*, size=3.0", "*size"), "options must be named, got .args"),
    **{
        f"overrides {method}": (
            WORKING + f"\n    FooLoss.{method} = lambda self, *inputs: 0",
            f"overrides {method}, which is final",
        )
        for method in ("forward", "from_scores", "from_sequences")
    },
    "no init_scale": (
        WORKING.replace(", init_scale=2.0", "").replace("init_scale=init_scale, ", ""),
        "'foo': a loss without the option init_scale must set starts_at_temperature = False",
    ),
    "starts": (
        WORKING + "\n    FooLoss.starts_at_temperature = 'yes'",
        "'foo': starts_at_temperature must be True or False, got 'yes'",
    ),
    **{
        f"takes {name}": (
            WORKING.replace('"foo"', f'"{name}"'),
            rf"the loss '{name}' is registered already by clipseq \S+ \(clipseq.losses.{kind}\); "
            r"choose another name for clipseq_foo_\S+.FooLoss",
        )
        for name, kind in (("clip", "ClipLoss"), ("siglip", "SigLipLoss"))
    },
}


@pytest.mark.parametrize(("source", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_one_warning_and_nothing_else_breaks(
    distribution, source, cause, unchecked_signatures
):
    distribution(source)
    with pytest.warns(clipseq.PluginWarning, match=cause) as caught:
        infos = clipseq.available_losses()
    assert len(caught) == 1
    assert "clipseq-foo 1.2" in str(caught[0].message)
    assert {name: info.cls for name, info in infos.items()} == BUILT_IN
    (failed,) = clipseq.failed_plugins()
    assert (failed.name, failed.distribution, failed.version) == ("foo", "clipseq-foo", "1.2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clipseq.get_loss("clip")
    with pytest.raises(clipseq.UnknownLossError, match="could not be loaded"):
        clipseq.get_loss("foo")


def test_a_loss_that_does_not_start_at_the_temperature_needs_no_init_scale(distribution):
    source = WORKING.replace(", init_scale=2.0", "").replace("init_scale=init_scale, ", "")
    distribution(source.replace("'''A foo.'''", "starts_at_temperature = False"))
    info = clipseq.available_losses()["foo"]
    assert not info.starts_at_temperature
    assert info.summary == ""


def test_strict_makes_the_warning_an_error_but_not_for_the_built_ins(distribution, monkeypatch):
    distribution("import a_module_that_is_not_there")
    monkeypatch.setenv("CLIPSEQ_STRICT", "1")
    for _ in range(2):
        with pytest.raises(clipseq.PluginError, match="clipseq-foo 1.2 cannot be used"):
            clipseq.available_losses()
    # The built-in losses do not come from plugins, so they do not load any.
    assert isinstance(clipseq.get_loss("clip"), clipseq.ClipLoss)


def test_disable_leaves_plugins_out(distribution, monkeypatch):
    distribution("raise RuntimeError('must not be imported')")
    monkeypatch.setenv("CLIPSEQ_DISABLE", "foo")
    assert clipseq.available_losses().keys() == BUILT_IN.keys()
    with pytest.raises(clipseq.UnknownLossError, match="left out by CLIPSEQ_DISABLE"):
        clipseq.get_loss("foo")
    with pytest.raises(clipseq.UnknownLossError) as caught:
        clipseq.get_loss("xyz")
    assert str(caught.value) == (
        "no loss named 'xyz'; registered: clip, siglip (left out by CLIPSEQ_DISABLE: foo)"
    )


def test_a_name_offered_twice_is_an_error_that_names_both_and_takes_nothing_else(distribution):
    distribution(WORKING)
    distribution(WORKING.replace("FooLoss", "BarLoss"), name="bar")
    distribution(WORKING.replace('"foo"', '"third"'), name="third")
    clipseq.get_similarity("global")
    clipseq.available_similarities()
    clipseq.register_loss("mine", Mine)
    for name in ("clip", "third", "mine"):
        clipseq.get_loss(name)
        assert list(clipseq.available_losses([name])) == [name]
    for look_up in (
        lambda: clipseq.get_loss("foo"),
        clipseq.available_losses,
        lambda: clipseq.SequenceLoss(similarity(), "foo"),
        lambda: clipseq.register_loss("foo", Mine),
    ):
        with pytest.raises(clipseq.PluginError, match="the loss 'foo' is offered twice") as caught:
            look_up()
        assert re.search(r"clipseq-bar 1.2 \(clipseq_bar_\w+.BarLoss\)", str(caught.value))
        assert re.search(r"clipseq-foo 1.2 \(clipseq_foo_\w+.FooLoss\)", str(caught.value))
        assert "CLIPSEQ_DISABLE=clipseq-foo:foo keeps that of clipseq-bar" in str(caught.value)
    assert "'foo' is offered twice" in report().problem
    assert "foo" not in report().losses
    with pytest.raises(clipseq.UnknownLossError, match="named 'fooo': did you mean 'foo'"):
        clipseq.get_loss("fooo")


def test_an_unknown_name_suggests_the_nearest(fresh_registry, unchecked_signatures):
    wanted = "no loss named 'siglib': did you mean 'siglip'? registered: clip, siglip"
    for look_up in (
        lambda: clipseq.get_loss("siglib"),
        lambda: clipseq.SequenceLoss(similarity(), "siglib"),
    ):
        with pytest.raises(clipseq.UnknownLossError) as caught:
            look_up()
        assert str(caught.value) == wanted
        assert isinstance(caught.value, LookupError)
    with pytest.raises(TypeError, match="the name of a loss must be a string, got 3"):
        clipseq.get_loss(3)


def test_an_unknown_option_suggests_the_nearest(distribution, unchecked_signatures):
    distribution(WORKING)
    with pytest.raises(TypeError, match="'foo' has no option 'sise': did you mean 'size'"):
        clipseq.get_loss("foo", sise=3)
    with pytest.raises(TypeError, match="'clip' has no option 'size', which is an option of .*'fo"):
        clipseq.get_loss("clip", size=3)
    with pytest.raises(TypeError, match="'foo' has no option 'temperature': init_scale is 1 / t"):
        clipseq.get_loss("foo", temperature=0.1)
    with pytest.raises(TypeError, match="positional argument"):
        clipseq.get_loss("foo", 3)


@pytest.mark.parametrize("body", ["pass", "torch.nn.Module.__init__(self)"])
def test_an_init_that_leaves_out_that_of_pair_loss_is_named(distribution, body):
    distribution(
        WORKING.replace("super().__init__(init_scale=init_scale, gather=gather)", body).replace(
            "self.size = size", ""
        )
    )
    wanted = r"FooLoss of clipseq-foo 1.2: its __init__ must call super\(\)\.__init__"
    with pytest.raises(clipseq.PluginError, match=wanted):
        clipseq.get_loss("foo")


def test_the_built_ins_are_there_where_nothing_is_installed(fresh_registry, monkeypatch):
    monkeypatch.setattr(discovery, "entry_points", lambda group: ([], []))
    monkeypatch.setattr(discovery, "version", not_installed)
    monkeypatch.setattr(lookup, "_registry", lookup.Registry())
    assert clipseq.available_losses()["clip"].version == ""
    with pytest.raises(clipseq.UnknownLossError, match="'xyz'; registered: clip, siglip"):
        clipseq.get_loss("xyz")


def not_installed(name):
    raise discovery.PackageNotFoundError(name)


class Mine(clipseq.PairLoss):
    """Mine."""

    def loss(self, scores, positives):
        return -(scores * positives.mask).mean() * self.scale


def test_register_in_process(fresh_registry):
    clipseq.register_loss("mine", Mine)
    loss = clipseq.SequenceLoss(similarity(), "mine", init_scale=3.0).pair_loss
    assert isinstance(loss, Mine)
    assert loss.scale.item() == pytest.approx(3.0)
    assert clipseq.available_losses()["mine"].distribution == "this process"
    assert isinstance(pickle.loads(pickle.dumps(loss)), Mine)
    # The cell of a notebook, run again: another class object of the same name.
    again = type("Mine", (Mine,), {"__module__": __name__, "__doc__": "Two."})
    clipseq.register_loss("mine", again)
    assert clipseq.available_losses()["mine"].summary == "Two."


def test_register_keeps_the_rules_of_plugins(fresh_registry, unchecked_signatures):
    with pytest.raises(clipseq.PluginError, match="'clip' is registered already by clipseq "):
        clipseq.register_loss("clip", Mine)
    with pytest.raises(clipseq.PluginError, match="must match"):
        clipseq.register_loss("My-own", Mine)
    with pytest.raises(clipseq.PluginError, match="must be a subclass of clipseq.PairLoss"):
        clipseq.register_loss("mine", clipseq.Similarity)
    clipseq.register_loss("mine", Mine)
    with pytest.raises(clipseq.PluginError, match="registered already by this process"):
        clipseq.register_loss("mine", type("Other", (Mine,), {"__module__": "elsewhere"}))


@pytest.mark.slow
def test_built_in_losses_load_no_plugin():
    code = """
        import sys, clipseq

        clipseq.get_loss("siglip")
        print(*sorted(name for name in sys.modules if name.startswith("clipseq_")))
        clipseq.available_losses()
        print("clipseq_local" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=True,
    )
    assert done.stdout.split() == ["True"]


def test_a_report_holds_all_that_is_known(distribution, monkeypatch):
    distribution(WORKING)
    distribution("1 / 0", name="broken")
    monkeypatch.setenv("CLIPSEQ_DISABLE", "temporal, locl")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the failure is in the report
        found = report()
    assert found.problem is None
    assert "foo" in [plugin.name for plugin in found.loaded]
    assert [plugin.name for plugin in found.failed] == ["broken"]
    assert (found.disabled, found.unmatched) == (("temporal",), ("locl",))
    assert list(found.losses) == ["clip", "foo", "siglip"]
    assert list(found.infos) == ["attention", "combined", "global", "local"]
