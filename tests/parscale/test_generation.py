"""Generation and caches: every shortcut against the path without it."""

import pytest
import torch
from transformers import StaticCache

from parcontrol.parscale.modeling_parscale import DUMMY_QUERIES_FROM
from tests.parscale.models import tiny_backbone, tiny_parscale, tokens

STREAMS = [(1, 5), (2, 5), (4, 5)]
CLOSE = {"atol": 2e-5, "rtol": 0}


def left_padded(lengths, width):
    """Random rows [B, width] whose first entries are padding, with their mask."""
    ids = tokens(len(lengths), width)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, width - length :] = 1
    return ids * mask, mask


@pytest.mark.parametrize(("P", "K"), STREAMS)
def test_cached_chunked_and_uncached_agree(P, K):
    model = tiny_parscale(P, K)
    ids = tokens(3, 12)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache, parts = None, []
        for chunk in (ids[:, :5], ids[:, 5:6], ids[:, 6:10], ids[:, 10:11], ids[:, 11:]):
            out = model(chunk, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)
    assert cache.get_seq_length() == 12, "the prefix does not count"
    assert cache.layers[0].keys.shape[0] == P * 3


@pytest.mark.parametrize(("P", "K"), STREAMS)
def test_a_left_padded_row_gives_what_it_gives_alone(P, K):
    model = tiny_parscale(P, K)
    ids, mask = left_padded([9, 4, 6], 9)
    with torch.no_grad():
        together = model(ids, attention_mask=mask)
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = model(ids[row : row + 1, -length:]).logits
            torch.testing.assert_close(together.logits[row : row + 1, -length:], alone, **CLOSE)
        # and so does the next token, read from the cache
        grown = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], 1)
        step = model(ids[:, :1] + 1, attention_mask=grown, past_key_values=together.past_key_values)
        for row, length in enumerate(mask.sum(1).tolist()):
            longer = torch.cat([ids[row : row + 1, -length:], ids[row : row + 1, :1] + 1], 1)
            torch.testing.assert_close(step.logits[row, -1], model(longer).logits[0, -1], **CLOSE)


@pytest.mark.parametrize(("P", "K"), STREAMS)
def test_batched_greedy_generation_with_left_padding(P, K):
    model = tiny_parscale(P, K)
    ids, mask = left_padded([8, 3, 5], 8)
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model.generate(ids[row : row + 1, -length:], max_new_tokens=8, do_sample=False)
        assert together[row, 8:].tolist() == alone[0, length:].tolist()


@pytest.mark.parametrize(("P", "K"), STREAMS)
@pytest.mark.parametrize(
    "mode",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 4},
        {"do_sample": False, "num_beams": 4, "num_return_sequences": 3},
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"do_sample": True, "num_beams": 3},
    ],
    ids=["greedy", "beams", "several", "sampling", "beam-sampling"],
)
def test_generation_with_and_without_cache_is_token_exact(P, K, mode):
    model = tiny_parscale(P, K)
    ids, mask = left_padded([6, 4], 6)
    results = []
    for use_cache in (True, False):
        torch.manual_seed(11)
        results.append(model.generate(ids, attention_mask=mask, max_new_tokens=7, use_cache=use_cache, **mode))
    assert torch.equal(*results)


def test_beams_do_reorder():
    """Otherwise the beam tests would pass with a cache that forgets to move its rows."""
    model = tiny_parscale(2, 5)
    ids = tokens(2, 6)
    expected = model.generate(ids, max_new_tokens=7, num_beams=4, do_sample=False)
    model._reorder_cache = lambda cache, beam_idx: cache
    assert not torch.equal(model.generate(ids, max_new_tokens=7, num_beams=4, do_sample=False), expected)


@pytest.mark.parametrize(("P", "K"), STREAMS)
def test_prompt_lookup_decoding_gives_the_greedy_tokens(P, K):
    """It crops the cache after every rejected guess."""
    model = tiny_parscale(P, K)
    ids = tokens(1, 6).repeat(1, 3)
    greedy = model.generate(ids, max_new_tokens=15, do_sample=False)
    lookup = model.generate(ids, max_new_tokens=15, do_sample=False, prompt_lookup_num_tokens=4)
    assert torch.equal(greedy, lookup)


