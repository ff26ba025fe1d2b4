"""The tiny world's words: two CLIP tokenizers over one small vocabulary, and the SDXL pair of text encoders."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .figures import BACKGROUNDS, COLOURS, OBJECTS, SUBJECTS
from .world import STYLES

IDENTIFIERS = ("sks", "zwx", "ohwx", "qrt", "bnk", "vlp")
"""Words without a meaning: the base model is trained to draw the same with and without them."""
CONTEXT_LENGTH = 16
WIDTHS = (64, 96)
"""Hidden sizes of text encoders 1 and 2; the UNet sees both side by side."""

_WORD_END = "</w>"
_EMBEDDING_DEVIATION = 0.2
_GRAMMAR = ("a", "an", "on", "in", "with", "and", "background", "style", "picture", "of", "the")
_START, _END, _PAD = "<|startoftext|>", "<|endoftext|>", "!"


def _learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, commonest pair first and the alphabet deciding between equals, until each word is one piece.

    The tokenizers library decides between equals by chance, so that no two runs give a token the same id.
    """
    spelt = [[*word[:-1], f"{word[-1]}{_WORD_END}"] for word in words]
    merges: list[tuple[str, str]] = []
    while counts := Counter(pair for pieces in spelt for pair in pairwise(pieces)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for pieces in spelt:
            for index in range(len(pieces) - 2, -1, -1):
                if tuple(pieces[index : index + 2]) == best:
                    pieces[index : index + 2] = ["".join(best)]
    return merges


def build_tokenizers() -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Tokenizers 1 and 2: every word of the world is one token, any other word falls to pieces.

    As in SDXL the first pads with the end token and the second with "!", whose id is 0.
    """
    merges = _learn_merges([*_GRAMMAR, *OBJECTS, *SUBJECTS, *COLOURS, *BACKGROUNDS, *STYLES, *IDENTIFIERS])
    symbols = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = [*symbols, *(f"{symbol}{_WORD_END}" for symbol in symbols), *(left + right for left, right in merges)]
    ids = {token: index for index, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}

    def tokenizer(pad: str) -> CLIPTokenizer:
        return CLIPTokenizer(
            vocab=ids,
            merges=merges,  # type: ignore[arg-type]  # pairs are what it reads, whatever its signature says
            pad_token=pad,
            model_max_length=CONTEXT_LENGTH,
        )

    return tokenizer(_END), tokenizer(_PAD)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a tokenizer as it was built: use leaves its padding behind, and the file would say whether it was used."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def build_text_encoders(tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Untrained text encoders 1 and 2 for the tokenizers' common vocabulary."""

    def config(width: int, layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    encoders = CLIPTextModel(config(WIDTHS[0], 2)), CLIPTextModelWithProjection(config(WIDTHS[1], 3))
    for encoder in encoders:
        # As large as trained ones, so that an adapter can tell apart the words that the base never learns.
        nn.init.normal_(encoder.get_input_embeddings().get_parameter("weight"), std=_EMBEDDING_DEVIATION)
    return encoders


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Int[Tensor, "batch context"]:
    """Padded and truncated to the context length, as the SDXL pipeline does it."""
    batch = tokenizer(
        list(prompts), padding="max_length", max_length=CONTEXT_LENGTH, truncation=True, return_tensors="pt"
    )
    ids: Tensor = batch.input_ids
    return ids


def encode_text(
    encoder_1: CLIPTextModel,
    encoder_2: CLIPTextModelWithProjection,
    ids_1: Int[Tensor, "batch context"],
    ids_2: Int[Tensor, "batch context"],
) -> tuple[Float[Tensor, "batch context width"], Float[Tensor, "batch pooled"]]:
    """What SDXL's UNet is told of a prompt: both encoders' last hidden states but one, and the second's projection."""
    first = encoder_1(ids_1, output_hidden_states=True)
    second = encoder_2(ids_2, output_hidden_states=True)
    return torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=-1), second.text_embeds
