"""A real pretrained model on real text: what tiny random models cannot show."""

import pydoc_data.topics

import pytest
import torch

from parcontrol.parscale.convert import convert_to_parscale_model, create_parscale_config
from parcontrol.parscale.loading import load_backbone

pytestmark = pytest.mark.model
K, T = 48, 128


@pytest.fixture(scope="module")
def backbone_and_text(smollm2_dir):
    """The backbone in float32, held-out blocks [6, T] and eight different contexts [8, K] of the same kind of text."""
    backbone, tokenizer = load_backbone(str(smollm2_dir))
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) > 4000]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in topics[:14]]
    blocks = torch.tensor([row[100 : 100 + T] for row in ids[:6]])
    contexts = torch.tensor([row[:K] for row in ids[6:14]])
    return backbone, blocks, contexts


@torch.no_grad()
def loss(model, blocks):
    return model(blocks, labels=blocks).loss.item()


def test_context_prefixes_start_at_the_frozen_backbone(backbone_and_text):
    """Near it at P = 1 and below it at P = 8; noise starts far above."""
    backbone, blocks, contexts = backbone_and_text
    frozen = loss(backbone, blocks)
    starts = {}
    for P in (1, 2, 8):
        model = convert_to_parscale_model(backbone, create_parscale_config(P, K), context_ids=contexts[:P])
        starts[P] = loss(model, blocks)
    torch.manual_seed(0)
    noise = loss(convert_to_parscale_model(backbone, create_parscale_config(2, K)), blocks)
    assert starts[1] < frozen + 0.15
    assert starts[8] < starts[2] < starts[1] < noise - 0.3
    assert starts[8] < frozen + 0.02


def test_greedy_continuation_in_a_left_padded_batch(backbone_and_text):
    backbone, blocks, contexts = backbone_and_text
    model = convert_to_parscale_model(backbone, create_parscale_config(2, K), context_ids=contexts[:2])
    ids = blocks[:2, :20].clone()
    mask = torch.ones_like(ids)
    mask[1, :8] = 0
    ids[1, :8] = backbone.config.pad_token_id or 0
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    alone = model.generate(ids[1:, 8:], max_new_tokens=8, do_sample=False)
    assert together[1, 20:].tolist() == alone[0, 12:].tolist()
