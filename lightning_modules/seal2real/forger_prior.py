"""The frozen prior of the forger: where it pulls a picture, and how well it explains one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .backbone import DiffusionBackbone, Precision
from .fake_branch import FakeBranch, fake_error, without_adapter
from .forger_losses import (
    PriorSettings,
    carry,
    denoising_error,
    distillation_gradient,
    latent_mask,
    noise_weight,
    normalised,
)
from .prompt_files import read_prompts

PHRASES = ("a real seal", "a fake seal")


@dataclass(frozen=True)
class PriorPull:
    """What the prior says of a batch of forged pictures."""

    loss: Tensor
    """With the gradient to the pictures; its value is the denoising error under the real prompt."""
    fake_loss: Tensor | None
    """Of the fake branch, where there is one; no gradient to the pictures."""


class FrozenPrior:
    """A backbone and two prompts, kept out of whatever holds them: not saved, averaged, reduced or copied.

    Args:
        backbone: Frozen.
        real: The prompt of real seals, (T, D).
        fake: The prompt of drawn ones, (T, D).
    """

    def __init__(self, backbone: DiffusionBackbone, real: Tensor, fake: Tensor) -> None:
        self.backbone, self.real, self.fake = backbone, real, fake

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenPrior":
        """Return itself: an average of weights need not copy what never changes."""
        return self

    def to(self, device: torch.device | str) -> "FrozenPrior":
        """Move all parts, in place."""
        self.backbone.to(device)
        self.real, self.fake = self.real.to(device), self.fake.to(device)
        return self

    @classmethod
    def load(cls, backbone: str, prompts: str | None, precision: Precision = "float32") -> "FrozenPrior":
        """Return the prior of a model and a file of learned prompts; None takes two phrases as they are."""
        model = DiffusionBackbone.load(backbone, precision)
        if prompts is None:
            real, fake = model.embed(PHRASES)
            return cls(model, real, fake)
        pair = read_prompts(prompts)
        for prompt in (pair.real, pair.fake):
            if prompt.ndim != 2 or prompt.shape[-1] != model.prompt_dim:
                raise ValueError(
                    f"the prompts of {prompts} are {tuple(prompt.shape)}, model.backbone {backbone} takes vectors of "
                    f"{model.prompt_dim}: learn them with that backbone (configs/seal2real/prompts.yaml)"
                )
        return cls(model, pair.real.float(), pair.fake.float())

    def check(self, settings: PriorSettings) -> None:
        """Refuse noise levels that the backbone does not have."""
        if settings.t_range[1] > self.backbone.steps:
            raise ValueError(
                f"model.prior.t_range ends at {settings.t_range[1]}, the backbone has {self.backbone.steps} levels"
            )

    def pull(
        self,
        pictures: Tensor,
        allowed: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        settings: PriorSettings,
        branch: FakeBranch | None = None,
    ) -> PriorPull:
        """Return where the prior pulls pictures.

        Args:
            pictures: (B, 3, H, W) in [0, 1], with their graph.
            allowed: Where they may change, (B, 1, H, W).
            noise: Like their latents.
            timesteps: (B,).
            settings: How it pulls.
            branch: The fake branch of ``vsd``.
        """
        latents = self.backbone.encode(pictures)
        where = latent_mask(allowed, self.backbone.downscale) if settings.around_seal else None
        gradient, error, fake_loss = self.gradient(latents.detach(), noise, timesteps, settings, where, branch)
        if settings.normalise:
            gradient = normalised(gradient, where)
        return PriorPull(carry(latents, gradient, error, where), fake_loss)

    def gradient(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        settings: PriorSettings,
        where: Tensor | None = None,
        branch: FakeBranch | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the direction on latents (B, C, h, w), the denoising errors (B,) and the fake branch's loss.

        Args:
            latents: (B, C, h, w), without a graph.
            noise: Alike.
            timesteps: (B,).
            settings: Which direction.
            where: Latents that count, (B, 1, h, w).
            branch: The fake branch of ``vsd``.
        """
        if settings.kind == "full":
            return *self._through_unet(latents, noise, timesteps, where), None
        noisy = self.backbone.add_noise(latents, noise, timesteps)
        fake_loss = None
        if settings.kind == "sds":
            real, other = self._seen(noisy, timesteps, self.real[None]), noise
        elif settings.kind == "dds":
            real, other = self._seen_under_both(noisy, timesteps)
        else:
            assert branch is not None
            with without_adapter(self.backbone):
                real = self._seen(noisy, timesteps, self.real[None])
            # One pass for both: its value directs the forger, its graph teaches the branch.
            predicted = branch(self.backbone, noisy, timesteps)
            fake_loss, other = fake_error(predicted, noise), predicted.detach()
        weight = noise_weight(self.backbone.alphas_cumprod, timesteps, settings.noise_weight)
        return distillation_gradient(real, other, weight, where), denoising_error(real, noise, where), fake_loss

    @torch.no_grad()
    def _seen(self, noisy: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
        return self.backbone.predict_noise(noisy, timesteps, prompt)

    def _seen_under_both(self, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise seen under the real and the fake prompt, by one pass of twice the batch."""
        prompts = torch.stack([self.real, self.fake]).repeat_interleave(len(noisy), dim=0)
        real, fake = self._seen(noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), prompts).chunk(2)
        return real, fake

    def _through_unet(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, where: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the gradient of each picture's summed error, and its mean error (B,)."""
        with torch.enable_grad():
            leaf = latents.detach().requires_grad_()
            predicted = self.backbone.predict_noise(
                self.backbone.add_noise(leaf, noise, timesteps), timesteps, self.real[None]
            )
            squares = (predicted - noise).square()
            (gradient,) = torch.autograd.grad((squares if where is None else squares * where).sum(), leaf)
        gradient = gradient if where is None else gradient * where
        return gradient, denoising_error(predicted.detach(), noise, where)

    @torch.no_grad()
    def errors(self, pictures: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return how badly the real prior, without a fake branch, explains pictures: mean denoising errors (B,).

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            noise: (B, K, C, h, w), the same for pictures that are to be compared.
            timesteps: (K,).
        """
        latents = self.backbone.encode(pictures)
        errors = []
        with without_adapter(self.backbone):
            for drawn, timestep in zip(noise.unbind(1), timesteps, strict=True):
                levels = timestep.expand(len(latents))
                noisy = self.backbone.add_noise(latents, drawn, levels)
                errors.append(denoising_error(self._seen(noisy, levels, self.real[None]), drawn))
        return torch.stack(errors).mean(0)

    def latent_shape(self, pictures: Tensor) -> tuple[int, int, int]:
        """Return the shape of the latents of pictures (B, 3, H, W)."""
        side = self.backbone.downscale
        channels = int(self.backbone.vae.config.latent_channels)
        return channels, pictures.shape[-2] // side, pictures.shape[-1] // side


def spread_timesteps(t_range: tuple[int, int], draws: int) -> Tensor:
    """Return noise levels (draws,) at the middles of equal parts of a range."""
    low, high = t_range
    middles = (torch.arange(draws) + 0.5) / draws
    return (low + middles * (high - low)).long()


def settings_of(kind: type[Any], given: Any) -> Any:
    """Return settings as they are, from the mapping that a checkpoint keeps, or the defaults."""
    if given is None:
        return kind()
    return kind(**given) if isinstance(given, Mapping) else given
