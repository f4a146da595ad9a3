"""Compile the parts of DeepSpeed that its backends run, once, into the environment that this runs in.

DeepSpeed would compile them in the first process that needs them, inside its timeout; a process that is killed there
leaves a lock on which every later one waits for ever. So they are compiled here, and `ops.json` beside `pyvenv.cfg`
says which ones there are, and what is missing for the others. It is read by hf/deepspeed.py. Both of DeepSpeed's
environments are built by this file, which has a name for each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which
from typing import Any

WANTED = {
    "deepspeed": {
        "cpu": ("AsyncIOBuilder", "PinMemoryBuilder", "ShareMemCommBuilder"),
        "cuda": ("AsyncIOBuilder", "PinMemoryBuilder"),
    },
    "deepspeed_injection": {"cuda": ("InferenceBuilder",)},
}
"""Environment -> accelerator -> what its backends run."""
ENVIRONMENT = Path(__file__).name.partition(".")[0]
MISSING = {
    "async_io": "libaio and its headers are missing: install libaio-dev (Debian) or libaio-devel (Fedora)",
    "transformer_inference": "the CUDA toolkit that torch was built for is missing: install its nvcc",
}


def tools_missing() -> str | None:
    absent = [
        name for name, found in {"g++": which("g++") or which("c++"), "ninja": which("ninja")}.items() if not found
    ]
    return f"no {' and no '.join(absent)} to compile with: install a C++ compiler and ninja" if absent else None


def wanted() -> dict[str, Any]:
    """Name -> builder of every part for this machine's accelerator."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    builders = [accelerator.create_op_builder(name) for name in WANTED[ENVIRONMENT].get(accelerator.device_name(), ())]
    return {builder.NAME: builder for builder in builders}


def locked() -> str:
    """DeepSpeed's lines of the lock, its hashes among them."""
    lock = Path(__file__).with_name(f"{ENVIRONMENT}.lock").read_text(encoding="utf-8")
    found = re.search(r"^deepspeed==(?:.*\\\n)*.*", lock, re.MULTILINE)
    assert found, f"{ENVIRONMENT}.lock pins no deepspeed"
    return f"{found[0]}\n"


def compile_into(parts: dict[str, Any]) -> str | None:
    """Install DeepSpeed again, now with `parts` compiled; the compiler's last lines where that fails."""
    flags = {builder.BUILD_VAR: "1" for builder in parts.values()}
    if "async_io" in parts:  # DeepSpeed links it on GPUs alone when it compiles ahead
        flags["LDFLAGS"] = f"{os.environ.get('LDFLAGS', '')} -Wl,--no-as-needed -laio"
    # Neither the wheel without parts that pip remembers, nor a build environment that has no torch.
    alone = ["--no-deps", "--force-reinstall", "--no-cache-dir", "--no-build-isolation", "--no-binary", "deepspeed"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as pinned:
        pinned.write(locked())
        pinned.flush()
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", *alone, "--require-hashes", "-r", pinned.name],
            env={**os.environ, "MAX_JOBS": os.environ.get("MAX_JOBS", "2"), **flags},
            capture_output=True,
            text=True,
            check=False,
        )
    return "\n".join(done.stderr.strip().splitlines()[-4:]) if done.returncode else None


def load(name: str) -> str:
    """ "compiled" where a new process loads the part as DeepSpeed does, or what it says instead."""
    program = f"from deepspeed.ops.op_builder.all_ops import ALL_OPS; ALL_OPS[{name!r}].load()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return f"it does not load: {done.stderr.strip().splitlines()[-1]}" if done.returncode else "compiled"


def main() -> None:
    environment = Path(sys.prefix)
    os.environ["PATH"] = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"  # this environment's ninja
    builders = wanted()
    reason = tools_missing()
    known = {name: reason or _obstacle(builder) for name, builder in builders.items()}
    possible = {name: builders[name] for name, obstacle in known.items() if obstacle is None}
    failure = compile_into(possible) if possible else None
    said = {name: obstacle or failure or load(name) for name, obstacle in known.items()}
    (environment / "ops.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def _obstacle(builder: Any) -> str | None:
    if builder.is_compatible():
        return None
    return MISSING.get(builder.NAME, builder.error_log or "DeepSpeed says that this machine cannot compile it")


if __name__ == "__main__":
    main()
