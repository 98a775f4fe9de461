"""Similarities as scoring functions of sentence-transformers, and inside its losses."""

import pytest
import torch

import clipseq
from clipseq.bridges import distillation_fct, pairwise_fct, similarity_fct


@pytest.fixture(params=["global", "local", "temporal"])
def similarity(request) -> clipseq.Similarity:
    return clipseq.get_similarity(request.param)


def inputs():
    """Return queries (3, 5, 8), documents (3, 2, 4, 8), and masks of 0 and 1."""
    queries, documents = torch.randn(3, 5, 8), torch.randn(3, 2, 4, 8)
    queries_mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    documents_mask = torch.ones(3, 2, 4, dtype=torch.int64)
    documents_mask[1, 0, 2:] = documents_mask[2, 1, 3:] = 0
    return queries, documents, queries_mask, documents_mask


def one(similarity, query, query_mask, document, document_mask):
    """Score a single pair, without any padding."""
    return similarity(query[query_mask.bool()][None], document[document_mask.bool()][None])[0, 0]


def test_every_query_meets_every_document_group_after_group(similarity):
    q, d, q_mask, d_mask = inputs()
    scores = similarity_fct(similarity)(q, d, queries_mask=q_mask, documents_mask=d_mask)
    assert scores.shape == (3, 6)
    for i in range(3):
        for group in range(3):
            for n in range(2):
                expected = one(similarity, q[i], q_mask[i], d[group, n], d_mask[group, n])
                torch.testing.assert_close(scores[i, 2 * group + n], expected)


def test_a_query_meets_its_own_documents(similarity):
    q, d, q_mask, d_mask = inputs()
    scores = distillation_fct(similarity)(q, d, queries_mask=q_mask, documents_mask=d_mask)
    pairs = pairwise_fct(similarity)(q, d[:, 1], queries_mask=q_mask, documents_mask=d_mask[:, 1])
    for i in range(3):
        expected = [one(similarity, q[i], q_mask[i], d[i, n], d_mask[i, n]) for n in range(2)]
        torch.testing.assert_close(scores[i], torch.stack(expected))
        torch.testing.assert_close(pairs[i], expected[1])


def test_lists_of_arrays_have_no_padding(similarity):
    q, d, q_mask, d_mask = inputs()
    expected = similarity_fct(similarity)(q, d[:, 0], q_mask, d_mask[:, 0])
    queries = [q[i][q_mask[i].bool()].numpy() for i in range(3)]
    documents = [d[i, 0][d_mask[i, 0].bool()] for i in range(3)]
    torch.testing.assert_close(similarity_fct(similarity)(queries, documents), expected)
    alone = similarity_fct(similarity)(queries[1], documents)  # as evaluators pass one query
    torch.testing.assert_close(alone, expected[1:2])


def test_the_parameters_of_the_similarity_are_those_of_the_loss_that_holds_it():
    score = similarity_fct(clipseq.get_similarity("attention"))
    assert [name for name, _ in score.named_parameters()] == ["similarity.log_temperature"]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"queries_mask": torch.full((3, 5), 2)}, ValueError, "queries_mask must hold True or 1"),
        (
            {"queries_mask": torch.ones(3, 4)},
            ValueError,
            r"queries_mask must be \(3, 5\), .*got \(3, 4\)",
        ),
        (
            {"documents_embeddings": torch.ones(3, 2, 4, 8).long()},
            ValueError,
            "documents_embeddings must be a floa",
        ),
        (
            {"queries_embeddings": torch.ones(3, 2, 5, 8)},
            ValueError,
            r"queries_embeddings must .*\(n, T, D\), got",
        ),
        (
            {"queries_embeddings": [torch.ones(5, 8)] * 3},
            TypeError,
            "queries_mask must be None if queries_embeddings is a list",
        ),
    ],
)
def test_wrong_arguments_are_named(change, error, said, unchecked_signatures):
    q, d, q_mask, d_mask = inputs()
    arguments = {
        "queries_embeddings": q,
        "documents_embeddings": d,
        "queries_mask": q_mask,
        "documents_mask": d_mask,
    }
    score = similarity_fct(clipseq.get_similarity("global"))
    with pytest.raises(error, match=said):
        score(**{**arguments, **change})


def test_only_similarities_are_taken(unchecked_signatures):
    with pytest.raises(TypeError, match="similarity must be a Similarity, got 'local'; create"):
        similarity_fct("local")


class TokenModel(torch.nn.Module):
    """A stand-in for a MultiVectorEncoder: an embedding for each token id."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 8)

    def forward(self, features, **_):
        mask = features["attention_mask"]
        return {"token_embeddings": self.embedding(features["input_ids"]), "attention_mask": mask}


def columns():
    """Return the features of queries, positives and negatives, as their collator does."""
    found = []
    for length in (5, 4, 6):
        mask = torch.ones(3, length, dtype=torch.int64)
        mask[1, length - 2 :] = 0
        found.append({"input_ids": torch.randint(0, 20, (3, length)), "attention_mask": mask})
    return found


@pytest.fixture
def losses():
    return pytest.importorskip(
        "sentence_transformers.multi_vector_encoder.losses",
        reason="sentence-transformers 6 is not installed",
    )


def embedded(model, features):
    return [(model.embedding(f["input_ids"]), f["attention_mask"].bool()) for f in features]


def test_their_ranking_loss_is_cross_entropy_over_our_scores(losses):
    model, similarity = TokenModel(), clipseq.get_similarity("attention", num_heads=2)
    loss = losses.MultiVectorMultipleNegativesRankingLoss(
        model, scale=20.0, similarity_fct=similarity_fct(similarity)
    )
    features = columns()
    value = loss(features, None)
    (q, q_mask), *documents = embedded(model, features)
    scores = [similarity(q, d, q_mask, mask) for d, mask in documents]  # a positive, a negative
    logits = 20 * torch.stack(scores, 2).flatten(1)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 4]))
    torch.testing.assert_close(value, expected)
    value.backward()
    assert similarity.log_temperature.grad.abs() > 0  # it is trained with the loss
    assert model.embedding.weight.grad.abs().sum() > 0


def test_their_distillation_losses_take_our_scores(losses):
    model, similarity = TokenModel(), clipseq.get_similarity("temporal")
    features = columns()
    (q, q_mask), *documents = embedded(model, features)
    positive, negative = (similarity.pairs(q, d, q_mask, mask) for d, mask in documents)
    margins = torch.tensor([0.5, -0.2, 0.1])
    margin = losses.MultiVectorMarginMSELoss(model, similarity_fct=pairwise_fct(similarity))
    expected = (positive - negative - margins).square().mean()
    torch.testing.assert_close(margin(features, margins), expected)

    teacher = torch.tensor([[3.0, 1.0], [0.5, 0.7], [2.0, 2.0]])
    distil = losses.MultiVectorDistillKLDivLoss(model, similarity_fct=distillation_fct(similarity))
    ours = torch.stack([positive, negative], 1).log_softmax(1)
    theirs = teacher.log_softmax(1)
    expected = (theirs.exp() * (theirs - ours)).sum(1).mean()
    torch.testing.assert_close(distil(features, teacher), expected)
