"""Archives as the internet sends them: thousands of small pictures, one in a hundred of them hostile or broken, in
tars, compressed tars, zips and Parquet. What must come of each member is written down while it is made, by no code of
ours.
"""

import io
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SIDE_PX = 16
_DISTINCT = 200
_EVERY = 100
"""One member in so many is none of the usual."""


@dataclass
class Planned:
    """What a run over these archives must end with. failures: reason by key. ignored: what is passed over, by kind."""

    archives: list[Path] = field(default_factory=list)
    scored: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def images(self) -> int:
        return len(self.scored) + len(self.failures)

    def picture(self, archive: Path, name: str, again: int = 1) -> None:
        """again: which one of that name it is."""
        self.scored.add(f"{archive}#{name}" + (f"~{again}" if again > 1 else ""))

    def failure(self, archive: Path, name: str, reason: str) -> None:
        self.failures[f"{archive}#{name}"] = reason


def pictures() -> list[bytes]:
    """Some hundred small pictures of one colour each, with noise, as PNG and JPEG."""
    random = np.random.default_rng(0)
    found = []
    for number in range(_DISTINCT):
        pixels = np.full((SIDE_PX, SIDE_PX + number % 5, 3), random.integers(0, 256, 3), np.int16)
        pixels = np.clip(pixels + random.integers(-9, 10, pixels.shape), 0, 255).astype(np.uint8)
        found.append(cv2.imencode((".png", ".jpg")[number % 2], pixels)[1].tobytes())
    return found


