"""Every word of the world is one token, and prompts are told to the UNet as the stock pipeline tells them."""

import torch

from ziplora.tinyworld.autoencoder import build_autoencoder
from ziplora.tinyworld.base import build_pipeline
from ziplora.tinyworld.figures import BACKGROUNDS, COLOURS, OBJECTS, SUBJECTS
from ziplora.tinyworld.text import (
    CONTEXT_LENGTH,
    IDENTIFIERS,
    WIDTHS,
    build_tokenizers,
    encode_text,
    token_ids,
)
from ziplora.tinyworld.world import STYLES

WORDS = (*OBJECTS, *SUBJECTS, *COLOURS, *BACKGROUNDS, *STYLES, *IDENTIFIERS, "background", "style")


def test_every_word_of_the_world_is_one_token_of_its_own() -> None:
    tokenizer, _ = build_tokenizers()
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
    assert all(len(tokens) == 1 for tokens in ids)
    assert len({tokens[0] for tokens in ids}) == len(WORDS)


def test_an_unknown_word_falls_to_known_pieces() -> None:
    tokenizer, _ = build_tokenizers()
    pieces = tokenizer.tokenize("submarine")
    assert len(pieces) > 1
    assert "".join(pieces).removesuffix("</w>") == "submarine"


def test_the_vocabulary_is_the_same_each_time() -> None:
    assert build_tokenizers()[0].get_vocab() == build_tokenizers()[0].get_vocab()


def test_the_first_tokenizer_pads_with_its_end_and_the_second_with_an_exclamation_mark() -> None:
    first, second = build_tokenizers()
    ids_1, ids_2 = token_ids(first, ["a red star"])[0], token_ids(second, ["a red star"])[0]
    assert len(ids_1) == len(ids_2) == CONTEXT_LENGTH
    assert ids_1[0] == first.bos_token_id
    assert set(ids_1[4:].tolist()) == {first.eos_token_id}
    assert set(ids_2[5:].tolist()) == {second.convert_tokens_to_ids("!")} == {0}


def test_a_prompt_too_long_is_cut_and_still_ends() -> None:
    tokenizer, _ = build_tokenizers()
    ids = token_ids(tokenizer, ["a red star " * 20])[0]
    assert (len(ids), ids[-1]) == (CONTEXT_LENGTH, tokenizer.eos_token_id)


def test_prompts_are_encoded_as_the_stock_pipeline_encodes_them() -> None:
    torch.manual_seed(0)
    pipeline = build_pipeline(build_autoencoder())
    prompts = ["a red star on a navy background", "a sks robot in neon style"]
    with torch.no_grad():
        hidden, pooled = encode_text(
            pipeline.text_encoder,
            pipeline.text_encoder_2,
            token_ids(pipeline.tokenizer, prompts),
            token_ids(pipeline.tokenizer_2, prompts),
        )
        stock_hidden, _, stock_pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert hidden.shape == (2, CONTEXT_LENGTH, sum(WIDTHS))
    torch.testing.assert_close(hidden, stock_hidden)
    torch.testing.assert_close(pooled, stock_pooled)
