"""How tests have programs compiled that run for a moment: XLA in a hurry takes half the time, and the same numbers.

`FLAGS` are of a process, which tests/conftest.py and tests that start programs give it; `OPTIONS` are of one program,
for tests that are also chosen beside those whose programs are compiled as a run compiles them.
"""

import importlib.metadata

OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,  # test processes are as many as there are cores
}
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    OPTIONS["xla_cpu_use_fusion_emitters"] = False  # the older emitters compile faster; a newer XLA has no choice

FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in OPTIONS.items())