def make(folder: Path, members: int = 24_000) -> Planned:
    """About so many members (pictures, broken ones and others) in four tars, two of them compressed, three zips and a
    Parquet file; two of the tars break off."""
    folder.mkdir(parents=True)
    planned, shown = Planned(), pictures()
    share = members // 24
    tar(folder / "a.tar", 7 * share, planned, shown)
    tar(folder / "b.tar.gz", 3 * share, planned, shown)
    compressed_zip(folder / "c.zip", 5 * share, planned, shown, zipfile.ZIP_DEFLATED)
    compressed_zip(folder / "d.zip", 4 * share, planned, shown, zipfile.ZIP_STORED)
    compressed_zip(folder / "e.zip", 3 * share, planned, shown, zipfile.ZIP_STORED)
    parquet(folder / "f.parquet", share, planned, shown)
    cut_tar(folder / "g.tar", share // 2, planned, shown)
    cut_tar_gz(folder / "h.tar.gz", share // 2, planned, shown)
    return planned


def _broken(shown: list[bytes]) -> list[tuple[str, bytes, str]]:
    """(suffix, bytes, reason) of files that are no good pictures."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", noise)[1].tobytes()
    return [
        (".jpg", b"", "not_an_image"),
        (".jpg", b"<html>404</html>" * 9, "not_an_image"),
        (".jpg", jpeg[: len(jpeg) // 2], "truncated"),
        (".png", shown[0][: len(shown[0]) // 2], "truncated"),
        (".png", cv2.imencode(".png", noise[:5, :5])[1].tobytes(), "too_small"),
    ]


_PASSED_OVER = [
    ("inner.zip", "nested archive"),
    ("inner.tar.gz", "nested archive"),
    ("notes.txt", ".txt"),
    ("._a.jpg", "._*"),
    ("labels.json", ".json"),
]
_ODD_NAMES = ["/etc/cron.d/{}.png", "../../{}.png", "a/../../b/{}.png", "C:\\{}.png", "{} ü\n.png", "./{}.png"]


def tar(path: Path, members: int, planned: Planned, shown: list[bytes]) -> None:
    planned.archives.append(path)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for number in range(members):
            _tar_member(file, path, number, planned, shown)


def _tar_member(file: tarfile.TarFile, path: Path, number: int, planned: Planned, shown: list[bytes]) -> None:
    data, name = shown[number % len(shown)], f"set/{number:06d}.png"
    if number % _EVERY:
        planned.picture(path, name)
        return _put(file, name, data)
    odd = number // _EVERY
    what = odd % 6
    if what == 0:
        suffix, data, reason = _broken(shown)[odd // 6 % 5]
        planned.failure(path, f"broken/{number}{suffix}", reason)
        _put(file, f"broken/{number}{suffix}", data)
    elif what == 1:
        name = _ODD_NAMES[odd // 6 % len(_ODD_NAMES)].format(number)
        planned.picture(path, name)
        _put(file, name, data)
    elif what == 2:
        for again in (1, 2, 3):
            planned.picture(path, f"twice/{number}.png", again)
            _put(file, f"twice/{number}.png", data)
    elif what == 3:
        name, kind = _PASSED_OVER[odd // 6 % 5]
        planned.ignored[kind] += 1
        _put(file, f"{number}/{name}", data)
    elif what == 4:
        planned.ignored["link"] += 1
        kind, target = ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "set/000001.png"))[odd // 6 % 2]
        _put(file, f"link/{number}.png", b"", kind, target)
    else:
        planned.ignored["device"] += 1
        _put(file, f"dev/{number}.png", b"", (tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.BLKTYPE)[odd // 6 % 3])
        _put(file, f"dir/{number}", b"", tarfile.DIRTYPE)
    return None


def _put(file: tarfile.TarFile, name: str, data: bytes, kind: bytes = tarfile.REGTYPE, target: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    file.addfile(info, io.BytesIO(data))


def cut_tar(path: Path, members: int, planned: Planned, shown: list[bytes]) -> None:
    """Its last member's bytes are half there, and what follows it is lost."""
    planned.archives.append(path)
    with tarfile.open(path, "w") as file:
        for number in range(members):
            planned.picture(path, f"{number}.png")
            _put(file, f"{number}.png", shown[number % len(shown)])
        end = file.offset
        planned.failure(path, "half.png", "unreadable")
        _put(file, "half.png", b"x" * 4000)
    planned.failures[str(path)] = "unreadable"
    path.write_bytes(path.read_bytes()[: end + 512 + 2000])


def cut_tar_gz(path: Path, members: int, planned: Planned, shown: list[bytes]) -> None:
    """The compressed stream ends after a member."""
    planned.archives.append(path)
    packed, whole = zlib.compressobj(1, zlib.DEFLATED, 31), io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as file:
        for number in range(members):
            planned.picture(path, f"{number}.png")
            _put(file, f"{number}.png", shown[number % len(shown)])
        end = file.offset
    planned.failures[str(path)] = "unreadable"
    path.write_bytes(packed.compress(whole.getvalue()[:end]) + packed.flush(zlib.Z_FULL_FLUSH))


def compressed_zip(path: Path, members: int, planned: Planned, shown: list[bytes], method: int) -> None:
    planned.archives.append(path)
    encrypted, damaged = [], []
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as file:
        warnings.simplefilter("ignore", UserWarning)  # of names that occur twice
        for number in range(members):
            data, name = shown[number % len(shown)], f"set/{number:06d}.png"
            if number % _EVERY:
                planned.picture(path, name)
                file.writestr(name, data)
                continue
            odd = number // _EVERY
            what = odd % 7
            if what == 0:
                suffix, data, reason = _broken(shown)[odd // 7 % 5]
                planned.failure(path, f"broken/{number}{suffix}", reason)
                file.writestr(f"broken/{number}{suffix}", data)
            elif what == 1:
                planned.failure(path, f"secret/{number}.png", "unreadable")
                file.writestr(f"secret/{number}.png", data)
                encrypted.append(f"secret/{number}.png")
            elif what == 2:
                name = _ODD_NAMES[odd // 7 % len(_ODD_NAMES)].format(number)
                planned.picture(path, name)
                file.writestr(name, data)
            elif what == 3:
                for again in (1, 2):
                    planned.picture(path, f"twice/{number}.png", again)
                    file.writestr(f"twice/{number}.png", data)
            elif what == 4:
                name, kind = _PASSED_OVER[odd // 7 % 5]
                planned.ignored[kind] += 1
                file.writestr(f"{number}/{name}", data)
            elif what == 5:
                planned.ignored["link"] += 1
                info = zipfile.ZipInfo(f"link/{number}.png")
                info.external_attr = 0o120777 << 16
                file.writestr(info, "/etc/passwd")
            else:
                planned.failure(path, f"damaged/{number}.png", "unreadable")
                file.writestr(f"damaged/{number}.png", data)
                damaged.append(f"damaged/{number}.png")
        places = {info.filename: info for info in file.infolist()}
    _spoil(path, [places[name].header_offset for name in encrypted], [places[name] for name in damaged])


def _spoil(path: Path, encrypted: list[int], damaged: list[zipfile.ZipInfo]) -> None:
    """Set the flag of encryption, and change a byte of what is stored."""
    data = bytearray(path.read_bytes())
    for offset in encrypted:
        data[offset + 6] |= 1
    for info in damaged:
        n_name, n_extra = struct.unpack_from("<HH", data, info.header_offset + 26)
        data[info.header_offset + 30 + n_name + n_extra + info.compress_size // 2] ^= 0xFF
    path.write_bytes(data)


def parquet(path: Path, members: int, planned: Planned, shown: list[bytes]) -> None:
    planned.archives.append(path)
    rows: list[dict | None] = []
    for number in range(members):
        data: bytes | None = shown[number % len(shown)]
        if number % _EVERY:
            planned.picture(path, str(number))
        elif number // _EVERY % 2:
            data = None
            planned.failure(path, str(number), "unreadable")
        else:
            data = b"noise" * 9
            planned.failure(path, str(number), "not_an_image")
        rows.append({"bytes": data, "path": f"{number}.png"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind), "id": range(members)}), path, row_group_size=300)
