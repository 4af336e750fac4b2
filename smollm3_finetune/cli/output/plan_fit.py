"""What `plan --fit` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smollm3_finetune.data.counts import counted
from smollm3_finetune.files.room import shown_size

if TYPE_CHECKING:
    from smollm3_finetune.memory.fit import Fit

OTHER_WAYS = "to see what takes less: add --compare"


def shown_fit(found: Fit) -> str:
    """The longest rows and the largest batch that fit, and a table of lengths and batches."""
    room = shown_size(found.budget)
    own = f"{found.length} tokens, batch {found.batch}"
    needs = f"at most {shown_size(found.planned.high)}"
    if found.nothing_fits:
        least = shown_size(found.smallest.high)
        return (
            f"nothing fits into {room}: one row of 8 tokens takes at most {least}\n"
            f"hint: --set train.gradient_checkpointing=true, or another --quant; {OTHER_WAYS}"
        )
    lines = [f"fits into {room}" if found.fits else f"does not fit into {room}: {needs}"]
    lines[0] += f": {own} takes {needs}" if found.fits else f" for {own}"
    if found.longest is not None:
        lines.append(
            f"longest rows   {counted(found.longest, 'token')} at batch {found.batch}: --max-length {found.longest}"
        )
    else:
        lines.append(f"longest rows   none at batch {found.batch}")
    if found.largest is not None:
        rows = counted(found.largest, "row")
        lines.append(f"largest batch  {rows} at {counted(found.length, 'token')}: --batch-size {found.largest}")
    else:
        lines.append(f"largest batch  none at {counted(found.length, 'token')}")
    if found.table:
        lines += ["", "max length  largest batch"]
        lines += [f"{length:>10}  {batch:>13}" for length, batch in found.table]
    return "\n".join(lines)
