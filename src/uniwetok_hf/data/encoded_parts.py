# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""One part of an encoded dataset: rows with pictures in, a Parquet file with their codes out.

What a part holds is a function of its rows and the settings alone, and its counts lie in the file itself, so parts
can be made in any order and by any process, and a folder of them can be finished by whoever comes last.
"""

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..files import one_line, whole_file
from ..modeling.codes_uniwetok import pack_codes
from ..modeling.image_processing_uniwetok import UniWeTokImageProcessor
from .archives import ERROR_COLUMN
from .samples import AUGMENTATION, sample_generator
from .sources import cell_content, picture_of_file


FITS = ("crop", "resize")
MOST_WAITING = 256  # pictures that wait for others of their size; more would take too much memory
JPEG_STEP = 32  # every so many rows, the pictures are compressed as JPEG for comparison
JPEG_QUALITY = 90
SUMMARY_KEY = b"uniwetok"
SHARD_ROWS = 1 << 32  # where shards are encoded apart, row r of shard s has the number (s + 1) * SHARD_ROWS + r


@dataclass(frozen=True)
class EncodingSettings:
    """How a dataset is encoded. Either `sizes` or `longest_edge` is given.

    sizes: (height, width) in pixels. A picture goes to the one that is nearest to its proportions, is scaled to cover
        it, and its centre is cut out. One size: all pictures get it.
    longest_edge: instead, a picture keeps its proportions. It is scaled down, never up, to at most so many pixels.
    patch_size: side in tokens of the patches that the language model generates at once; sides of all pictures are
        multiples of `patch_size` tokens.
    fit: what is done about the rest: "crop" cuts it off, "resize" changes the proportions.
    columns: columns of pictures; None for all of them.
    num_variants: encodings of each picture: itself, and random crops of it.
    crop_scale: smallest side of a random crop, as a share of the picture's.
    flip: whether half of the random crops are mirrored. Off by default: captions and edits speak of left and right,
        and letters can't be mirrored.
    mirrored: whether each encoding of a picture is followed by that of its mirror image, so that there are twice as
        many.
    same_crops: whether variant k is the same crop in all rows, so that it stays comparable between rows: for edits
        that are a table of rows. Otherwise every row has its own crops.
    seed: of the random crops.
    rows_per_part: rows of the source in one Parquet file; None for what the folder was begun with, or else by the
        size of their codes.
    batch_size: pictures that are encoded at once.
    source: name of the dataset, so that an encoding is not continued with another one.
    """

    sizes: tuple[tuple[int, int], ...] = ()
    longest_edge: int | None = None
    patch_size: int = 1
    fit: str = "crop"
    columns: tuple[str, ...] | None = None
    num_variants: int = 1
    crop_scale: float = 0.8
    flip: bool = False
    mirrored: bool = False
    same_crops: bool = False
    seed: int = 0
    rows_per_part: int | None = None
    batch_size: int = 16
    source: str = ""

    def __post_init__(self):
        if bool(self.sizes) == (self.longest_edge is not None):
            raise ValueError("`sizes` or `longest_edge` must be given, and not both.")
        for name in ("patch_size", "num_variants", "rows_per_part", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {self.seed}.")
        if self.fit not in FITS:
            raise ValueError(f"`fit` must be one of {', '.join(FITS)}, got {self.fit!r}.")
        if not 0 < self.crop_scale <= 1:
            raise ValueError(f"`crop_scale` must be above 0 and at most 1, got {self.crop_scale}.")
        if self.flip and self.mirrored:
            raise ValueError("`flip` and `mirrored` can't be given together: `mirrored` stores both of each.")
        if self.num_variants > 1 and self.crop_scale == 1 and not self.flip:
            raise ValueError("`num_variants`: with a `crop_scale` of 1 and no `flip` all variants would be the same.")

    @property
    def num_encodings(self) -> int:
        """Encodings of one picture."""
        return self.num_variants * (2 if self.mirrored else 1)

    def check_stride(self, stride: int) -> None:
        """Raises a ValueError unless all sizes are multiples of a patch of tokens of `stride` pixels."""
        step = stride * self.patch_size
        sides = [side for size in self.sizes for side in size] or [self.longest_edge]
        for side in sides:
            if side < 1 or side % step:
                below = max(1, side // step) * step
                name = "sizes" if self.sizes else "longest_edge"
                raise ValueError(
                    f"`{name}`: sides must be multiples of {step} pixels ({stride} per token, patches of "
                    f"{self.patch_size} x {self.patch_size} tokens) such as {below} and {below + step}, got {side}."
                )
        proportions = [width / height for height, width in self.sizes]
        if len(set(proportions)) < len(proportions):
            raise ValueError("`sizes`: two of them have the same proportions, so one would never be chosen.")


@dataclass
class PartSummary:
    """Counts of one part: `num_rows` read from the source, from row `first_row` on; `skipped` of them, each
    [`place_of`] a row with a column and an error; `pictures` of the source encoded; and bytes of the pictures as they
    were stored, of one variant of codes, of all their JPEGs, and how many those were."""

    first_row: int
    num_rows: int
    skipped: list[dict] = dataclasses.field(default_factory=list)
    pictures: int = 0
    source_bytes: int = 0
    codes_bytes: int = 0
    jpeg_bytes: int = 0
    jpeg_pictures: int = 0


def read_summary(path: str | os.PathLike) -> PartSummary | None:
    """The counts of a part, or None when the file is not there or not whole. (The footer, where they lie, is the last
    that is written: it can't be read from a file that was cut off.)"""
    import pyarrow
    import pyarrow.parquet

    try:
        return PartSummary(**json.loads(pyarrow.parquet.read_metadata(path).metadata[SUMMARY_KEY]))
    except (OSError, pyarrow.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def place_of(row: int) -> dict[str, int]:
    """`row`, and its `shard` where shards are encoded apart, of the number of a row."""
    shard, row_of_shard = divmod(row, SHARD_ROWS)
    return {"row": row_of_shard} | ({"shard": shard - 1} if shard else {})


def row_name(place: int | dict) -> str:
    """What to call a row in messages, by its number or by [`place_of`] it."""
    place = place_of(place) if isinstance(place, int) else place
    return " of ".join(f"{name} {place[name]}" for name in ("row", "shard") if name in place)


def join_parts(pieces: Sequence[Path], path: Path) -> None:
    """Writes the rows of `pieces`, in their order, as one part, each as a row group, and removes them.

    Raises:
        OSError: when a piece can't be read or `path` can't be written; no piece is removed then.
    """
    import pyarrow.parquet

    summaries = [read_summary(piece) for piece in pieces]
    if None in summaries:
        if read_summary(path) is not None:
            return  # by a process that was only thought to be dead
        raise OSError(f"{pieces[summaries.index(None)]} is gone or damaged")
    joined = summaries[0]
    for summary in summaries[1:]:
        for field in dataclasses.fields(PartSummary)[1:]:
            setattr(joined, field.name, getattr(joined, field.name) + getattr(summary, field.name))
    schema = pyarrow.parquet.read_schema(pieces[0])
    schema = schema.with_metadata(schema.metadata | {SUMMARY_KEY: json.dumps(dataclasses.asdict(joined)).encode()})
    _write_parquet(map(_read_table, pieces), schema, path)
    for piece in pieces:
        piece.unlink(missing_ok=True)


def _read_table(path: Path):
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        return file.read()


class PartEncoder:
    """Makes parts with the columns `features`, whose pictures are `settings.columns`. `on_pictures`, where it is set,
    is called with the number of encodings after each batch."""

    on_pictures: Callable[[int], object] | None = None

    def __init__(self, model, settings: EncodingSettings, features):
        self.model, self.settings, self.features = model, settings, features
        self.stride = model.config.stride * settings.patch_size
        self.image_processor = UniWeTokImageProcessor(stride=self.stride, fit=settings.fit)
        self.waiting: dict[tuple[int, ...], list[tuple[np.ndarray, list, int]]] = {}

    def write_part(self, table, first_row: int, path: Path) -> None:
        """Encodes the rows of the Arrow `table`, which start with row `first_row` of the source, and writes `path`."""
        import pyarrow

        summary = PartSummary(first_row, table.num_rows)
        kept, cells = [], {column: [] for column in self.settings.columns}
        errors = table.column(ERROR_COLUMN).to_pylist() if ERROR_COLUMN in table.column_names else {}
        for index in range(table.num_rows):
            if errors and errors[index]:
                error = one_line(errors[index])
                summary.skipped.append(place_of(first_row + index) | {"column": ERROR_COLUMN, "error": error})
                continue
            pictures = {column: table.column(column)[index].as_py() for column in self.settings.columns}
            if self._add_row(first_row + index, pictures, cells, summary):
                kept.append(index)
        while self.waiting:
            self._encode_waiting(next(iter(self.waiting)))

        rest = table.drop_columns(list(self.settings.columns)).take(pyarrow.array(kept, pyarrow.int64()))
        schema = self.features.arrow_schema
        columns = [
            pyarrow.array(cells[field.name], field.type) if field.name in cells else rest.column(field.name)
            for field in schema
        ]
        metadata = schema.metadata | {SUMMARY_KEY: json.dumps(dataclasses.asdict(summary)).encode()}
        written = schema.with_metadata(metadata)
        _write_parquet([pyarrow.table(columns, names=schema.names).cast(written)], written, path)

    def _add_row(self, row: int, pictures: dict, cells: dict[str, list], summary: PartSummary) -> bool:
        """Prepares all pictures of one row and queues them. Nothing of a row with a bad picture is kept."""
        prepared = {}
        for column, cell in pictures.items():
            try:
                many = cell if isinstance(cell, list) else [cell]
                prepared[column] = [self._prepare(row, single) for single in many]
            except ValueError as error:
                summary.skipped.append(place_of(row) | {"column": column, "error": one_line(error)})
                return False
        for column, many in prepared.items():
            queued = [self._queue(variants) for variants, _ in many]
            cells[column].append(queued if isinstance(pictures[column], list) else queued[0])
            for variants, source_bytes in many:
                summary.pictures += 1
                summary.source_bytes += source_bytes
                height, width = (side // self.model.config.stride for side in variants[0].shape[1:])
                summary.codes_bytes += height * width * self.model.config.num_bits // 8
                if row % JPEG_STEP == 0:
                    summary.jpeg_bytes += _jpeg_bytes(variants[0])
                    summary.jpeg_pictures += 1
        return True

    def _prepare(self, row: int, cell: dict | bytes | str | None) -> tuple[list[np.ndarray], int]:
        """All variants of one picture, uint8 [3, H, W], and the bytes that it took."""
        path = cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None
        name = path or row_name(row)
        content = cell_content(cell, name)
        picture = picture_of_file(content, name)
        # One generator a row, or one for all: pictures that share it are cropped and mirrored alike.
        generator = sample_generator(self.settings.seed, 0 if self.settings.same_crops else row, AUGMENTATION)
        pictures, shape = [picture], None
        if self.settings.sizes and self.settings.fit == "crop":  # nothing is cut off then but what chance decides
            shape = nearest_size(picture, self.settings.sizes)
        for _ in range(self.settings.num_variants - 1):
            numbers = torch.rand(4, dtype=torch.float32, generator=generator).tolist()
            pictures.append(random_crop(picture, self.settings.crop_scale, self.settings.flip, numbers, shape))
        variants = [self._fit(picture) for picture in pictures]
        if self.settings.mirrored:
            variants = [one for variant in variants for one in (variant, np.ascontiguousarray(variant[..., ::-1]))]
        return variants, len(content)

    def _fit(self, picture: Image.Image) -> np.ndarray:
        size = {"longest_edge": self.settings.longest_edge}
        if self.settings.sizes:
            size = dict(zip(("height", "width"), nearest_size(picture, self.settings.sizes), strict=True))
        pixels = np.moveaxis(np.asarray(picture), -1, 0)  # [3, H, W]
        processor = self.image_processor
        return processor.fit_image(pixels, self.stride, self.settings.fit, size, processor.resample)[0]

    def _queue(self, variants: Sequence[np.ndarray]) -> list[dict | None]:
        """The cell of one picture, which is filled when its batch is encoded."""
        cell: list[dict | None] = [None] * len(variants)
        for index, pixels in enumerate(variants):
            group = self.waiting.setdefault(pixels.shape, [])
            group.append((pixels, cell, index))
            if len(group) == self.settings.batch_size:
                self._encode_waiting(pixels.shape)
        if sum(map(len, self.waiting.values())) > MOST_WAITING:
            self._encode_waiting(max(self.waiting, key=lambda shape: len(self.waiting[shape])))
        return cell

    @torch.no_grad()
    def _encode_waiting(self, shape: tuple[int, ...]) -> None:
        """Encodes the pictures of one size that wait."""
        group = self.waiting.pop(shape)
        pixels = self.image_processor([pixels for pixels, _, _ in group], input_data_format="channels_first")
        encoded = self.model.encode(pixels["pixel_values"].to(self.model.device, self.model.dtype))
        if not encoded.latents.isfinite().all():
            raise ValueError(f"`model`: its latents are not finite in {self.model.dtype}; try another dtype.")
        packed = pack_codes(encoded.codes).cpu().numpy()  # [B, h, w, bytes]
        for (_, cell, index), codes in zip(group, packed, strict=True):
            cell[index] = {"codes": codes.tobytes(), "height": codes.shape[0], "width": codes.shape[1]}
        if self.on_pictures:
            self.on_pictures(len(group))


def nearest_size(picture: Image.Image, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) of `sizes` that is nearest to the proportions of `picture`."""
    proportion = picture.width / picture.height
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] / proportion)))


def random_crop(
    picture: Image.Image, smallest: float, flip: bool, numbers: Sequence[float], shape: tuple[int, int] | None = None
) -> Image.Image:
    """A crop anywhere in the picture, of the proportions of `shape` (height, width) or its own, with sides of
    `smallest` to 1 of those of the largest such crop, and mirrored in half of the cases with `flip`. `numbers` are
    four in [0, 1): scale, left, top, coin."""
    scale = smallest + (1 - smallest) * numbers[0]
    height, width = shape or (picture.height, picture.width)
    scale *= min(picture.width / width, picture.height / height)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = int(numbers[1] * (picture.width - width + 1)), int(numbers[2] * (picture.height - height + 1))
    cut = picture.crop((left, top, left + width, top + height))
    return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip and numbers[3] < 0.5 else cut


def _jpeg_bytes(pixels: np.ndarray) -> int:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1))).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.tell()


def _write_parquet(tables: Iterable, schema, path: Path) -> None:
    """A row group for each table. Under a temporary name first, renamed when it is on the disk: a part that is there
    is whole. The name is of this process: another may make the same part, when it is only thought to be dead."""
    import pyarrow.parquet

    with whole_file(path, is_shared=True) as temporary, open(temporary, "wb") as file:
        # No dictionaries: codes hardly ever repeat, and zstd finds what repeats in the other columns.
        with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
            for table in tables:
                writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
