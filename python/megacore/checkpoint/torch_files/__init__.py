"""PyTorch's file formats, read and written without its pickle.

`read_torch_file` and `write_torch_file` for files of torch.save; `dcp` for the directories of
torch.distributed.checkpoint. Nothing that is read is ever imported, called or executed.
"""

from megacore.checkpoint.torch_files.archive_writer import (
    TorchFileStream,
    torch_file_bytes,
    write_torch_file,
)
from megacore.checkpoint.torch_files.inert import Record, Symbol
from megacore.checkpoint.torch_files.limits import Limits
from megacore.checkpoint.torch_files.pickle_writer import encode_pickle
from megacore.checkpoint.torch_files.reader import read_torch_file

__all__ = [
    "Limits",
    "Record",
    "Symbol",
    "TorchFileStream",
    "encode_pickle",
    "read_torch_file",
    "torch_file_bytes",
    "write_torch_file",
]
