from __future__ import annotations

from collections.abc import Mapping

import torch


def assert_at_most_twice_the_error(
    exact: Mapping[str, torch.Tensor],
    fused: Mapping[str, torch.Tensor],
    eager: Mapping[str, torch.Tensor],
) -> None:
    """Hold gradients of the fused step against eager ones, layer by layer.

    Weight and bias of a layer together: four numbers alone, as in the head's bias, lie further
    apart by chance, on some processors.

    Args:
        exact: gradients in float64, by the parameter's name.
        fused: of the same names.
        eager: of the same names.
    """
    layers: dict[str, list[str]] = {}
    for name in exact:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    assert len(layers) > 40
    for layer, names in layers.items():

        def error(of: Mapping[str, torch.Tensor], names: list[str] = names) -> float:
            return float(torch.cat([(of[n] - exact[n]).flatten() for n in names]).norm())

        assert error(fused) < 2 * error(eager), f"{layer}: {error(fused)}, eager {error(eager)}"
