"""A rank of two with batches of different sizes, under torchrun; fails unless they act as one."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from fastrot.kernels.batchnorm.op import batch_norm

CUT = 3  # images of rank 0; rank 1 has the others


def main() -> None:
    dist.init_process_group("gloo")
    generator = torch.Generator().manual_seed(0)
    x, residual, dy = torch.randn(3, 5, 6, 4, 4, generator=generator).mul(2).add(1)
    weight, bias = torch.randn(2, 6, generator=generator)
    mine = slice(0, CUT) if dist.get_rank() == 0 else slice(CUT, None)

    def run(part: slice, group: dist.ProcessGroup | None) -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x[part], residual[part], weight, bias)]
        mean, variance = torch.zeros(6), torch.ones(6)
        y = batch_norm(leaves[0], *leaves[2:], mean, variance, residual=leaves[1], group=group)
        y.backward(dy[part])
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
        return [y.detach(), mean, variance, *gradients]

    y, mean, variance, dx, dresidual, dweight, dbias = run(mine, dist.group.WORLD)
    for total in (dweight, dbias):
        dist.all_reduce(total)
    whole = run(slice(None), None)
    expected = [whole[0][mine], *whole[1:3], whole[3][mine], whole[4][mine], *whole[5:]]
    for ours, wanted in zip(
        (y, mean, variance, dx, dresidual, dweight, dbias), expected, strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    dist.barrier()
    print("as one", flush=True)
    os._exit(0)  # torch sometimes aborts while it ends the threads of a group on a busy machine


if __name__ == "__main__":
    main()
