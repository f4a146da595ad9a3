"""Write a GGUF again with its matrices in another type, for peers that read GGUF: the values stay the checkpoint's.

python benchmarks/peers/requantize.py model.gguf model-Q8_0.gguf Q8_0
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
}
WRITTEN_BY_THE_WRITER = ("general.architecture", "general.file_type")


def requantize(source: Path, target: Path, kind: str) -> None:
    """Matrices become `kind`, vectors stay float32; written beside the target and renamed."""
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    partial = target.with_suffix(f".{os.getpid()}.partial")
    writer = GGUFWriter(partial, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in WRITTEN_BY_THE_WRITER:
            continue
        inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(FILE_TYPES[kind])
    for tensor in reader.tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if values.ndim < 2 or kind == "F32":
            writer.add_tensor(tensor.name, values)
        else:
            as_kind = GGMLQuantizationType[kind]
            writer.add_tensor(tensor.name, quantize(values, as_kind), raw_dtype=as_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)


if __name__ == "__main__":
    requantize(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
