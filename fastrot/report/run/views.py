"""Sample views: the four turned copies of some images, as the network sees them."""

from __future__ import annotations

import torch

from fastrot.kernels.rotate.op import rotate_views
from fastrot.kernels.rotate.reference import normalisation_table
from fastrot.models.backbones import TURNS
from fastrot.report.html.blocks import Picture, Section, Strips
from fastrot.report.html.pictures import picture_uri
from fastrot.report.run.confusion import NAMES
from fastrot.report.run.network import Images, Network, chosen, open_reader
from fastrot.system.console import Say

_IMAGES = 8
PIXELATED_UP_TO = 64


def views_section(network: Network | None, images: Images | None, why: str, say: Say) -> Section:
    """Show four views of a few images and the turn that the network predicts for each."""
    section = Section("views", "Sample views")
    if network is None or images is None:
        section.missing.append(f"sample views: {why}")
        return section
    ids = chosen(images, network, _IMAGES)
    rows = []
    plain = normalisation_table((0, 0, 0), (1, 1, 1), torch.float32).to(network.device)
    with open_reader(images, ids, network, say) as loader, torch.no_grad():
        for batch in loader:
            count = len(batch.images)
            turns = torch.arange(TURNS, dtype=torch.uint8, device=network.device).expand(count, -1)
            views = rotate_views(batch.images, turns, batch.flips, plain)
            pixels = (views * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            logits = network.task.predict(network.model, network.task.inputs(batch)).logits
            shares = logits.float().softmax(1).cpu()
            for n in range(count):
                name = f"image {int(ids[batch.index[n]])}"
                at = range(n * TURNS, (n + 1) * TURNS)
                rows.append(
                    [_picture(picture_uri(pixels[i]), name, i % TURNS, shares[i]) for i in at]
                )
    size = images.crop.size
    section.lead = (
        f"Centre crops of {len(rows)} {images.name} at {size} px, each turned counter-clockwise "
        f"by 0°, 90°, 180° and 270°, and the turn that the checkpoint at step {network.step:,} "
        "predicts for each, with its probability."
    )
    section.blocks.append(Strips(rows, TURNS, pixelated=size <= PIXELATED_UP_TO))
    return section


def _picture(uri: str, name: str, turn: int, shares: torch.Tensor) -> Picture:
    seen = int(shares.argmax())
    share = 100 * float(shares[seen])
    return Picture(
        uri,
        f"{name}, turned by {NAMES[turn]}",
        f"{NAMES[seen]} {share:.0f} %",
        "good" if seen == turn else "bad",
    )
