"""A Stable Diffusion in miniature, built from configurations: for tests and quickstarts, without any file."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .libraries import from_diffusers, from_transformers

START, END = "<|startoftext|>", "<|endoftext|>"
POSITIONS = 77
# What the tokenizer's merges are learned from: each word twice, so that it becomes one token.
SENTENCES = (
    "a real seal on a scanned page",
    "a fake seal on a drawn page",
    "a photo of a document with a red stamp",
    "an image of a document with a synthetic stamp",
    "real fake scanned drawn photo red synthetic an image",
)
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,  # the stock pipeline turns 0 into 1 with a warning
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class TinySettings:
    """Sizes of a tiny Stable Diffusion.

    Args:
        vae_channels: Of each level of the VAE; each level after the first halves the side.
        latent_channels: Of its latents.
        unet_channels: Of each level of the U-Net; the first attends to the prompt.
        prompt_dim: Length of a prompt's vectors.
        head_dim: Channels of an attention head.
        scaling_factor: What latents are multiplied by.
        latent_side: Of the latents that a stock pipeline makes where it is told no size.
    """

    vae_channels: tuple[int, ...] = (16, 16, 32, 32)
    latent_channels: int = 4
    unet_channels: tuple[int, ...] = (32, 64)
    prompt_dim: int = 32
    head_dim: int = 4
    scaling_factor: float = 0.18215
    latent_side: int = 8

    def __post_init__(self) -> None:
        """Refuse what the parts cannot be built of."""
        if any(channels % 8 for channels in (*self.vae_channels, *self.unet_channels)):
            raise ValueError("channels of a tiny diffusion model must be multiples of 8, for its group norms")
        if len(self.unet_channels) < 2 or not self.vae_channels:
            raise ValueError("a tiny diffusion model needs two levels in its U-Net and one in its VAE")


def tiny_parts(settings: TinySettings, seed: int = 0) -> dict[str, Any]:
    """Return unet, vae, text_encoder, tokenizer and scheduler configuration, with weights drawn from the seed."""
    tokenizer = tiny_tokenizer(SENTENCES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "unet": _unet(settings),
            "vae": _vae(settings),
            "text_encoder": _text_encoder(settings, tokenizer),
            "tokenizer": tokenizer,
            "schedule": dict(SCHEDULE),
        }


def tiny_tokenizer(sentences: Sequence[str]) -> Any:
    """Return a CLIP tokenizer whose merges are learned from a few sentences."""
    symbols = _byte_symbols()
    merges = learn_merges(sentences)
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    build = from_transformers("CLIPTokenizer")
    return build(vocab=vocabulary, merges=merges, model_max_length=POSITIONS)


def learn_merges(sentences: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs that byte-pair encoding joins: the most frequent first, until none occurs twice."""
    words = [(*word[:-1], f"{word[-1]}</w>") for sentence in sentences for word in sentence.lower().split()]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        if not pairs or max(pairs.values()) < 2:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [tuple(_joined(word, best)) for word in words]


def _joined(word: Sequence[str], pair: tuple[str, str]) -> Iterator[str]:
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            yield "".join(pair)
            place += 2
        else:
            yield word[place]
            place += 1


def _byte_symbols() -> list[str]:
    """Return a visible character for each byte, those that byte-level tokenizers use."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + place) for place in range(len(hidden))]


def _unet(settings: TinySettings) -> Any:
    levels = len(settings.unet_channels)
    return from_diffusers("UNet2DConditionModel")(
        sample_size=settings.latent_side,
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        layers_per_block=1,
        block_out_channels=settings.unet_channels,
        down_block_types=("CrossAttnDownBlock2D", *["DownBlock2D"] * (levels - 1)),
        up_block_types=(*["UpBlock2D"] * (levels - 1), "CrossAttnUpBlock2D"),
        cross_attention_dim=settings.prompt_dim,
        attention_head_dim=settings.head_dim,
        norm_num_groups=8,
    )


def _vae(settings: TinySettings) -> Any:
    levels = len(settings.vae_channels)
    return from_diffusers("AutoencoderKL")(
        latent_channels=settings.latent_channels,
        layers_per_block=1,
        block_out_channels=settings.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=8,
        sample_size=settings.latent_side * 2 ** (levels - 1),
        scaling_factor=settings.scaling_factor,
    )


def _text_encoder(settings: TinySettings, tokenizer: Any) -> Any:
    config = from_transformers("CLIPTextConfig")(
        hidden_size=settings.prompt_dim,
        intermediate_size=2 * settings.prompt_dim,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return from_transformers("CLIPTextModel")(config)
