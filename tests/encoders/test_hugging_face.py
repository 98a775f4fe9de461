"""A local Hugging Face directory as the text tower, against transformers itself."""

import importlib.util
import json

import pytest
import torch

from clipseq import CLIP, CheckpointError, SignalConfig
from clipseq.encoders import HuggingFaceTextTower, TextConfig

transformers = pytest.importorskip("transformers")

WORDS = ["a", "person", "walks", "waves", "then", ",", "##s"]


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A tiny BERT with its tokenizer, created for the tests."""
    directory = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (directory / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizer(str(directory / "vocab.txt"))
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    transformers.BertModel(config).save_pretrained(directory)
    return directory


def make(directory, width=8, context_length=512, **options):
    torch.manual_seed(1)
    config = TextConfig(pretrained=str(directory), **options)
    return HuggingFaceTextTower(config, context_length=context_length, width=width).eval()


def test_the_sequence_is_the_last_hidden_state_at_the_words(bert):
    tower = make(bert)
    captions = ["a person walks , then waves", "person waves"]
    pooled, tokens = tower(captions)
    model = transformers.AutoModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    assert tokens.lengths.tolist() == [6, 2]
    for item, caption in enumerate(captions):
        hidden = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0, 1:-1]
        expected = hidden @ tower.projection.weight.T
        count = len(expected)
        torch.testing.assert_close(tokens.values[item, :count], expected)
        torch.testing.assert_close(pooled[item], expected.mean(0))
        assert not tokens.values[item, count:].any()


def test_token_ids_with_special_tokens_are_the_same_thing(bert):
    tower = make(bert)
    ids, mask = tower.read(["a person walks", "waves"])
    expected = tower(["a person walks", "waves"])
    for given in (mask, None):
        got = tower(ids, mask=given)
        torch.testing.assert_close(got[0], expected[0])
        assert torch.equal(got[1].mask, expected[1].mask)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A tiny GPT-2: it has no pad token, and its id 0 is a word like any other."""
    directory = tmp_path_factory.mktemp("gpt2")
    vocabulary = ["!", "a", "w", "s", "Ġ", "<|endoftext|>"]
    (directory / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    files = [str(directory / name) for name in ("vocab.json", "merges.txt")]
    transformers.GPT2Tokenizer(*files).save_pretrained(directory)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=16, n_embd=12, n_layer=1, n_head=2
    )
    transformers.GPT2Model(config).save_pretrained(directory)
    return directory


def test_without_a_pad_token_every_id_is_real_unless_a_mask_says_otherwise(gpt2):
    tower = make(gpt2)
    ids = torch.tensor([[1, 2, 3, 0], [0, 1, 2, 4]])
    got, mask = tower.read(ids)
    assert torch.equal(got, ids)
    assert mask.all()
    captions = ["aws!", "!aw "]
    assert [tower.tokenizer.encode(caption) for caption in captions] == ids.tolist()
    torch.testing.assert_close(tower(ids)[0], tower(captions)[0])
    mask[0, 3] = False
    got, mask = tower.read(ids, mask=mask)
    assert [row[real].tolist() for row, real in zip(got, mask, strict=True)] == [
        [1, 2, 3],
        [0, 1, 2, 4],
    ]
    torch.testing.assert_close(tower(ids, mask=mask)[0], tower(["aws", "!aw "])[0])


def test_without_a_pad_token_captions_that_differ_in_id_0_are_not_the_same(gpt2):
    model = CLIP(
        SignalConfig(views={"a": 3}, patch_frames=2),
        TextConfig(pretrained=str(gpt2)),
        transformer_width=8,
        transformer_layers=1,
        transformer_heads=2,
        sequence_similarity_type="global",
    ).eval()
    radar, ids = torch.randn(2, 3, 6), torch.tensor([[1, 2, 0], [1, 0, 2]])
    by_ids = model.training_step({"radar": radar, "text": ids})
    by_captions = model.training_step({"radar": radar, "text": ["aw!", "a!w"]})
    torch.testing.assert_close(by_ids, by_captions)


def test_frozen_only_the_projection_is_trained(bert):
    tower = make(bert, freeze=True).train()
    assert [name for name, p in tower.named_parameters() if p.requires_grad] == [
        "projection.weight"
    ]
    assert not tower.language_model.training  # no dropout, so two calls agree
    pooled = tower(["a person"])[0]
    assert torch.equal(pooled, tower(["a person"])[0])
    pooled.sum().backward()
    assert tower.projection.weight.grad.any()


