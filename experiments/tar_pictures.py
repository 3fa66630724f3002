"""The pictures of a tar file, read front to back and never unpacked to disk; what is no plain picture is named.

`tarfile` alone would let the file decide how much memory its headers take, how deep they nest, and how long reading
lasts.
"""

import os
import tarfile
from collections.abc import Iterator

from datamodules.images.decoding import open_regular
from datamodules.images.errors import UnreadableImageError
from datamodules.images.listing import IMAGE_EXTENSIONS

MAX_MEMBER_BYTES = 1 << 28  # a member that claims more is not read into memory
MAX_HEADER_BYTES = 1 << 14  # of a long name or of extended attributes; a path has 4096 at most
MAX_HEADERS = 8  # in a row before a member; `tarfile` calls itself for each
MAX_RATIO = 200  # of unpacked to packed bytes; pictures hardly shrink
LEAST_UNPACKED = 1 << 26

Entry = tuple[str, bytes | str, int]
EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


class PlainMember(tarfile.TarInfo):
    """A member whose headers are small, few and not those of sparse files."""

    headers = 0

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:  # which subclasses are meant to override
        kind = type(self)
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        if self.type not in EXTENSIONS:
            kind.headers = 0
        else:
            kind.headers += 1
            if not 0 <= self.size <= MAX_HEADER_BYTES:
                raise tarfile.ReadError(f"a header that claims {self.size} bytes")
            if kind.headers > MAX_HEADERS:
                raise tarfile.ReadError(f"more than {MAX_HEADERS} headers before a member")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # not in typeshed
        return member

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.ReadError("a sparse file")  # whose map would be read whole, however long it is


def read_pictures(path: str) -> Iterator[Entry]:
    """Yield name, bytes or why there are none, and how far a bar goes on, for each picture of a tar file."""
    at = 0
    try:
        with open_regular(path) as file:
            most = max(LEAST_UNPACKED, MAX_RATIO * os.fstat(file.fileno()).st_size)
        PlainMember.headers = 0
        with tarfile.open(path, "r|*", tarinfo=PlainMember) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # a list of all, which nothing here asks for
                name, reason = checked_name(member)
                end = member.offset_data + member.size
                is_picture = member.isfile() and name.lower().endswith(IMAGE_EXTENSIONS)
                if reason is not None or is_picture:
                    yield name, reason or _content(archive, member), end - at
                    at = end
                # Behind its end a stream is read on, 10 KiB at a time, to wherever the next header is said to be.
                if max(end, archive.offset) > most:
                    raise tarfile.ReadError(f"it unpacks to more than {MAX_RATIO} times its size")
    except Exception as error:  # a hostile header can raise anything inside tarfile
        # A cut download still holds most of its pictures; the list says what is missing.
        told = error.reason if isinstance(error, UnreadableImageError) else " ".join(str(error).split())
        yield os.path.basename(path), f"the tar file ends here: {told or type(error).__name__}", 0


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None
    return stream.read()


def checked_name(member: tarfile.TarInfo) -> tuple[str, str | None]:
    """Return the plain name of a member, and why it is refused if it is."""
    name = member.name.removeprefix("./")
    if member.name.startswith("/"):
        return name, "an absolute path"
    if ".." in name.split("/"):
        return name, "a path that climbs out of its folder"
    if not (member.isfile() or member.isdir()):
        return name, "a link or a device"
    if not 0 <= member.size <= MAX_MEMBER_BYTES:
        return name, f"it claims {member.size} bytes"
    return name, None


def read_whole(path: str) -> bytes | str:
    """Return the bytes of a picture's file, or why there are none."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return file.read() if size <= MAX_MEMBER_BYTES else f"it has {size} bytes"
    except UnreadableImageError as error:
        return error.reason
    except OSError as error:
        return error.strerror or type(error).__name__
