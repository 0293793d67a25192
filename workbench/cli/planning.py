"""What will it cost? The command that says so before anything runs."""

from dataclasses import asdict

from workbench.cli import show
from workbench.cli.app import Depths, Device, Dtype, Haystack, Json, Length, Lengths, ModelName, Needles, Preset, Probes, Revision, app
from workbench.cli.measuring import options_of
from workbench.cli.spreading import DeviceMap, GpuMemory
from workbench.errors import InputError, unknown
from workbench.sources import DEFAULT_MODEL


@app.command()
def plan(
    *,
    model: ModelName = DEFAULT_MODEL,
    probe: Probes = None,
    preset: Preset = "quick",
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Revision = None,
    length: Length = None,
    lengths: Lengths = None,
    depths: Depths = None,
    needles: Needles = None,
    haystack: Haystack = None,
    device_map: DeviceMap = None,
    gpu_memory: GpuMemory = None,
    as_json: Json = False,
) -> None:
    """Estimate the time and memory of `label` or `score`, from the model's configuration alone; no weights are loaded.

    With --device-map auto it says how much of the weights is offloaded, and what fetching it costs; --gpu-memory plans for a GPU that is not here.

    Example: `workbench plan --model smollm2-135m --preset paper`
    """
    import torch

    from workbench import groups as grouping
    from workbench import models
    from workbench import plan as planning
    from workbench.sources import locate

    if device_map not in (None, "auto"):
        raise unknown("device map", device_map, ["auto"])
    if gpu_memory is not None and device_map is None:
        raise InputError("--gpu-memory bounds what --device-map auto puts on a GPU; give both")
    if device_map is not None and device != "auto":
        raise InputError(f"--device-map chooses the devices; leave out --device {device}")
    room = None if device_map is None else planning.room(gpu_memory)
    place = models.choose_device(device) if room is None else torch.device("cuda")
    precision = models.choose_dtype(dtype, place)
    groups = grouping.plan(probe, preset, options_of(length, lengths, depths, needles, haystack))
    sketched = planning.sketch(locate(model, revision=revision, say=show.remark))
    size = planning.size_of(sketched)
    offloaded = 0.0 if room is None else max(0.0, size.parameters * precision.itemsize - room)
    passes = planning.passes_of(sketched, groups)
    cost = planning.estimate(size, passes, device=place.type, dtype_bytes=precision.itemsize, offloaded=offloaded)
    if as_json:
        show.as_json({"model": sketched.name, "preset": preset, **asdict(cost), **({} if room is None else {"offloaded_bytes": offloaded})})
    else:
        show.result(f"{sketched.name}, {preset} preset, {sum(len(group.probes) for group in groups)} probes: {cost.words}")
        show.result(*(f"  {assumption}" for assumption in cost.assumptions))
        if room is not None and not offloaded:
            show.result(f"  the weights fit into {room / 2**30:.1f} GiB of the GPUs; nothing is offloaded")
