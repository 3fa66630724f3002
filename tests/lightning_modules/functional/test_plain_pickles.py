import io
import pickle
import zipfile
from argparse import Namespace

import pytest
import torch
from torch import nn

from lightning_modules.functional.plain_pickles import check_archive, load_plain


def state_of_a_run():
    """All kinds of things that checkpoints of ours and published ones hold."""
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[0].weight = nn.Parameter(network[0].weight.bfloat16())
    optimizer = torch.optim.AdamW(network.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # its milestones are a Counter
    content = {"state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    content |= {"lr_schedulers": [scheduler.state_dict()], "epoch": 3, "args": Namespace(size=(3, 4), names={"a"})}
    tied = torch.rand(3)
    extra = {"dtype": torch.float16, "place": torch.device("cpu"), "shape": torch.Size([1]), "none": None}
    return content | extra | {"tied": [tied, tied, tied[:2], nn.Parameter(tied)]}


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_what_checkpoints_hold_is_read_as_torch_reads_it(tmp_path, new, mapped):
    content = state_of_a_run()
    if new:  # torch's old format does not know this type
        content["wide"] = torch.ones(2, dtype=torch.uint16)
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=new)
    found = load_plain(tmp_path / "w.ckpt", mapped=mapped)
    assert list(found) == list(content)
    assert torch.equal(found["state_dict"]["0.weight"], content["state_dict"]["0.weight"])
    assert torch.equal(found["tied"][2], content["tied"][0][:2])
    assert found["args"].names == {"a"}
    assert found["lr_schedulers"] == content["lr_schedulers"]


def test_an_archive_of_torch_passes(tmp_path):
    torch.save({"w": torch.zeros(5)}, tmp_path / "w.pt")
    check_archive(tmp_path / "w.pt")


CLAIM = b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x10\x85R."  # a bytearray of 256 MiB


def archive(description, name="a/data.pkl"):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for entry, content in ((name, description), ("a/byteorder", b"little"), ("a/version", b"3\n")):
            file.writestr(entry, content)
    return stream.getvalue()


def test_an_archive_with_a_directory_for_each_reader_is_refused(tmp_path):
    """Both have one layout: the last record leads zipfile to the second directory, and torch to the first."""
    claiming = archive(CLAIM + bytes(40 - len(CLAIM)))
    plain = archive(pickle.dumps({}, 2).ljust(40, b"\0"))
    (tmp_path / "w.ckpt").write_bytes(claiming[:-22] + plain)
    assert zipfile.ZipFile(tmp_path / "w.ckpt").read("a/data.pkl").startswith(pickle.dumps({}, 2))
    with pytest.raises(ValueError, match="its archive's directory is not where it says"):
        load_plain(tmp_path / "w.ckpt")


def test_torch_finds_names_whatever_their_case(tmp_path):
    stream = io.BytesIO(archive(CLAIM, "a/DATA.pkl"))
    with zipfile.ZipFile(stream, "a") as file:
        file.writestr("a/b/data.pkl", pickle.dumps({}, 2))
    (tmp_path / "w.ckpt").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="2 descriptions of tensors"):
        load_plain(tmp_path / "w.ckpt")
