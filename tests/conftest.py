"""What do the tests share? Models, made or loaded once, and settings that keep a run offline and repeatable."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub: no test waits for a network
os.environ["WORKBENCH_RUNS"] = "-"  # no test finds the results of another
os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: kernels run on the CPU
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before anything imports numpy: the interpreter makes many small products

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["dashboard", "browsing", "docs_site", "two_nodes"]  # fixtures of the dashboard, of the docs site, and of Ray

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def one_thread_for_tiny_models(request):
    """Tiny models are slower on two threads than on one; the default model is not."""
    import torch

    torch.set_num_threads(1 if request.node.get_closest_marker("model") is None else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)


@pytest.fixture(scope="session")
def smollm2():
    """The default model in float32 on the CPU, converted once into the user's cache. Mark its tests with `model`."""
    from workbench.models import load

    return load("smollm2-135m", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def tiny_llama():
    """A random Llama of two layers, six query heads and two KV heads; no tokenizer."""
    from workbench.tiny import random_model

    return random_model("llama")


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two random models of one shape, in folders from which they are loaded."""
    from workbench.tiny import random_model

    made = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"model{seed}")
        model = random_model("llama", seed=seed)
        model.hf.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        made.append(str(folder))
    return made
