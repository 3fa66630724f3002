"""What documents are drawn from."""

from dataclasses import dataclass, field
from typing import Literal

from datamodules.transforms.documents.capture import CaptureKind
from datamodules.transforms.seals.designs import SealSettings
from datamodules.transforms.seals.ink import InkSettings

Domain = Literal["clean", "degraded"]


@dataclass(frozen=True)
class DocumentSettings:
    """What documents are drawn from.

    Args:
        size: Side of the picture in pixels.
        seals: Least and most seals; each beyond the least comes with `more_share`.
        more_share: Chance of a further seal.
        domain: "clean" is flat ink on a crisp page; "degraded" is pressed, worn and captured. Both have one layout.
        captures: Devices and how often each is used.
        scripts: "latin", or "auto", which is Chinese where a font has the characters; "chinese" insists.
        sides: Least and greatest side of a round seal, as a share of `size`.
        sheets: Pages that a seed draws and keeps.
        documents_a_pool: How many neighbouring documents share these pages before others are drawn; 0 for all.
        geometry: Whether pictures are slightly turned and, from phones, in perspective.
        tooth: Factor of the paper's roughness.
        show_through: Share of documents whose other side shines through.
        seal: What seals are cut.
        ink: What the ink does when a seal is pressed.
    """

    size: int = 512
    seals: tuple[int, int] = (1, 2)
    more_share: float = 0.25
    domain: Domain = "degraded"
    captures: tuple[tuple[CaptureKind, float], ...] = (("scan", 0.5), ("phone", 0.44), ("fax", 0.06))
    scripts: Literal["latin", "auto", "chinese"] = "latin"
    sides: tuple[float, float] = (0.3, 0.48)
    sheets: int = 48
    documents_a_pool: int = 0
    geometry: bool = True
    tooth: float = 1.0
    show_through: float = 0.35
    seal: SealSettings = field(default_factory=SealSettings)
    ink: InkSettings = field(default_factory=InkSettings)

    def __post_init__(self) -> None:
        if not 32 <= self.size <= 4096:
            raise ValueError(f"size of a drawn document must lie in 32 to 4096, got {self.size}")
        if not 0 <= self.seals[0] <= self.seals[1]:
            raise ValueError(f"seals must be the least and the most, such as 1 2, got {self.seals}")
        if not 0 < self.sides[0] <= self.sides[1] <= 1:
            raise ValueError(f"sides must be two shares of the picture's side, ascending, got {self.sides}")
        if self.sheets < 1 or self.documents_a_pool < 0:
            raise ValueError(
                f"sheets must be at least 1 and documents_a_pool not negative, got {self.sheets} and "
                f"{self.documents_a_pool}"
            )
        if not self.captures or sum(share for _, share in self.captures) <= 0:
            raise ValueError("captures must name a device with a share above 0, such as scan 1.0")