def test_not_frozen_every_trainable_parameter_is_reached(bert):
    tower = make(bert)
    tower(["a person"])[0].sum().backward()
    assert all(p.grad is not None for p in tower.parameters() if p.requires_grad)
    assert not any(p.requires_grad for n, p in tower.named_parameters() if "pooler" in n)


def test_gradient_checkpointing_gives_the_same(bert):
    results = []
    for checkpointing in (False, True):
        tower = make(bert, gradient_checkpointing=checkpointing).train()
        torch.manual_seed(0)
        loss = tower(["a person walks"])[0].square().sum()
        loss.backward()
        results.append(
            [loss, *[p.grad for p in tower.parameters() if p.requires_grad]],
        )
        switched_on = [getattr(m, "gradient_checkpointing", False) for m in tower.modules()]
        assert any(switched_on) == checkpointing
    torch.testing.assert_close(*results)


def test_words_for_the_figures(bert):
    tokenizer = make(bert).tokenizer
    assert tokenizer.tokens("a person , walks") == ["a", "person", ",", "walks"]
    assert len(tokenizer.encode("a person , walks")) == 4


def test_captions_that_are_empty_or_too_long_for_the_pretrained_model(bert):
    tower = make(bert)  # its 16 positions are the tighter limit
    with pytest.raises(ValueError, match=r"text caption 1 must have at least one token"):
        tower(["a", " "])
    with pytest.raises(ValueError, match=r"caption 1 must have at most 16 tokens.*got 17"):
        tower(["a", "a " * 15])
    with pytest.raises(ValueError, match=r"caption 0 must have at most 5 tokens.*got 6"):
        make(bert, context_length=5)(["a " * 4])


def test_half_precision_files_are_trained_in_full(bert, tmp_path):
    model = transformers.AutoModel.from_pretrained(bert).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    assert make(tmp_path).language_model.dtype == torch.float32


def test_a_directory_that_is_none_or_lacks_weights(bert, tmp_path):
    with pytest.raises(
        ValueError, match=r"Hugging Face model directory.*'owner/name', got 'bert-base'"
    ):
        make("bert-base")
    from safetensors.torch import load_file, save_file

    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("embeddings.word_embeddings.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack embeddings\.word_embeddings\.weight"):
        make(tmp_path)


def test_without_transformers_the_error_says_what_to_install(bert, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"clipseq\[hf\]"):
        make(bert)


def test_captions_of_the_same_ids_are_positives_of_one_another(bert):
    from clipseq import CLIP, SignalConfig

    model = CLIP(
        SignalConfig(views={"a": 3}, patch_frames=2),
        TextConfig(pretrained=str(bert), freeze=True),
        transformer_width=8,
        transformer_layers=1,
        transformer_heads=2,
        use_siglip=True,
        use_sequence_similarity=False,
    )
    captions = ["A person waves", "a person walks", "a  Person waves", "a person [SEP] waves"]
    groups = model.caption_groups(captions)
    # The tokenizer lowers the case of words, but also reads what it takes for a special token.
    same = torch.tensor([[i == j or {i, j} == {0, 2} for i in range(4)] for j in range(4)])
    assert torch.equal(groups[:, None] == groups, same)
    radar = torch.randn(4, 3, 6)
    loss = model.training_step({"radar": radar, "text": captions})
    logits = 10 * model.similarity(radar, captions) - 10
    expected = -torch.nn.functional.logsigmoid(torch.where(same, logits, -logits)).sum() / 4
    torch.testing.assert_close(loss, expected)


