"""What an export changes, on photographs: the largest difference of a probability to the torch model, labels changed.

    python benchmarks/export.py --images photos/ [--model fashion-vit] [--count 1000]

Each format and precision is exported into a temporary folder and measured as `vit export` does, one image at a time,
beside the noise that says less.
"""

import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path

from vitcli.checkpoint.resolve import resolve
from vitcli.inference.export import SUFFIXES, Format, Options, export
from vitcli.inspection.images import from_files

FILES: tuple[tuple[Format, Options], ...] = (
    ("onnx", Options()),
    ("onnx", Options("fp16")),
    ("onnx", Options("int8")),
    ("openvino", Options()),
    ("openvino", Options("fp16")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--model", default="fashion-vit")
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    checkpoint = resolve(arguments.model)
    loads = [picture.load for picture in from_files(arguments.images, arguments.count)]
    processor = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    print(processor, *(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "openvino")), sep=", ")
    for to, options in FILES:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / f"m{SUFFIXES[to]}"
            noise = export(checkpoint, path, to, options).parity
            made = export(checkpoint, path, to, options, loads).parity
        for one, random in zip(made, noise, strict=True):
            if one.batch == 1 and one.agreement is not None and one.interval is not None:
                print(
                    f"| {to} {options.precision} {one.how} | {random.difference:.1e} | {one.difference:.1e} "
                    f"| {one.images - round(one.agreement * one.images)} of {one.images} | {one.agreement:.2%} "
                    f"({one.interval.low:.2%} to {one.interval.high:.2%}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
