"""Data sets: named ones with checksums, any image folder, any pair of arrays; and their splits.

Everything is uint8 [N, H, W, C] with int64 labels; scaling to floats is `models.preprocessing`.
"""

from training.data.dataset import DataError, Dataset, from_arrays
from training.data.folder import load_folder
from training.data.idx import read_idx
from training.data.named import Part, load, names
from training.data.split import Split, stratified_split
from training.data.store import data_directory

__all__ = [
    "DataError",
    "Dataset",
    "Part",
    "Split",
    "data_directory",
    "from_arrays",
    "load",
    "load_folder",
    "names",
    "read_idx",
    "stratified_split",
]
