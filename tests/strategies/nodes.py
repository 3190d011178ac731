"""Nodes of a run's results, made by hand."""


def trained(inputs, start, losses, *, step_flops=1.0, pace=1.0, every=10, **more):
    """A trained node with an evaluation every so many steps; the first record of its pace includes the compilation."""
    steps = [start + every * i for i in range(len(losses))]
    return {
        "kind": "train",
        "inputs": inputs,
        "arm": "",
        "start": start,
        "step": steps[-1],
        "step_flops": step_flops,
        "flops": step_flops * (steps[-1] - start),
        "parameters": 10,
        "validation_loss": [list(point) for point in zip(steps, losses, strict=True)],
        "steps_per_second": [[start + 1, 0.01], [steps[-1], 1 / pace]],
        **more,
    }


GROWTH = {
    "kind": "fuse",
    "flops": 0.0,
    "arm": "",
    "start": 0,
    "step": 20,
    "validation_loss": [],
    "steps_per_second": [],
}