def test_a_saved_model_needs_the_directory_no_more(bert, tmp_path):
    import shutil

    for path in ("source", "model"):
        (tmp_path / path).mkdir()
    shutil.copytree(bert, tmp_path / "source", dirs_exist_ok=True)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = CLIP(
            SignalConfig(views={"a": 3}, patch_frames=2),
            TextConfig(pretrained=str(tmp_path / "source"), freeze=True),
            transformer_width=8,
            transformer_layers=1,
            transformer_heads=2,
            sequence_similarity_type="global",
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model = model.to(dtype).eval()
        model.save_pretrained(tmp_path / "model")
        (tmp_path / "source").rename(tmp_path / "gone")
        again = CLIP.from_pretrained(tmp_path / "model")
        again.save_pretrained(tmp_path / "second")
        again = CLIP.from_pretrained(tmp_path / "second")
        (tmp_path / "gone").rename(tmp_path / "source")
        assert again.y_encoder.config.freeze
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
            assert again.state_dict()[name].dtype == value.dtype
        radar = torch.randn(2, 3, 6)
        scores = model.similarity(radar, ["a person", "waves"])
        assert torch.equal(again.similarity(radar, ["a person", "waves"]), scores)
        assert again.tokenizer.tokens("a person") == ["a", "person"]
    files = sorted(path.name for path in (tmp_path / "model" / "y_encoder").iterdir())
    assert "model.safetensors" in files
    saved = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in saved}) == 1  # all files have the same permissions
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    weights = tmp_path / "model" / "y_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"transformers cannot load .*y_encoder"):
        CLIP.from_pretrained(tmp_path / "model")


def write_tokenizer(directory, words=("walk",), **special):
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate([*special.values(), *words])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(directory)


SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}


@pytest.mark.parametrize("kind", ["Roberta", "XLMRoberta", "MPNet"])
def test_positions_that_start_behind_the_padding_id_are_not_counted(kind, tmp_path):
    write_tokenizer(tmp_path, **SPECIAL)
    config = getattr(transformers, f"{kind}Config")
    config = config(vocab_size=5, max_position_embeddings=10, pad_token_id=1, **SMALL)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    tower = make(tmp_path)
    assert tower.context_length == 8
    assert tower(["walk " * 8])[1].lengths.tolist() == [8]
    with pytest.raises(ValueError, match="text caption 0 must have at most 8 tokens"):
        tower(["walk " * 9])


def t5(**more):
    config = transformers.T5Config(
        vocab_size=5, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
        decoder_start_token_id=0, **more,
    )  # fmt: skip
    return transformers.T5Model(config)


def test_the_encoder_half_of_t5_is_the_tower(tmp_path):
    write_tokenizer(tmp_path / "t5", **SPECIAL)
    torch.manual_seed(0)
    whole = t5().eval()
    whole.save_pretrained(tmp_path / "t5")
    model = CLIP(
        {"views": {"d": 4}}, TextConfig(pretrained=tmp_path / "t5"), transformer_width=8,
        transformer_layers=1, transformer_heads=2, sequence_similarity_type="global",
    ).eval()  # fmt: skip
    hidden = whole.encoder(torch.tensor([[4, 4]])).last_hidden_state[0]
    expected = hidden @ model.y_encoder.projection.weight.T
    torch.testing.assert_close(model.encode_batch("text", ["walk walk"])[1].values[0], expected)
    model.save_pretrained(tmp_path / "model")
    again = CLIP.from_pretrained(tmp_path / "model")
    for one, other in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])


def clip():
    side = {"vocab_size": 5, **SMALL}
    image = {"image_size": 8, "patch_size": 4, **SMALL}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=side, vision_config=image))


def bart():
    return transformers.BartModel(
        transformers.BartConfig(
            vocab_size=5,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            max_position_embeddings=16,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=0,
            forced_eos_token_id=2,
        )
    )


def vit():
    return transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **SMALL))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("create", [clip, bart, vit])
def test_a_model_that_is_not_one_encoder_of_text_is_refused_by_name(create, tmp_path):
    write_tokenizer(tmp_path, **SPECIAL)
    create().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"must hold one model that encodes text.*{tmp_path}"):
        make(tmp_path)


def test_a_tokenizer_with_more_ids_than_embeddings_is_refused(bert, tmp_path):
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    tokenizer.add_tokens(["radar"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"at most 12 ids, .* got 13; call .*resize"):
        make(tmp_path)


def test_a_long_caption_is_cut_on_request_and_counted(bert):
    long, short = "a person walks then waves", "waves"
    tower = make(bert, context_length=4, truncate=True)
    pooled, tokens = tower([long, short])
    assert tower.truncated == 1
    assert tokens.lengths.tolist() == [2, 1]  # [CLS] a person [SEP]
    expected = make(bert)(["a person", short])
    torch.testing.assert_close(pooled, expected[0])
