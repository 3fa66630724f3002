"""The loss does not depend on blocks, processes or precision of its input; mixing keeps what it says it keeps."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_modules.sscd.losses import copy_loss
from lightning_modules.sscd.mixing import draw_mixture, mix, mixed_sources

ROOT = Path(__file__).parents[3]


def views(count: int, size: int = 24, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(count, size, generator=generator)
    noise = 0.5 * torch.randn(count, size, generator=generator)
    return F.normalize(torch.cat([first, first + noise]), dim=1)


def loss_and_gradient(rows: Tensor, sources: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    rows = rows.clone().requires_grad_()
    loss = copy_loss(rows, rows, sources, sources, **options).total
    loss.backward()
    return loss.detach(), rows.grad


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("block", [1, 5, 12, 1000])
def test_blocks_do_not_matter(per_row: bool, block: int) -> None:
    rows, sources = views(12), (torch.arange(24) % 12)[:, None]
    whole = loss_and_gradient(rows, sources, per_row=per_row)
    parts = loss_and_gradient(rows, sources, per_row=per_row, block=block)
    torch.testing.assert_close(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-4, atol=1e-6)


def test_order_of_views_does_not_matter() -> None:
    rows, sources = views(12), (torch.arange(24) % 12)[:, None]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    loss, gradient = loss_and_gradient(rows, sources)
    shuffled, turned = loss_and_gradient(rows[order], sources[order])
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(turned, gradient[order], rtol=1e-4, atol=1e-6)


def test_half_precision_input_gives_a_finite_loss_close_to_the_exact_one() -> None:
    rows, sources = views(64, 128), (torch.arange(128) % 64)[:, None]
    exact, _ = loss_and_gradient(rows, sources)
    rough, gradient = loss_and_gradient(rows.bfloat16(), sources)
    assert rough.dtype == torch.float32
    assert abs(float(rough - exact)) < 0.01 * abs(float(exact))
    assert torch.isfinite(gradient).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_and_gradient(rows, sources)[0], exact)


def test_rows_of_one_picture_only_have_a_finite_loss() -> None:
    rows, sources = views(4), torch.zeros(8, 1, dtype=torch.int64)
    loss, gradient = loss_and_gradient(rows, sources)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_descent_brings_views_together_and_pictures_apart() -> None:
    torch.manual_seed(0)
    rows = torch.nn.Parameter(torch.randn(24, 16))
    sources = (torch.arange(24) % 12)[:, None]
    optimizer = torch.optim.Adam([rows], lr=0.05)
    for _ in range(60):
        unit = F.normalize(rows, dim=1)
        loss = copy_loss(unit, unit, sources, sources, entropy_weight=3.0)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert float(loss.positive_sim) > 0.6
    assert float(loss.nearest_negative_sim) < 0.2


PROGRAM = """
import os, sys, torch, torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.distributed.nn.functional import all_gather
from lightning_modules.sscd.losses import copy_loss
rank, mixed, out = int(sys.argv[1]), sys.argv[2] == "mixed", sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
data = torch.load(out + "/in.pt")
model = torch.nn.Linear(10, 6); model.load_state_dict(data["weights"])
model = DistributedDataParallel(model)
part = slice(8 * rank, 8 * rank + 8)
rows = F.normalize(model(data["inputs"][part]), dim=1)
columns = torch.cat(all_gather(rows))
sources = data["sources"]
loss = copy_loss(rows, columns, sources[part], sources, 8 * rank, entropy_weight=5.0, per_row=mixed).total
loss.backward()
total = loss.detach().clone(); dist.all_reduce(total)
if rank == 0:
    torch.save({"loss": total / 2, "grad": model.module.weight.grad}, out + "/out.pt")
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads at times abort the interpreter's own exit: "terminate called without an active exception"
"""


@pytest.mark.parametrize("kind", ["plain", "mixed"])
def test_two_processes_give_the_gradient_of_one(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(10, 6), torch.randn(16, 10)
    # Pictures that lie on both processes, and with mixing pictures that are in several views.
    sources = (torch.arange(16) % 5)[:, None]
    if kind == "mixed":
        sources = mixed_sources(sources[:, 0], torch.tensor([1.0, 0.5, 0.0, 1.0] * 4))
    torch.save({"weights": model.state_dict(), "inputs": inputs, "sources": sources}, tmp_path / "in.pt")
    workers = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(rank), kind, str(tmp_path)], cwd=ROOT) for rank in (0, 1)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    rows = F.normalize(model(inputs), dim=1)
    loss = copy_loss(rows, rows, sources, sources, entropy_weight=5.0, per_row=kind == "mixed").total
    loss.backward()
    both = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(both["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both["grad"], model.weight.grad, rtol=1e-5, atol=1e-5)


def test_mixing_changes_the_share_that_was_asked_for() -> None:
    images = torch.rand(400, 3, 24, 32)
    mixture = draw_mixture(400, (24, 32), np.random.default_rng(0), probability=0.25)
    mixed = mix(images, mixture)
    changed = (mixed != images).flatten(1).any(dim=1)
    assert torch.equal(changed, mixture.share < 1)
    assert 0.15 < changed.float().mean() < 0.35
    cut = mixture.cut & changed
    kept = (mixed == images).all(dim=1).flatten(1).double().mean(dim=1)
    torch.testing.assert_close(kept[cut], mixture.share[cut])
    blended = changed & ~mixture.cut
    share = mixture.share[blended][:, None, None, None].float()
    torch.testing.assert_close(mixed[blended], images[blended] * share + images.flip(0)[blended] * (1 - share))


def test_sources_of_a_view_are_the_pictures_in_it() -> None:
    shown = mixed_sources(torch.tensor([10, 11, 12, 13]), torch.tensor([1.0, 0.4, 0.0, 1.0]))
    assert [set(row) for row in shown.tolist()] == [{10}, {11, 12}, {11}, {13}]
