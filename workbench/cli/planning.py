"""What will it cost? The command that says so before anything runs."""

from dataclasses import asdict

from workbench.cli import show
from workbench.cli.app import Depths, Device, Dtype, Haystack, Json, Length, Lengths, ModelName, Needles, Preset, Probes, Revision, app
from workbench.cli.measuring import options_of
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
    as_json: Json = False,
) -> None:
    """Estimate the time and memory of `label` or `score`, from the model's configuration alone; no weights are loaded.

    Example: `workbench plan --model smollm2-135m --preset paper`
    """
    from workbench import groups as grouping
    from workbench import models
    from workbench import plan as planning
    from workbench.sources import locate

    place = models.choose_device(device)
    precision = models.choose_dtype(dtype, place)
    groups = grouping.plan(probe, preset, options_of(length, lengths, depths, needles, haystack))
    sketched = planning.sketch(locate(model, revision=revision, say=show.remark))
    cost = planning.estimate(planning.size_of(sketched), planning.passes_of(sketched, groups), device=place.type, dtype_bytes=precision.itemsize)
    if as_json:
        show.as_json({"model": sketched.name, "preset": preset, **asdict(cost)})
    else:
        show.result(f"{sketched.name}, {preset} preset, {sum(len(group.probes) for group in groups)} probes: {cost.words}")
        show.result(*(f"  {assumption}" for assumption in cost.assumptions))