def test_assisted_decoding_gives_the_greedy_tokens():
    model, assistant = tiny_parscale(2, 5), tiny_backbone(seed=5)
    ids = tokens(1, 6)
    greedy = model.generate(ids, max_new_tokens=12, do_sample=False)
    assert torch.equal(greedy, model.generate(ids, max_new_tokens=12, do_sample=False, assistant_model=assistant))


@pytest.mark.parametrize("first", [5, 1])
def test_static_cache_in_a_plain_forward(first):
    model = tiny_parscale(2, 5)
    ids = tokens(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=20)
    with torch.no_grad():
        whole = model(ids).logits
        parts = [
            model(ids[:, :first], past_key_values=cache).logits,
            model(ids[:, first:], past_key_values=cache).logits,
        ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)


def test_cache_crops_repeats_reorders_and_selects_by_batch_entry():
    model = tiny_parscale(3, 5)
    ids = tokens(2, 8)

    def following(cache, rows, token):
        return model(token, past_key_values=cache).logits[:, -1], model(torch.cat([rows, token], 1)).logits[:, -1]

    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.crop(-3)
        torch.testing.assert_close(*following(cache, ids[:, :5], tokens(2, 1, seed=1)), **CLOSE)
        cache.crop(-1)
        cache.batch_repeat_interleave(2)
        rows = ids[:, :5].repeat_interleave(2, 0)
        torch.testing.assert_close(*following(cache, rows, tokens(4, 1, seed=2)), **CLOSE)
        cache.crop(-1)
        order = torch.tensor([3, 0, 0, 2])
        cache.reorder_cache(order)
        torch.testing.assert_close(*following(cache, rows[order], tokens(4, 1, seed=3)), **CLOSE)
        cache.crop(-1)
        cache.batch_select_indices(torch.tensor([2, 1]))
        torch.testing.assert_close(*following(cache, rows[order][[2, 1]], tokens(2, 1, seed=4)), **CLOSE)


def test_a_cache_of_another_number_of_streams_is_refused():
    model = tiny_parscale(4, 5)
    cache = model(tokens(1, 4), use_cache=True).past_key_values
    model.set_streams(2)
    with pytest.raises(ValueError, match="4 rows, made with 4 streams, but 2 streams of batch 1 need 2"):
        model(tokens(1, 1), past_key_values=cache)
    with pytest.raises(ValueError, match="2 streams of batch 2 need 4"):  # as many rows, of other streams
        model(tokens(2, 1), past_key_values=cache)


def test_four_dimensional_masks():
    model = tiny_parscale(2, 5)
    ids, mask = left_padded([7, 5], 7)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    visible = torch.ones(7, 7).tril().bool()[None, None] & mask[:, None, None, :].bool()
    additive = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        for four_dimensional in (visible, additive):
            found = model(ids, attention_mask=four_dimensional, position_ids=positions).logits
            torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], **CLOSE)


def test_embeddings_instead_of_ids():
    model = tiny_parscale(2, 5)
    ids = tokens(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits, atol=0, rtol=0
        )
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model.model()


def test_eager_attention_agrees_and_returns_probabilities():
    model = tiny_parscale(2, 5)
    ids, mask = left_padded([7, 5], 7)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        model.set_attn_implementation("eager")
        out = model(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(out.logits[mask.bool()], expected[mask.bool()], **CLOSE)
    assert out.attentions[0].shape == (4, 4, 7, 5 + 7)
    torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(4, 4, 7))
    assert [h.shape for h in out.hidden_states] == [(4, 7, 24)] * 3


@pytest.mark.parametrize("T", [DUMMY_QUERIES_FROM - 1, DUMMY_QUERIES_FROM])
def test_long_sequences_take_another_path_to_the_same_result(T):
    model = tiny_parscale(2, 5)
    ids = tokens(1, T)
    results = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        results.append((loss.detach(), model.model.layers[0].self_attn.prefix_k.grad.clone()))
    torch.testing.assert_close(*results, **CLOSE)


def test_other_attention_implementations_are_refused():
    with pytest.raises(ValueError, match="attn_implementation is 'flash_attention_2'"):
        tiny_parscale(2, 5).set_attn_implementation("flash_attention_2")


def test_tuple_outputs():
    model = tiny_parscale(2, 5)
    ids = tokens(1, 4)
    assert torch.equal(model(ids, return_dict=False)[0], model(ids).logits)
    assert torch.equal(model.model(ids, return_dict=False)[0], model.model(ids).last_hidden_state)
