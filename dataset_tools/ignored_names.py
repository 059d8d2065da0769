"""Which files beside photos are no images, by their name: passed over and counted, never failures.

Folders of photos also hold sidecars, lists, videos and what operating systems leave behind. Only what is known to be no
image is passed over: photos without an ending, or with an odd one, exist, and are tried.
"""

import re

from dataset_tools.archives import kind_by_name

_SUFFIXES = """
    .txt .md .rst .csv .tsv .json .jsonl .ndjson .xml .xmp .yaml .yml .toml .ini .cfg .conf .log .html .htm .css
    .js .ts .py .ipynb .sh .bat .m .c .h .cpp .java .r .cls .cls2 .id .idx .index .lbl .label .labels .caption
    .captions .text .aff .lmk .pts .ann .npy .npz .mat .pkl .pickle .pyd .pt .pth .ten .h5 .hdf5 .keras .onnx
    .tflite .pb .ckpt .safetensors .arrow .feather .avro .orc .tfrecord .tfrecords .rec .lmdb .mdb .db .sqlite
    .sqlite3 .xls .xlsx .ods .doc .docx .odt .pdf .ppt .pptx .rtf .tex .bib .gz .bz2 .xz .zst .lz4 .7z .rar .iso
    .dmg .exe .dll .so .bin .dat .lock .part .tmp .bak .crdownload .aria2 .md5 .sha1 .sha256 .sha512 .sig .asc
    .torrent .url .lnk .desktop .aae .thm .pp3 .dop .cos .mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv
    .3gp .mts .m2ts .ogv .mp3 .m4a .wav .flac .ogg .aac .srt .vtt .ass
"""
_NAMES = """
    thumbs.db desktop.ini picasa.ini readme license licence copying notice authors changelog makefile dockerfile
    md5sums sha1sums sha256sums checksums _success _metadata _common_metadata
"""
_NOT_IMAGES = frozenset(re.split(r"\s+", _SUFFIXES.strip()))
_NOT_IMAGE_NAMES = frozenset(("icon\r", *re.split(r"\s+", _NAMES.strip())))


def passed_over(relative: str) -> str | None:
    """Why a file is no image by its name, as one counts it (".json", "Thumbs.db", "__MACOSX/", "hidden"); None for one
    that may be: with a suffix of any image format, an unknown one, or none at all, since such photos exist."""
    folders, _, name = relative.rpartition("/")
    if "__MACOSX" in folders and "__MACOSX" in folders.split("/"):
        return "__MACOSX/"
    if name.startswith("."):
        return name if name == ".DS_Store" else "._*" if name.startswith("._") else "hidden"
    if "." in folders and any(part.startswith(".") and part not in (".", "..") for part in folders.split("/")):
        return "hidden"
    if name.lower() in _NOT_IMAGE_NAMES:
        return name.strip()
    suffix = "." + name.rpartition(".")[2].lower()
    if suffix in _NOT_IMAGES and "." in name and kind_by_name(name) is None:
        return suffix
    return None
