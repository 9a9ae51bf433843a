"""C4, the text that most pruning papers calibrate on."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import field_validator

from stun_exp.calibration.protocol import Calibration
from stun_exp.data.missing import Missing, MissingData
from stun_exp.data.reading import ENDINGS, NotHere, files_in, read_rows, read_set
from stun_exp.data.sets import DataSet, folders_of, places
from stun_exp.utils.paths import expanded, is_file, is_folder

REPOSITORY = "allenai/c4"


class C4(Calibration):
    """One shard of C4: random crops of documents longer than a sequence, as in Wanda, SparseGPT and OWL."""

    shard: str
    """Data file inside the C4 repository; or a file of yours, or a folder with such files, of which the first is read.

    A file has a document on each line, {"text": ...}, or is Parquet with such a column."""

    @field_validator("shard")
    @classmethod
    def _may_be_data(cls, shard: str) -> str:
        """`shard`, which names a file of data, or a folder that holds one."""
        if is_folder(expanded(shard)):
            if _first_in(expanded(shard)) is None:
                raise ValueError(f"holds no shard; give a folder with files that end in {', '.join(ENDINGS)}")
        elif not shard.endswith(ENDINGS):
            raise ValueError(f"no such folder, and no file of data: those end in {', '.join(ENDINGS)}")
        elif shard.startswith(("/", "~", ".")) and not is_file(expanded(shard)):
            raise ValueError("no such file")
        return shard

    def sequences(self, tokenizer: Any, seed: int) -> Iterator[list[int]]:
        with self._documents() as rows:
            generator = random.Random(seed)
            made = 0
            for index in generator.sample(range(len(rows)), len(rows)):
                ids = tokenizer(rows[index]["text"])["input_ids"]
                if len(ids) > self.sequence_length:
                    start = generator.randint(0, len(ids) - self.sequence_length - 1)
                    yield ids[start : start + self.sequence_length]
                    made += 1
                if made == self.num_sequences:
                    return

    def reads(self) -> list[Path]:
        file = self._file()
        return [] if file is None else [file]

    def data_sets(self) -> list[DataSet]:
        local = is_file(expanded(self.shard)) or is_folder(expanded(self.shard))
        return [] if local else [DataSet(REPOSITORY, file=self.shard)]

    def find(self) -> None:
        if self._file() is None:
            with self._documents():
                pass

    def _file(self) -> Path | None:
        """The shard on this machine; None if it is at most in the datasets library's cache."""
        own = expanded(self.shard)
        if is_file(own):
            return own
        if is_folder(own):
            return _first_in(own)
        return next((file for folder in folders_of(REPOSITORY, None) if (file := folder / self.shard).is_file()), None)

    @contextmanager
    def _documents(self) -> Iterator[Any]:
        file = self._file()
        if file is not None:
            with read_rows(file) as rows:
                if "text" not in rows.column_names:
                    raise ValueError(
                        f"calibration.shard={self.shard}: {file} has no field `text` (it has "
                        f"{', '.join(rows.column_names)}); give a file in C4's format"
                    )
                yield rows
            return
        wanted = DataSet(REPOSITORY, file=self.shard)
        try:
            found = read_set(wanted, [], True, data_files={"train": self.shard}, split="train")
        except NotHere as why:
            looked = (*places("calibration.shard", None), f"calibration.shard={self.shard} as a file")
            raise MissingData([Missing(str(wanted), "calibration", looked, str(why))]) from why
        yield found


def _first_in(folder: Path) -> Path | None:
    """The first shard for training in a folder: its own files, C4's in English, a hub's cache, or any within it."""
    repository = next(iter(folders_of(REPOSITORY, folder)), None)
    for place in (folder, folder / "en", *([repository, repository / "en"] if repository else [])):
        files = [file for file in sorted(place.glob("*")) if file.name.endswith(ENDINGS) and file.is_file()]
        training = [file for file in files if "validation" not in file.name]
        if training:
            return training[0]
    return next(iter(files_in(folder)), None)
