"""A frozen Stable Diffusion: latents, noise predictions and prompts."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_modules.functional.sample_draws import SampleDraws

from .hub import find_model, read_config, weight_variant
from .libraries import from_diffusers, from_transformers, silence_loading
from .tiny_parts import TinySettings, tiny_parts

TINY = "tiny"
Precision = Literal["float32", "bfloat16", "float16"]


class DiffusionBackbone(nn.Module):
    """U-Net, VAE and text encoder of a Stable Diffusion, frozen and in eval mode.

    What is frozen stays out of state dicts, and need not be in one that is loaded. What a caller makes trainable,
    and LoRA layers, are kept.

    Args:
        unet: A `UNet2DConditionModel`.
        vae: An `AutoencoderKL`.
        text_encoder: A `CLIPTextModel`.
        tokenizer: Its `CLIPTokenizer`.
        schedule: Configuration of the noise schedule, as in ``scheduler_config.json``.
    """

    alphas_cumprod: Tensor

    def __init__(
        self, unet: nn.Module, vae: nn.Module, text_encoder: nn.Module, tokenizer: Any, schedule: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.unet: Any = unet
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.tokenizer = tokenizer
        self.schedule = dict(schedule)
        self.prediction = str(self.schedule.get("prediction_type", "epsilon"))
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"the model predicts {self.prediction!r}: epsilon and v_prediction are known")
        self.register_buffer("alphas_cumprod", self.scheduler().alphas_cumprod.float(), persistent=False)
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_frozen)  # type: ignore[no-untyped-call]
        self.requires_grad_(False)
        self.eval()
        # Lightning takes frozen networks for an oversight.
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")

    @classmethod
    def load(cls, source: str, precision: Precision = "float32") -> "DiffusionBackbone":
        """Return a backbone from a local diffusers folder or a hub id; ``tiny`` is built with weights from a seed.

        Args:
            source: Where the model is.
            precision: Of the frozen weights. Inputs are cast to it; answers are float32.
        """
        backbone = cls.tiny() if source == TINY else cls._from_folder(find_model(source))
        return backbone.to(getattr(torch, precision))

    @classmethod
    def tiny(cls, settings: TinySettings | None = None, seed: int = 0) -> "DiffusionBackbone":
        """Return a miniature with random weights: 0.8 M parameters in the U-Net, 0.3 M in the VAE."""
        return cls(**tiny_parts(settings or TinySettings(), seed))

    @classmethod
    def _from_folder(cls, folder: Path) -> "DiffusionBackbone":
        silence_loading()
        return cls(
            unet=_load_part(folder, "unet", from_diffusers("UNet2DConditionModel")),
            vae=_load_part(folder, "vae", from_diffusers("AutoencoderKL")),
            text_encoder=_load_part(folder, "text_encoder", from_transformers("CLIPTextModel")),
            tokenizer=_load_part(folder, "tokenizer", from_transformers("CLIPTokenizer")),
            schedule=read_config(folder, "scheduler"),
        )

    @property
    def downscale(self) -> int:
        """Pixels of an image's side for one of a latent's."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def steps(self) -> int:
        """Number of noise levels."""
        return len(self.alphas_cumprod)

    @property
    def prompt_dim(self) -> int:
        """Length of a prompt's vectors."""
        return int(self.unet.config.cross_attention_dim)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "DiffusionBackbone":
        exact = self.alphas_cumprod
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Follows to devices, and never loses digits to half precision.
        self.alphas_cumprod = exact.to(self.alphas_cumprod.device)
        return self

    def train(self, mode: bool = True) -> "DiffusionBackbone":
        """Stay in eval mode."""
        return super().train(False)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Trade a second forward pass for memory wherever gradients pass through the networks."""
        for network in (self.unet, self.vae):
            (network.enable_gradient_checkpointing if enabled else network.disable_gradient_checkpointing)()

    def encode_moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance (B, C, h, w) of the latents of images (B, 3, H, W) in [0, 1], unscaled."""
        self._check_sides(images)
        posterior = self.vae.encode((2 * images - 1).to(_dtype(self.vae))).latent_dist
        return posterior.mean.float(), posterior.logvar.float()

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return scaled latents (B, C, h, w), with gradients to images (B, 3, H, W) in [0, 1].

        Args:
            images: The images.
            generator: Draws a sample of the posterior; without it, its mode is returned.
        """
        mean, log_variance = self.encode_moments(images)
        return self.latents_of(mean, None if generator is None else log_variance, generator)

    def latents_of(
        self, mean: Tensor, log_variance: Tensor | None, generator: torch.Generator | SampleDraws | None = None
    ) -> Tensor:
        """Return scaled latents of what `encode_moments` gave: a sample, or the mode where there is no log variance."""
        if log_variance is not None:
            if isinstance(generator, SampleDraws):
                noise = generator.noise(mean.shape[1:], mean.device)
            else:
                place = mean.device if generator is None else generator.device
                noise = torch.randn(mean.shape, generator=generator, device=place).to(mean.device)
            mean = mean + torch.exp(0.5 * log_variance) * noise
        return mean * float(self.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] of scaled latents."""
        scaled = latents / float(self.vae.config.scaling_factor)
        images: Tensor = self.vae.decode(scaled.to(_dtype(self.vae))).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return latents (B, C, h, w) noised to timesteps (B,) or one for all."""
        signal, spread = self._rates(timesteps)
        return signal * latents + spread * noise

    def predict_noise(self, noisy: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
        """Return the noise that the U-Net sees in noisy latents (B, C, h, w).

        Args:
            noisy: The latents.
            timesteps: Their noise levels, (B,) or one for all.
            prompt: Text-encoder outputs, (B, T, D) or (1, T, D) for all.
        """
        dtype = _dtype(self.unet)
        prompt = prompt.expand(len(noisy), -1, -1).to(dtype)
        answer: Tensor = self.unet(noisy.to(dtype), timesteps, encoder_hidden_states=prompt).sample
        if self.prediction == "epsilon":
            return answer.float()
        signal, spread = self._rates(timesteps)
        return signal * answer.float() + spread * noisy

    def token_ids(self, phrases: Sequence[str]) -> Tensor:
        """Return the ids (N, T) of phrases, padded or cut to the encoder's length."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(list(phrases), padding="max_length", max_length=length, truncation=True).input_ids
        return torch.tensor(ids, device=self.alphas_cumprod.device)

    def embed(self, phrases: Sequence[str]) -> Tensor:
        """Return the text encoder's outputs (N, T, D) of phrases."""
        with torch.no_grad():
            return self._encode_text(self.token_ids(phrases))

    def token_vectors(self, phrases: Sequence[str]) -> Tensor:
        """Return the vectors (N, T, E) that go into the text encoder, without positions."""
        with torch.no_grad():
            vectors: Tensor = self.text_encoder.get_input_embeddings()(self.token_ids(phrases))
        return vectors.float()

    def embed_vectors(self, vectors: Tensor) -> Tensor:
        """Return the text encoder's outputs (N, T, D) of the vectors of all tokens (N, T, E), with gradients."""
        table = self.text_encoder.get_input_embeddings()
        # A hook: the encoder takes ids alone. Which ones matters to its pooled output only.
        handle = table.register_forward_hook(lambda _module, _ids, answer: vectors.to(answer.dtype))
        try:
            return self._encode_text(self.token_ids([""] * len(vectors)))
        finally:
            handle.remove()

    def scheduler(self, name: str = "DDIMScheduler") -> Any:
        """Return a scheduler of diffusers with the model's noise schedule."""
        return from_diffusers(name).from_config(self.schedule)

    def pipeline(self, name: str = "StableDiffusionPipeline") -> Any:
        """Return a stock pipeline of these parts, with the scheduler exactly as configured."""
        pipeline = from_diffusers(name)(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            # The constructor changes a configuration that it does not like, and warns: it gets one that it likes.
            scheduler=from_diffusers("DDIMScheduler").from_config(self.schedule, steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = self.scheduler()
        return pipeline

    def save(self, folder: str | Path) -> Path:
        """Write the model as a folder that stock diffusers loads; return its path."""
        silence_loading()
        self.pipeline().save_pretrained(str(folder))
        return Path(folder)

    def _encode_text(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.text_encoder(ids)[0]
        return hidden.float()

    def _rates(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.alphas_cumprod.float()[timesteps.to(self.alphas_cumprod.device)].reshape(-1, 1, 1, 1)
        return kept.sqrt(), (1 - kept).sqrt()

    def _check_sides(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise ValueError(f"sides of images must be multiples of {self.downscale} here, got {height}x{width}")


def denoising_errors(
    backbone: DiffusionBackbone, latents: Tensor, noise: Tensor, timesteps: Tensor, prompt: Tensor
) -> Tensor:
    """Return the mean squared error (B,) of the noise predicted in latents noised to timesteps (B,)."""
    noisy = backbone.add_noise(latents, noise, timesteps)
    return (backbone.predict_noise(noisy, timesteps, prompt) - noise).square().flatten(1).mean(1)


def draw_noise(
    latents: Tensor, low: int, high: int, generator: torch.Generator | SampleDraws | None = None
) -> tuple[Tensor, Tensor]:
    """Return noise like latents and a timestep in [low, high) for each, drawn for each sample or for the batch."""
    if isinstance(generator, SampleDraws):
        timesteps = generator.integer(low, high - 1).to(latents.device)
        return generator.noise(latents.shape[1:], latents.device).to(latents), timesteps
    place = latents.device if generator is None else generator.device
    timesteps = torch.randint(low, high, (len(latents),), generator=generator, device=place)
    noise = torch.randn(latents.shape, generator=generator, device=place, dtype=latents.dtype)
    return noise.to(latents.device), timesteps.to(latents.device)


def _dtype(network: nn.Module) -> torch.dtype:
    return next(network.parameters()).dtype


def _load_part(folder: Path, name: str, build: Any) -> Any:
    options = {} if name == "tokenizer" else {"variant": weight_variant(folder / name)}
    try:
        part = build.from_pretrained(str(folder), subfolder=name, local_files_only=True, **options)
    except Exception as error:  # many kinds for one cause, with long texts
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder / name} cannot be loaded ({told}): copy the model again") from None
    return part.float() if isinstance(part, nn.Module) else part


def _kept(module: nn.Module) -> set[str]:
    """Return the names of what belongs into a state dict: what is trainable, and LoRA layers, switched off or not."""
    return {name for name, value in module.named_parameters() if value.requires_grad or ".lora_" in name}


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    kept = _kept(module)
    for key in [key for key in state if key.startswith(prefix) and key.removeprefix(prefix) not in kept]:
        del state[key]


def _fill_frozen(module: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    kept = _kept(module)
    # No part has buffers that are saved.
    for name, value in module.named_parameters():
        if name not in kept:
            state.setdefault(prefix + name, value)
